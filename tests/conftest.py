"""What all tests share: a quiet, single-threaded, repeatable process; a tiny corpus; an untrained model on disk."""

import os
from pathlib import Path

import hypothesis
import pytest

import moe_asr  # noqa: F401  (first of all: it makes torchaudio importable)

# isort: split
import torch

from moe_asr.config.data import DataConfig, TokenizerConfig, TokenUnit
from moe_asr.config.model import DecoderConfig, EncoderConfig, LossConfig, ModelConfig, MoEConfig, RouterConfig
from moe_asr.config.program import TrainConfig
from moe_asr.config.synthetic import Engine, SyntheticConfig
from moe_asr.data.batches import make_batch, read_all, similar
from moe_asr.data.manifest import describe, read_split
from moe_asr.data.synthetic.corpus import generate
from moe_asr.features.cmvn import feature_statistics
from moe_asr.features.fbank import LogMel
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.modules import fused
from moe_asr.runs.checkpoint import Checkpoint, build, save_checkpoint
from moe_asr.tensors import Chunking

os.environ["WANDB_MODE"] = "disabled"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

DIGITS = ("zero", "oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="session", autouse=True)
def kernel() -> None:
    """Compiled before tests of what is printed."""
    fused.library()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of 47 training utterances of 4 voices, and 8 dev, 8 seen and 12 unseen ones."""
    folder = tmp_path_factory.mktemp("corpus") / "digits"
    options = SyntheticConfig(
        engine=Engine.formant,
        hours=0.02,
        train_voices=4,
        test_voices=3,
        utterances_per_test_voice=4,
        seen_utterances=8,
        dev_utterances=8,
        dev_voices=4,
    )
    generate(options, folder, workers=1)
    return folder


@pytest.fixture(scope="session")
def tiny(digits: Path) -> TrainConfig:
    """A Mixture-of-Experts model of a few thousand parameters for the tiny corpus."""
    return TrainConfig(
        model=ModelConfig(
            encoder=EncoderConfig(layers=1, width=16, heads=2, ffn_width=16, kernel=3, subsampling_channels=4),
            decoder=DecoderConfig(layers=1, reverse_layers=1, heads=2, ffn_width=16),
        ),
        moe=MoEConfig(placement="encoder", num_experts=4, top_k=2),
        data=DataConfig(path=str(digits), test=["seen", "unseen"]),
        tokenizer=TokenizerConfig(unit=TokenUnit.word),
    )


@pytest.fixture(scope="session")
def untrained(tiny: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose model knows nothing, but says something: its output layer is blown up."""
    folder = tmp_path_factory.mktemp("runs") / "untrained"
    tokenizer = Tokenizer(TokenUnit.word, (*SPECIALS, *DIGITS))
    torch.manual_seed(1)
    model = build(tiny, tokenizer)
    with torch.no_grad():
        model.ctc.output.weight.mul_(30)
        model.ctc.output.bias.zero_()
        model.encoder.cmvn.set_cmvn(torch.full((80,), -8.0), torch.full((80,), 0.3))
    (folder / "checkpoints").mkdir(parents=True)
    save_checkpoint(folder / "checkpoints" / "model.pt", Checkpoint(tiny, tokenizer, model.state_dict()))
    return folder


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose model has learnt the training utterances by heart, and digits by the way (4 CPU-s)."""
    return learnt(digits, tmp_path_factory.mktemp("runs") / "trained", MoEConfig())


@pytest.fixture(scope="session")
def trained_moe(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four experts, one of which serves each frame, in both encoder layers (6 CPU-s)."""
    return learnt(digits, tmp_path_factory.mktemp("runs") / "trained_moe", MoEConfig("encoder", num_experts=4, top_k=1))


def learnt(digits: Path, folder: Path, moe: MoEConfig) -> Path:
    """A run directory in `folder`."""
    off = {"dropout": 0.0, "position_dropout": 0.0}
    encoder = EncoderConfig(
        2, 48, heads=2, ffn_width=96, kernel=7, subsampling_channels=8, attention_dropout=0.0, **off
    )
    decoder = DecoderConfig(1, 1, heads=2, ffn_width=48, self_attention_dropout=0.0, cross_attention_dropout=0.0, **off)
    config = TrainConfig(
        model=ModelConfig(encoder=encoder, decoder=decoder),
        moe=moe,
        router=RouterConfig(normalize=moe.top_k > 1),
        loss=LossConfig(ctc_weight=0.5),
        data=DataConfig(path=str(digits), test=["seen", "unseen"]),
        tokenizer=TokenizerConfig(unit=TokenUnit.word),
    )
    tokenizer = Tokenizer(TokenUnit.word, (*SPECIALS, *DIGITS))
    torch.manual_seed(1)
    model, log_mel = build(config, tokenizer), LogMel(config.features)
    batches = []
    for cuts in similar(read_split(digits, "train"), 8, 60.0):
        tokens = [tokenizer.encode(describe(cut).text) for cut in cuts]
        samples = read_all(cuts, log_mel.sample_rate)[0]
        batches.append(make_batch(list(samples.values()), tokens, [cut.id for cut in cuts], log_mel))
    seen = ((batch.features, batch.feature_lengths) for batch in batches)
    model.encoder.cmvn.set_cmvn(*feature_statistics(seen).mean_istd())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(28):
        for batch in batches:
            optimizer.zero_grad()
            model(batch, Chunking())[0].total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    (folder / "checkpoints").mkdir(parents=True)
    save_checkpoint(folder / "checkpoints" / "model.pt", Checkpoint(config, tokenizer, model.state_dict()))
    return folder

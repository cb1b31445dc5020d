"""A training run that begins with a dense one: its outputs, statistics of the features included."""

import dataclasses
from pathlib import Path

import pytest
import torch

from moe_asr.config.model import MoEConfig
from moe_asr.config.program import TrainConfig, UpcycleConfig
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.runs.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint
from moe_asr.training.train import initial_model


def test_the_first_step_begins_where_the_dense_run_ended(
    tiny: TrainConfig, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer: Tokenizer = load_checkpoint(untrained).tokenizer
    dense = dataclasses.replace(tiny, moe=MoEConfig())
    torch.manual_seed(5)
    model = build(dense, tokenizer).eval()
    model.encoder.cmvn.set_cmvn(torch.full((80,), -8.0), torch.full((80,), 0.3))
    save_checkpoint(tmp_path / "dense.pt", Checkpoint(dense, tokenizer, model.state_dict()))
    config = dataclasses.replace(tiny, init_from=str(tmp_path / "dense.pt"), seed=9)
    grown = initial_model(config, tokenizer, (), None).eval()  # without utterances nothing can be measured anew
    shown = capsys.readouterr().out
    assert "tensors taken over; new: routers.routers.0.project.weight, routers.routers.1.project.weight." in shown
    assert "differ" not in shown
    features, lengths = torch.randn(1, 60, 80) - 8, torch.tensor([60])
    before, after = (m.ctc_log_probs(m.encode(features, lengths).frames) for m in (model, grown))
    assert torch.allclose(before, after, atol=1e-5)
    noisy = dataclasses.replace(config, upcycle=UpcycleConfig(noise=0.1))
    other = initial_model(noisy, tokenizer, (), None).eval()
    assert not torch.allclose(before, other.ctc_log_probs(other.encode(features, lengths).frames), atol=1e-3)
    assert "experts differ (upcycle)" in capsys.readouterr().out

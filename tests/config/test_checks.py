"""Every impossible or contradictory option is refused with one sentence that says what to write."""

from typing import Any

import pytest

from moe_asr.config.commands import EvaluateConfig
from moe_asr.config.data import AugmentConfig, BatchConfig, DataConfig
from moe_asr.config.model import (
    ChunkConfig,
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    MoEConfig,
    Positions,
    RouterConfig,
    RouterLogits,
)
from moe_asr.config.prepare import FsddConfig, PrepareConfig, Speechocean762Config
from moe_asr.config.program import DecodeConfig, OptimConfig, TrainConfig, TrainerConfig
from moe_asr.config.synthetic import Engine, Recipe, SyntheticConfig
from moe_asr.errors import InputError

NO_DECODERS = ModelConfig(decoder=DecoderConfig(layers=0, reverse_layers=0))
ONE_WAY = ModelConfig(decoder=DecoderConfig(reverse_layers=0))
STARVED = MoEConfig(placement="encoder", top_k=1)

WRONG: list[tuple[type, dict[str, Any], str]] = [
    (EncoderConfig, {"width": 10, "heads": 4}, "encoder.width=10 must be a multiple of encoder.heads=4."),
    (EncoderConfig, {"layers": 0}, "encoder.layers=0 must be at least 1."),
    (EncoderConfig, {"kernel": 0}, "encoder.kernel=0 must be at least 1, or null for no convolution."),
    (EncoderConfig, {"attention_bias": False}, "write encoder.positions=cape."),
    (EncoderConfig, {"positions": Positions.rotary, "width": 12, "heads": 4}, "needs heads of even width, not 12 / 4."),
    (EncoderConfig, {"cape_shift": -1.0}, "encoder.cape_shift=-1.0 must not be negative."),
    (EncoderConfig, {"cape_scale": 0.5}, "encoder.cape_scale=0.5 must be at least 1."),
    (EncoderConfig, {"causal": False, "kernel": 8}, "encoder.kernel=8 must be odd when encoder.causal=false"),
    (ModelConfig, {"name": "u3"}, "model.name=u3 is not known; write u2pp or omni."),
    (ModelConfig, {"decoder": DecoderConfig(heads=5)}, "must be a multiple of model.decoder.heads=5."),
    (ModelConfig, {"decoder": DecoderConfig(layers=0)}, "set model.decoder.layers to at least 1."),
    (MoEConfig, {"num_experts": 0}, "moe.num_experts=0 must be at least 1."),
    (MoEConfig, {"top_k": 9}, "moe.top_k=9 must lie between 1 and moe.num_experts=8."),
    (MoEConfig, {"top_k": 0}, "moe.top_k=0 must lie between 1"),
    (LossConfig, {"ctc_weight": 1.5}, "loss.ctc_weight=1.5 must lie between 0 and 1."),
    (LossConfig, {"reverse_weight": -0.1}, "loss.reverse_weight=-0.1 must lie between 0 and 1."),
    (LossConfig, {"label_smoothing": 2.0}, "loss.label_smoothing=2.0 must lie between 0 and 1."),
    (LossConfig, {"balance": -1.0}, "loss.balance=-1.0 must not be negative."),
    (ChunkConfig, {"largest": 0}, "chunk.largest=0 must be at least 1 frame."),
    (AugmentConfig, {"speeds": [1.0, 0.0]}, "[1.0] turns it off."),
    (AugmentConfig, {"time_masks": -1}, "augment.time_masks=-1 must not be negative; 0 turns it off."),
    (AugmentConfig, {"gain_db": -1.0}, "augment.gain_db=-1.0 must not be negative; 0 turns it off."),
    (AugmentConfig, {"time_mask_share": 1.1}, "augment.time_mask_share=1.1 must lie between 0 and 1."),
    (BatchConfig, {"seconds": 0.0}, "batch.seconds and batch.utterances must be above 0."),
    (OptimConfig, {"lr": 0.0}, "optim.lr and optim.clip must be above 0."),
    (OptimConfig, {"warmup_steps": -1}, "optim.warmup_steps=-1 must not be negative."),
    (OptimConfig, {"betas": [0.9]}, "optim.betas=[0.9] must be two numbers, such as [0.9,0.98]."),
    (TrainerConfig, {"max_steps": 0}, "trainer.max_steps=0 must be -1 or above 0."),
    (TrainerConfig, {"threads": -1}, "trainer.threads=-1 must not be negative."),
    (TrainerConfig, {"devices": 0}, "trainer.devices=0 must be at least 1."),
    (DataConfig, {"limit": 0}, "data.limit=0 must be at least 1, or null for all."),
    (DataConfig, {"min_seconds": 40}, "data.min_seconds=40 must lie between 0 and data.max_seconds=30.0."),
    (DataConfig, {"dev": []}, "data.dev must name at least one split."),
    (BatchConfig, {"bucket_ratio": 0.5}, "batch.bucket_ratio=0.5 must be at least 1."),
    (BatchConfig, {"workers": -1}, "batch.workers=-1 must not be negative."),
    *((TrainerConfig, {name: 0}, f"trainer.{name}=0 must be at least 1.") for name in ("epochs", "accumulate")),
    *(
        (TrainerConfig, {name: 0}, f"trainer.{name}=0 must be")
        for name in ("validate_every", "recover_every", "average")
    ),
    (DecodeConfig, {"beam": 0}, "decode.beam=0 must be at least 1."),
    (DecodeConfig, {"left": -1}, "decode.left must be at least 0, or null for all."),
    (DecodeConfig, {"left": 2}, "decode.left=2 counts chunks: say how long with decode.chunk=16."),
    (DecodeConfig, {"mode": "attention", "nbest": 11}, "write decode.beam=11."),
    (DecodeConfig, {"reverse_weight": 1.5}, "decode.reverse_weight=1.5 is a share: write a number from 0 to 1."),
    (DecodeConfig, {"lm_weight": -0.1}, "decode.lm_weight=-0.1 must be at least 0."),
    (DecodeConfig, {"hotwords": ["a"]}, "need the prefix beam: write decode.mode=ctc_prefix_beam or"),
    (DecodeConfig, {"mode": "attention", "lm": "x"}, "need the prefix beam: write decode.mode=ctc_prefix_beam or"),
    (DecodeConfig, {"chunk": -1}, "decode.chunk and decode.chunks count frames and must be at least 1."),
    (DecodeConfig, {"chunks": [16, -1]}, "decode.chunk and decode.chunks count frames and must be at least 1."),
    (TrainConfig, {"moe": STARVED}, "write router.normalize=false (router=switch) or moe.top_k=2."),
    (TrainConfig, {"moe": MoEConfig(num_experts=4)}, "say where with moe.placement=encoder"),
    (TrainConfig, {"router": RouterConfig(normalize=False)}, "moe.placement=none for a dense model."),
    (TrainConfig, {"loss": LossConfig(balance=0.1)}, "A router is configured, but there is no MoE layer"),
    (TrainConfig, {"moe": MoEConfig("encoder.9")}, "moe.placement=encoder.9 names 'encoder.9'"),
    (MoEConfig, {"num_experts": 3, "expert_widths": [8, 0]}, "moe.expert_widths has 2 numbers for moe.num_experts=3."),
    (MoEConfig, {"num_experts": 2, "expert_widths": [0, 0]}, "must not be negative, nor all 0."),
    (MoEConfig, {"num_experts": 2, "expert_widths": [8, 0], "expert_width": 8}, "contradict each other"),
    (MoEConfig, {"expert_width": 0}, "moe.expert_width=0 must be at least 1"),
    (MoEConfig, {"shared_experts": -1}, "moe.shared_experts=-1 must not be negative."),
    (MoEConfig, {"groups": 0}, "moe.groups=0 must be at least 1."),
    (MoEConfig, {"sharing_table": [0]}, "moe.sharing=table and moe.sharing_table belong together"),
    (MoEConfig, {"dropout": 1.0}, "moe.dropout=1.0 must lie in [0, 1)."),
    (RouterConfig, {"jitter": 1.0}, "router.jitter=1.0 must be less than 1."),
    (RouterConfig, {"gumbel": -1.0}, "router.gumbel=-1.0 must not be negative."),
    (RouterConfig, {"scale": 0.0}, "router.scale=0.0 must be above 0."),
    (RouterConfig, {"capacity_factor": 0.0}, "router.capacity_factor=0.0 must be above 0, or null"),
    (RouterConfig, {"logits": RouterLogits.position, "balance_rate": 0.1}, "write router.balance_rate=0.0."),
    (RouterConfig, {"side_width": -1}, "router.side_width=-1 must not be negative."),
    (LossConfig, {"z": -1.0}, "loss.z=-1.0 must not be negative."),
    (LossConfig, {"entropy": float("nan")}, "loss.entropy=nan must be a number."),
    (EvaluateConfig, {"lefts": [2]}, "write decode.chunks=[16] too."),
    (TrainConfig, {"model": NO_DECODERS}, "write loss.ctc_weight=1.0 or model.decoder.layers=1."),
    (TrainConfig, {"model": ONE_WAY}, "write loss.reverse_weight=0.0 or model.decoder.reverse_layers=1."),
    (FsddConfig, {"min_digits": 8}, "fsdd.min_digits=8 must lie between 1 and fsdd.max_digits=7."),
    (FsddConfig, {"min_gap": 0.5}, "fsdd.min_gap=0.5 must lie between 0 and fsdd.max_gap=0.25."),
    (FsddConfig, {"dev_strings": 0}, "must be at least 1."),
    (Speechocean762Config, {"dev_speakers": 0}, "speechocean762.dev_speakers must be at least 1."),
    (PrepareConfig, {"workers": -1}, "workers=-1 must not be negative; 0 = one per core."),
    (SyntheticConfig, {"train_voices": 0}, "train_voices=0 must be at least 1."),
    (SyntheticConfig, {"dev_utterances": 0}, "dev_utterances=0 must be at least 1."),
    (SyntheticConfig, {"hours": 0.0}, "hours=0.0 of training audio must be above 0."),
    (SyntheticConfig, {"dev_voices": 1}, "dev_voices=1 must be at least 2: a training voice and another."),
    (SyntheticConfig, {"train_voices": 5}, "write dev_voices=10 or fewer."),
    (SyntheticConfig, {"min_digits": 0}, "min_digits=0 must lie between 1 and max_digits=7."),
    (SyntheticConfig, {"max_digits": 2}, "write 3 or more."),
    (SyntheticConfig, {"recipe": Recipe.text}, "recipe=text and text=FILE belong together; give both, or neither."),
    (SyntheticConfig, {"text": "lines.txt"}, "recipe=text and text=FILE belong together; give both, or neither."),
    (SyntheticConfig, {"recipe": Recipe.grammar, "engine": Engine.formant}, "engine=espeak for recipe=grammar."),
    (SyntheticConfig, {"languages": []}, "languages must name each language once."),
    (SyntheticConfig, {"languages": ["en", "en"]}, "languages must name each language once."),
    (SyntheticConfig, {"language": "xx"}, "language 'xx' is not known; choose from en, cmn, de, es, fr, it, pt, ru."),
    (SyntheticConfig, {"recipe": Recipe.multilingual, "test_voices": 3}, "raise train_voices and test_voices."),
]


@pytest.mark.parametrize(("config", "options", "sentence"), WRONG)
def test_impossible_options_are_refused(config: type, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        config(**options)
    text = str(refused.value)
    assert sentence in text
    assert text.endswith(".")
    assert "\n" not in text


def test_what_lies_at_the_limits_is_allowed() -> None:
    EncoderConfig(layers=1, kernel=1, causal=False)
    MoEConfig(num_experts=1, top_k=1)
    TrainConfig(moe=MoEConfig(placement="both", num_experts=1, top_k=1))
    TrainConfig(moe=MoEConfig(placement="none", top_k=1))
    TrainConfig(model=NO_DECODERS, loss=LossConfig(ctc_weight=1.0))
    config = TrainConfig(model=ONE_WAY, loss=LossConfig(ctc_weight=0.0, reverse_weight=0.0))
    assert config.model.decoder.reverse_layers == 0

"""A model small enough for brute force."""

from collections.abc import Callable

import pytest
import torch

from moe_asr.config.model import (
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
)
from moe_asr.models.encoder import EncoderOutput
from moe_asr.models.u2pp import U2pp, build_model


@pytest.fixture
def make_model() -> Callable[..., U2pp]:
    """make_model(layers, reverse_layers, placement): untrained but opinionated, float64, evaluation mode, seed 0."""

    def make(layers: int = 1, reverse_layers: int = 1, placement: str = "none") -> U2pp:
        torch.manual_seed(0)
        decoder = DecoderConfig(layers, reverse_layers, heads=2, ffn_width=24)
        config = ModelConfig(
            encoder=EncoderConfig(layers=1, width=16, heads=2, ffn_width=24, kernel=3), decoder=decoder
        )
        moe, loss = MoEConfig(placement, num_experts=4, top_k=2), LossConfig(ctc_weight=0.3 if layers else 1.0)
        model = build_model(config, moe, RouterConfig(), loss, vocab_size=6, mel_bins=11)
        with torch.no_grad():
            model.ctc.output.weight.mul_(8)
            for part in model.decoders.values():
                part.output.weight.mul_(3)
        return model.double().eval()

    return make


@pytest.fixture
def encoded() -> EncoderOutput:
    """Four utterances of 6, 4, 1 and 0 frames."""
    torch.manual_seed(4)
    return EncoderOutput(torch.randn(4, 6, 16, dtype=torch.float64), torch.tensor([6, 4, 1, 0]), ())

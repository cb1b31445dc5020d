"""A model small enough for exact comparisons in float64."""

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
    Sharing,
)
from moe_asr.models.batch import Batch
from moe_asr.models.u2pp import U2pp, build_model

KINDS = {
    "dense": MoEConfig(),
    "per_layer": MoEConfig("both", Sharing.per_layer, num_experts=4, top_k=2),
    "shared": MoEConfig("both", Sharing.shared, num_experts=4, top_k=2),
}


@pytest.fixture
def make_model() -> Callable[..., U2pp]:
    """make_model(kind or MoEConfig, router=..., loss=..., **encoder options): float64, evaluation mode, seed 0."""

    def make(
        kind: str | MoEConfig = "dense",
        router: RouterConfig | None = None,
        loss: LossConfig | None = None,
        layers: int = 2,
        **options: object,
    ) -> U2pp:
        torch.manual_seed(0)
        encoder = EncoderConfig(layers=layers, width=16, heads=2, ffn_width=24, **{"kernel": 5, **options})
        config = ModelConfig(encoder=encoder, decoder=DecoderConfig(1, 1, heads=2, ffn_width=24))
        moe = KINDS[kind] if isinstance(kind, str) else kind
        model = build_model(config, moe, router or RouterConfig(), loss or LossConfig(), vocab_size=9, mel_bins=11)
        model.encoder.cmvn.set_cmvn(torch.randn(11), torch.rand(11) + 0.5)
        return model.double().eval()

    return make


@pytest.fixture
def batch() -> Batch:
    """Three utterances of 24, 17 and 9 frames."""
    torch.manual_seed(1)
    tokens = torch.tensor([[3, 4, 4, 5, 8], [6, 3, 7, -1, -1], [5, -1, -1, -1, -1]])
    lengths = torch.tensor([101, 73, 40])
    features = torch.randn(3, 101, 11, dtype=torch.float64)
    return Batch(("a", "b", "c"), features, lengths, tokens, torch.tensor([5, 3, 1]), 2.14)

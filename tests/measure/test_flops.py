"""Counting on paper against torch's counter of what really runs: equal to the last multiply-add."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moe_asr.config.model import (
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    ModelConfig,
    MoEConfig,
    Positions,
    RouterConfig,
    Sharing,
    Subsampling,
)
from moe_asr.measure import flops
from moe_asr.models.decoder import Decoder
from moe_asr.models.encoder import FULL_CONTEXT, EncoderOutput
from moe_asr.models.u2pp import U2pp, build_model
from moe_asr.tensors import Chunking

MODEL = ModelConfig(
    encoder=EncoderConfig(layers=2, width=16, heads=2, ffn_width=24, kernel=5, subsampling_channels=6),
    decoder=DecoderConfig(layers=2, reverse_layers=1, heads=4, ffn_width=40),
)
DENSE = MoEConfig()
MIXED = MoEConfig(placement="both", sharing=Sharing.shared, num_experts=5, top_k=3)
VARIED = MoEConfig(  # with all experts chosen, whatever their widths
    placement="encoder.1.ffn_in+left_to_right",
    sharing=Sharing.per_stack,
    num_experts=4,
    top_k=4,
    expert_widths=[8, 0, 8, 20],
    shared_experts=2,
)
NARROW = MoEConfig(placement="encoder", num_experts=4, top_k=2, expert_width=7)
ARMS = {"dense": DENSE, "moe": MIXED, "varied": VARIED, "narrow": NARROW}
VOCABULARY, BINS = 11, 80


def build(moe: MoEConfig) -> U2pp:
    torch.manual_seed(0)
    return build_model(MODEL, moe, RouterConfig(), LossConfig(), vocab_size=VOCABULARY, mel_bins=BINS).eval()


def counted(work: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What `work` returns and the multiply-adds of each module, by its name.

    Gradients stay on: then attention is made of matrix products, while the fused kernel is not counted.
    """
    with FlopCounterMode(display=False) as counter:
        result = work()
    return result, {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}


def total(counts: dict[str, int], *ends: str) -> int:
    return sum(count for name, count in counts.items() if name.endswith(ends))


@pytest.mark.parametrize("moe", ARMS.values(), ids=ARMS)
@pytest.mark.parametrize("feature_frames", [7, 50, 52])
def test_each_part_of_the_encoder(moe: MoEConfig, feature_frames: int) -> None:
    model = build(moe)
    features, lengths = torch.randn(1, feature_frames, BINS), torch.tensor([feature_frames])
    encoded, counts = counted(lambda: model.encode(features, lengths))
    routers = total(counts, "TopKRouter")
    assert flops.encoder(MODEL, moe, feature_frames, BINS) == {
        "subsampling": total(counts, ".subsampling"),
        "attention": total(counts, ".attention"),
        "convolution": total(counts, ".convolution"),
        "feed-forward": total(counts, ".ffn_in", ".ffn_out") - routers,
        "router": routers,
    }
    assert (routers > 0) == (moe is not DENSE)
    head = counted(lambda: model.ctc_log_probs(encoded.frames))[1]["Global"]
    assert flops.ctc_head(MODEL, VOCABULARY, encoded.frames.shape[1]) == head


@pytest.mark.parametrize("chunking", [FULL_CONTEXT, Chunking(4, 1)], ids=str)
def test_a_transformer_of_stacked_frames(chunking: Chunking) -> None:
    shape = EncoderConfig(
        layers=2,
        width=16,
        heads=2,
        ffn_width=24,
        subsampling=Subsampling.stack,
        macaron=False,
        kernel=None,
        positions=Positions.cape,
    )
    config, loss = ModelConfig(encoder=shape, decoder=DecoderConfig(0, 0)), LossConfig(ctc_weight=1.0)
    model = build_model(config, MIXED, RouterConfig(), loss, vocab_size=VOCABULARY, mel_bins=BINS).eval()
    features, lengths, state = torch.randn(1, 50, BINS), torch.tensor([50]), model.encoder.start(1, chunking)
    stream = counted(lambda: model.encoder.step(features, lengths, state, model.routers, torch.tensor([True])))[1]
    assert sum(flops.encoder(config, MIXED, 50, BINS, chunking).values()) == stream["Global"]


@pytest.mark.parametrize("chunking", [Chunking(4), Chunking(3, 2), Chunking(1, 0), Chunking(30, 1)], ids=str)
def test_a_stream_in_chunks(chunking: Chunking) -> None:
    model = build(MIXED)
    features, lengths = torch.randn(1, 50, BINS), torch.tensor([50])
    state = model.encoder.start(1, chunking)
    stream = counted(lambda: model.encoder.step(features, lengths, state, model.routers, torch.tensor([True])))[1]
    parts = flops.encoder(MODEL, MIXED, 50, BINS, chunking)
    # The last chunk of a stream does not look at the feature frames that make no frame.
    spare = flops.encoder(MODEL, MIXED, 50, BINS)["subsampling"] - flops.encoder(MODEL, MIXED, 47, BINS)["subsampling"]
    assert sum(parts.values()) - (spare if chunking.size == 30 else 0) == stream["Global"]
    whole = flops.encoder(MODEL, MIXED, 50, BINS, FULL_CONTEXT)
    assert (parts["attention"] < whole["attention"]) == (chunking.size != 30)


@pytest.mark.parametrize("moe", ARMS.values(), ids=ARMS)
def test_each_part_of_rescoring(moe: MoEConfig) -> None:
    """Keys and values are those of one utterance, however many hypotheses ask for them."""
    model, frames, hypotheses, tokens = build(moe), 9, 4, 6
    encoded = EncoderOutput(torch.randn(1, frames, 16), torch.tensor([frames]), ())
    inputs, lengths = torch.full((hypotheses, tokens + 1), 3), torch.full((hypotheses,), tokens + 1)

    def score(decoder: Decoder) -> dict[str, int]:
        memory, counts = counted(lambda: decoder.memory(encoded))
        return {"memory": counts["Global"]} | counted(lambda: decoder(inputs, lengths, memory, None, model.routers))[1]

    counts = [score(decoder) for decoder in model.decoders.values()]
    routers = sum(total(c, "TopKRouter") for c in counts)
    assert flops.rescoring(MODEL, moe, VOCABULARY, frames, hypotheses, tokens) == {
        "keys and values": sum(c["memory"] for c in counts),
        "attention": sum(total(c, "_attention") for c in counts),
        "feed-forward": sum(total(c, ".ffn_out") for c in counts) - routers,
        "router": routers,
        "output": sum(total(c, ".output") for c in counts),
    }


def test_the_published_baseline_on_12_seconds() -> None:
    """Known from the reference: about 71 G for encoder and CTC, of which the second convolution alone makes 20.9."""
    model = ModelConfig(encoder=EncoderConfig(layers=15, width=640, heads=10, ffn_width=2560))
    parts = flops.encoder(model, DENSE, 1200, BINS)
    thin = ModelConfig(encoder=EncoderConfig(layers=1, width=640, heads=10, subsampling_channels=1))
    others = 640 * (flops.encoder(thin, DENSE, 1200, BINS)["subsampling"] - 299 * 19 * 9)  # linear in the channels
    assert parts["subsampling"] - others == pytest.approx(20.9e9, rel=0.005)
    assert sum(parts.values()) + flops.ctc_head(model, 8404, 299) == pytest.approx(71e9, rel=0.01)

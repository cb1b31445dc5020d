"""What holds for every kind of encoder: a stream equals the masked pass, and company changes nothing."""

from dataclasses import replace

import pytest
import torch

from moe_asr.config.compose import compose_config
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
from moe_asr.config.program import TrainConfig
from moe_asr.models.batch import Batch
from moe_asr.models.u2pp import build_model, parameter_counts
from moe_asr.modules.moe.routing import NOTHING
from moe_asr.tensors import Chunking

TRANSFORMER = {"macaron": False, "kernel": None, "subsampling": Subsampling.stack}
KINDS = {
    "omni": {**TRANSFORMER, "positions": Positions.cape, "attention_bias": False},
    "rotary": {**TRANSFORMER, "positions": Positions.rotary},
    "relative": {**TRANSFORMER, "positions": Positions.relative, "subsampling": Subsampling.conv2d},
    "no macaron": {"macaron": False, "positions": Positions.sinusoidal},
    "no convolution": {"kernel": None},
    "stacked": {"subsampling": Subsampling.stack, "positions": Positions.rotary},
}
LENGTHS = torch.tensor([101, 73, 40])


def make_model(kind, decoders=0):
    torch.manual_seed(0)
    encoder = EncoderConfig(layers=2, width=16, heads=2, ffn_width=24, **{"kernel": 5, **KINDS[kind]})
    config = ModelConfig(encoder=encoder, decoder=DecoderConfig(decoders, decoders, heads=2, ffn_width=24))
    moe = MoEConfig("encoder", Sharing.shared, num_experts=4, top_k=1)
    loss = LossConfig(ctc_weight=0.3 if decoders else 1.0)
    return build_model(config, moe, RouterConfig(normalize=False), loss, vocab_size=9, mel_bins=11).double().eval()


def features():
    return torch.randn(3, 101, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "chunking", [Chunking(1), Chunking(4, 0), Chunking(4, 2), Chunking(16, 1), Chunking()], ids=str
)
@torch.no_grad()
def test_a_stream_is_the_masked_pass(kind, chunking):
    model, speech = make_model(kind), features()
    masked = model.encode(speech, LENGTHS, chunking)
    state, found = model.encoder.start(3, chunking), [[], [], []]
    for first in range(0, 101, 17):
        piece = speech[:, first : first + 17]
        lengths = (LENGTHS - first).clamp(0, piece.shape[1])
        finish = (first < LENGTHS) & (first + 17 >= LENGTHS)
        output, state = model.encoder.step(piece, lengths, state, model.routers, finish)
        for row, n in enumerate(output.frame_lengths.tolist()):
            found[row].append((output.frames[row, :n], [s.routing.expert_ids[row, :n] for s in output.routing]))
    for row, n in enumerate(masked.frame_lengths.tolist()):
        assert n > 0
        assert (torch.cat([frames for frames, _ in found[row]]) - masked.frames[row, :n]).abs().max() < 1e-10
        for site, whole in enumerate(masked.routing):
            parts = [ids[site] for _, ids in found[row] if ids]
            assert torch.cat(parts).equal(whole.routing.expert_ids[row, :n])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_streams_take_the_place_of_others(kind):
    """What ended leaves no trace in the stream that follows it in the same row."""
    model, speech = make_model(kind), features()
    state, all_of = model.encoder.start(2, Chunking(4, 2)), torch.tensor([True, True])
    two = torch.tensor([50, 40])
    _, state = model.encoder.step(speech[:2, :50], two, state, model.routers, all_of)
    again, _ = model.encoder.step(speech[1:, :50], two, state, model.routers, all_of)
    fresh, _ = model.encoder.step(speech[1:, :50], two, model.encoder.start(2, Chunking(4, 2)), model.routers, all_of)
    for row, n in enumerate(fresh.frame_lengths.tolist()):
        assert (again.frames[row, :n] - fresh.frames[row, :n]).abs().max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_and_company_change_nothing(kind):
    model, speech = make_model(kind), features()
    together = model.encode(speech, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.encode(speech[row : row + 1, :length], LENGTHS[row : row + 1])
        assert (alone.frames[0] - together.frames[row, : int(alone.frame_lengths)]).abs().max() < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_looks_ahead_of_its_chunk(kind):
    model, speech = make_model(kind), features()[:1].requires_grad_()
    output = model.encode(speech, LENGTHS[:1], Chunking(4))
    output.frames[0, 7, 0].backward()  # the last frame of the second chunk
    seen = speech.grad[0].abs().sum(-1).nonzero().flatten()
    overlap = 3 if model.encoder.config.subsampling is Subsampling.conv2d else 0
    assert seen.tolist() == list(range(8 * 4 + overlap))


def test_decoders_join_any_encoder():
    model = make_model("omni", decoders=1).train()
    tokens = torch.tensor([[3, 4, 5], [6, 3, -1], [5, -1, -1]])
    batch = Batch(("a", "b", "c"), features(), LENGTHS, tokens, torch.tensor([3, 2, 1]), 2.0)
    losses, trace = model(batch)
    losses.total.backward()
    assert {"ctc", "att", "att_l2r", "att_r2l"} <= losses.parts.keys()
    assert [str(part.site) for part in trace] == ["encoder.00.ffn_out", "encoder.01.ffn_out"]
    assert all(p.grad is not None for p in model.parameters())


def test_rotary_positions_are_relative_and_the_others_are_not():
    """Without masks, moving all positions changes nothing for rotary attention."""
    for kind, moves in (("rotary", False), ("omni", True)):
        model = make_model(kind).encoder
        x = torch.randn(1, 12, 16, dtype=torch.float64)
        valid = torch.ones(1, 12, dtype=torch.bool)
        outputs = []
        for first in (0, 1000):
            positions = first + torch.arange(12)
            routers = make_model(kind).routers
            outputs.append(model._layers(x, positions, valid, None, routers, NOTHING)[0])
        assert bool((outputs[0] - outputs[1]).abs().max() > 1e-6) is moves


def test_cape_shifts_and_stretches_in_training_alone():
    encoder = make_model("omni").encoder
    encoder.positions.dropout.rate = 0.0
    x, places = torch.zeros(2, 30, 16, dtype=torch.float64), torch.arange(30)
    quiet, _ = encoder.positions(x, places)
    assert quiet.equal(encoder.positions(x, places)[0])
    encoder.positions.train()
    one, two = (encoder.positions(x, places)[0] for _ in range(2))
    assert not one.equal(two)
    assert not one[0].equal(one[1])  # each utterance has its own
    assert not one[0].equal(quiet[0])
    encoder.positions.shift = 0.0
    assert encoder.positions(x, places)[0].equal(quiet)


@pytest.mark.parametrize(
    ("preset", "experts", "total"),
    [
        ("omni_84m", None, 84.2),
        ("omni_84m", 2, 136.7),
        ("omni_84m", 4, 241.6),
        ("omni_84m", 8, 451.6),
        ("omni_140m", None, 140.1),
        ("omni_140m", 2, 228.8),
        ("omni_140m", 4, 406.1),
        ("omni_140m", 8, 760.8),
        ("omni_210m", None, 210.2),
        ("omni_210m", 2, 344.5),
        ("omni_210m", 4, 613.1),
    ],
)
def test_presets_have_the_published_sizes(preset, experts, total):
    words = [f"model={preset}"]
    if experts:
        words += ["moe.placement=encoder", f"moe.num_experts={experts}", "moe.top_k=1", "router=switch"]
        words += ["moe.sharing=shared"]
    config = compose_config("train", TrainConfig, words)
    with torch.device("meta"):
        model = build_model(config.model, config.moe, config.router, config.loss, vocab_size=8193, mel_bins=80)
    counted, active = parameter_counts(model)
    assert counted / 1e6 == pytest.approx(total, abs=0.06)
    dense = replace(config.moe, placement="none")
    with torch.device("meta"):
        plain = build_model(config.model, dense, config.router, config.loss, vocab_size=8193, mel_bins=80)
    assert active == pytest.approx(parameter_counts(plain)[0], rel=1e-3)

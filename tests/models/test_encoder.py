from dataclasses import replace

import pytest
import torch

from moe_asr.config.model import ConvNorm, Subsampling
from moe_asr.errors import InputError
from moe_asr.modules.moe.routing import Routing
from moe_asr.modules.subsampling import frame_lengths
from moe_asr.tensors import Chunking

KINDS = ["dense", "per_layer", "shared"]


def stream(model, features, lengths, chunking, window):
    """All frames and expert ids of each utterance, its features pushed `window` at a time."""
    state = model.encoder.start(len(features), chunking)
    frames, ids = [[] for _ in features], [[] for _ in features]
    for first in range(0, features.shape[1], window):
        now = (lengths - first).clamp(0, window)
        finish = (lengths > first) & (lengths <= first + window)
        output, state = model.encoder.step(features[:, first : first + window], now, state, model.routers, finish)
        for i, count in enumerate(output.frame_lengths.tolist()):
            frames[i].append(output.frames[i, :count])
            if output.routing:
                ids[i].append(torch.cat([s.routing.expert_ids[i, :count] for s in output.routing], -1))
    return [torch.cat(rows) for rows in frames], [torch.cat(rows) for rows in ids if rows], state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 4, 8, 16, None])
@torch.inference_mode()
def test_streaming_equals_the_chunk_mask(make_model, batch, kind, size):
    model = make_model(kind)
    for left in (0, 2, None):
        chunking = Chunking(size, left)
        whole = model.encode(batch.features, batch.feature_lengths, chunking)
        frames, ids, _ = stream(model, batch.features, batch.feature_lengths, chunking, window=30)
        for i, length in enumerate(whole.frame_lengths.tolist()):
            assert len(frames[i]) == length
            assert (frames[i] - whole.frames[i, :length]).abs().max() < 1e-10
            if kind != "dense":
                expected = torch.cat([s.routing.expert_ids[i, :length] for s in whole.routing], -1)
                assert ids[i].equal(expected)


@pytest.mark.parametrize("window", [1, 7, 19, 101])
@torch.inference_mode()
def test_features_may_come_in_any_portions(make_model, batch, window):
    model = make_model("per_layer")
    whole = model.encode(batch.features, batch.feature_lengths, Chunking(3, 1))
    frames, _, _ = stream(model, batch.features, batch.feature_lengths, Chunking(3, 1), window)
    for i, length in enumerate(whole.frame_lengths.tolist()):
        assert (frames[i] - whole.frames[i, :length]).abs().max() < 1e-10


@torch.inference_mode()
def test_streams_join_idle_and_leave(make_model, batch):
    model, one = make_model(), torch.ones(1, dtype=torch.bool)
    alone = model.encode(batch.features[:1], batch.feature_lengths[:1], Chunking(4, 2)).frames[0]
    state = model.encoder.start(2, Chunking(4, 2))
    # Stream 1 hears another utterance, ends, idles, and hears the first one in the place that became free.
    both = torch.stack([batch.features[1], batch.features[2]])
    ended = torch.tensor([False, True])
    _, state = model.encoder.step(both[:, :40], torch.tensor([40, 40]), state, finish=ended)
    idle, state = model.encoder.step(both[:, 40:60], torch.tensor([20, 0]), state)
    assert idle.frame_lengths.tolist() == [4, 0]
    state = state.select(torch.tensor([1]))
    assert state.positions.tolist() == [0]
    output, state = model.encoder.step(batch.features[:1], batch.feature_lengths[:1], state, model.routers, one)
    assert (output.frames[0] - alone).abs().max() < 1e-10


@torch.inference_mode()
def test_memory_is_bounded_with_limited_left_context(make_model):
    model = make_model()
    state = model.encoder.start(1, Chunking(2, 3))
    sizes = []
    for _ in range(12):
        _, state = model.encoder.step(torch.randn(1, 16, 11), torch.tensor([16]), state)
        sizes.append(sum(t.numel() for layer in state.layers for t in layer) + state.pending.numel())
    assert sizes[-1] == sizes[-5]
    assert state.layers[0][0].shape[1] == 6


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_future_beyond_the_chunk_changes_nothing(make_model, batch, kind):
    model = make_model(kind)
    later = batch.features.clone()
    later[:, 4 * 8 + 3 :] += 1.0  # the first feature frame that only frames from 8 on see
    one, two = (model.encode(f, batch.feature_lengths, Chunking(4)) for f in (batch.features, later))
    if kind == "dense":
        assert one.frames[:, :8].equal(two.frames[:, :8])
    # How many rows an expert is given depends on the future, and with it the last bit of a matrix product's rows.
    assert (one.frames[:, :8] - two.frames[:, :8]).abs().max() < 1e-13
    for left, right in zip(one.routing, two.routing, strict=True):
        assert left.routing.expert_ids[:, :8].equal(right.routing.expert_ids[:, :8])
    assert not one.frames[:, 8:9].equal(two.frames[:, 8:9])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"causal": False}, {"conv_norm": ConvNorm.batch_norm}], ids=["causal", "centred", "bn"]
)
@torch.inference_mode()
def test_padding_changes_nothing(make_model, batch, kind, options):
    model = make_model(kind, **options)
    together = model.encode(batch.features, batch.feature_lengths)
    for i, length in enumerate(batch.feature_lengths.tolist()):
        alone = model.encode(batch.features[i : i + 1, :length], batch.feature_lengths[i : i + 1])
        frames = alone.frames.shape[1]
        assert (alone.frames[0] - together.frames[i, :frames]).abs().max() < 1e-12
        for one, all_ in zip(alone.routing, together.routing, strict=True):
            assert one.routing.expert_ids[0].equal(all_.routing.expert_ids[i, :frames])
            assert (all_.routing.expert_ids[i, frames:] == -1).all()
            assert not all_.valid[i, frames:].any()


def test_batch_norm_counts_no_padding(make_model, batch):
    padded, plain = (make_model(conv_norm=ConvNorm.batch_norm, dropout=0.0, position_dropout=0.0) for _ in "ab")
    for model, extra in ((padded, 40), (plain, 0)):
        model.train()
        model.encoder.layers[0].attention.dropout = model.encoder.layers[1].attention.dropout = 0.0
        features = torch.nn.functional.pad(batch.features[:1], (0, 0, 0, extra))
        model.encode(features, batch.feature_lengths[:1])
    one, two = padded.state_dict(), plain.state_dict()
    name = "encoder.layers.1.convolution.norm.running_var"
    assert (one[name] - two[name]).abs().max() < 1e-12
    assert (one[name] - 1.0).abs().max() > 1e-3


def test_frame_lengths():
    assert [frame_lengths(n, Subsampling.conv2d) for n in (0, 3, 6, 7, 10, 11, 100)] == [0, 0, 0, 1, 1, 2, 24]
    assert frame_lengths(torch.tensor([0, 2, 7, 11]), Subsampling.conv2d).tolist() == [0, 0, 1, 2]
    assert [frame_lengths(n, Subsampling.stack) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


@torch.inference_mode()
def test_audio_shorter_than_a_frame_gives_no_frame(make_model, batch):
    model = make_model("shared")
    output = model.encode(batch.features[:2, :5], torch.tensor([5, 0]))
    assert output.frame_lengths.tolist() == [0, 0]
    assert output.frames.isfinite().all()
    mixed = model.encode(batch.features, torch.tensor([101, 4, 40]), Chunking(4, 1))
    assert mixed.frame_lengths.tolist() == [24, 0, 9]
    assert mixed.frames.isfinite().all()


@torch.inference_mode()
def test_taps_are_the_outputs_of_layers(make_model, batch):
    model = make_model()
    output = model.encoder(batch.features, batch.feature_lengths, taps=(0, 1))
    assert list(output.taps) == [0, 1]
    assert model.encoder.norm(output.taps[1]).equal(output.frames)


def test_looking_ahead_is_refused_under_chunks(make_model, batch):
    model = make_model(causal=False)
    with pytest.raises(InputError, match=r"encoder\.causal=true"):
        model.encode(batch.features, batch.feature_lengths, Chunking(4))
    with pytest.raises(InputError, match=r"encoder\.causal=true"):
        model.encoder.start(1, Chunking(4))
    moe = make_model("shared")
    router = moe.routers.routers[0]
    router.causal = False
    with pytest.raises(InputError, match=r"encoder\.00\.ffn_in"):
        moe.encode(batch.features, batch.feature_lengths, Chunking(4))
    assert moe.encode(batch.features, batch.feature_lengths).frames.isfinite().all()


@torch.inference_mode()
def test_a_caller_may_replace_routers(make_model, batch):
    class First:
        num_experts, top_k, causal = 4, 1, True

        def __call__(self, x, valid, site, side=None):
            ids = torch.zeros(*valid.shape, 1, dtype=torch.long).masked_fill(~valid.unsqueeze(-1), -1)
            return Routing(x.new_zeros(*valid.shape, 4), ids, x.new_ones(ids.shape))

    model = make_model("per_layer")
    routers = dict.fromkeys(model.routers.table, First())
    output = model.encode(batch.features, batch.feature_lengths, routers=routers)
    assert all(s.routing.expert_ids.max() == 0 for s in output.routing)
    with pytest.raises(ValueError, match=r"encoder\.00\.ffn_in.*router"):
        model.encode(batch.features, batch.feature_lengths, routers={})
    assert replace(output, taps={}).routing == output.routing

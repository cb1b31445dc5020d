"""What an encoder frame can see, exactly: probed with gradients, and over hours of audio."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_asr.config.model import Subsampling
from moe_asr.modules import subsampling
from moe_asr.modules.moe.routing import NOTHING
from moe_asr.modules.subsampling import FACTOR
from moe_asr.tensors import Chunking, chunk_mask

OVERLAP = subsampling.OVERLAP[Subsampling.conv2d]

LAYERS, KERNEL = 2, 3


def visible_features(frame, frames, chunking, layers=LAYERS, kernel=KERNEL):
    """By definition: attention spans its chunk and the left ones, the convolution k - 1 frames before, per layer."""
    seen = {frame}
    for _ in range(layers):
        seen = {i for j in seen for i in range(max(j - kernel + 1, 0), j + 1)}
        if chunking.size is not None:
            size, left = chunking.size, frames if chunking.left is None else chunking.left
            seen = {i for j in seen for i in range((j // size - left) * size, (j // size + 1) * size)}
            seen &= set(range(frames))
        else:
            seen = set(range(frames))
    return {t for i in seen for t in range(FACTOR * i, FACTOR * i + FACTOR + OVERLAP)}


def influential_features(model, frame, features, chunking):
    """The feature frames that this frame has a gradient to."""
    features = features.clone().requires_grad_()
    encoded = model.encode(features, torch.tensor([features.shape[1]]), chunking)
    gradient = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (encoded.frames[0, frame] @ gradient).backward()
    return set(features.grad[0].abs().sum(-1).nonzero().flatten().tolist())


@pytest.mark.parametrize("kind", ["dense", "shared"])
@pytest.mark.parametrize("size", [1, 3, 4, None])
def test_a_frame_sees_exactly_its_receptive_field(make_model, kind, size):
    model, frames = make_model(kind, layers=LAYERS, kernel=KERNEL), 18
    features = torch.randn(1, FACTOR * frames + OVERLAP, 11, dtype=torch.float64)
    for left in (0, 1, None):
        for frame in (0, 7, 8, 12, 17):
            expected = visible_features(frame, frames, Chunking(size, left))
            assert influential_features(model, frame, features, Chunking(size, left)) == expected


def test_the_field_is_as_wide_as_the_formula_says():
    # Frame 24 is in chunk 6 (24-27). Per layer the convolution reaches 2 frames, hence a chunk, back (22, in chunk 5),
    # and attention one more (chunk 4, from 16); twice that is chunk 2 (from 8). Nothing after frame 27.
    assert visible_features(24, 40, Chunking(4, 1)) == set(range(4 * 8, 4 * 27 + 7))
    assert visible_features(24, 40, Chunking(4, 0)) == set(range(4 * 16, 4 * 27 + 7))


@pytest.mark.parametrize("size", [1, 4])
@torch.inference_mode()
def test_a_stream_waits_for_what_a_frame_sees_and_no_longer(make_model, size):
    model = make_model()
    state = model.encoder.start(1, Chunking(size))
    came, emitted = [], 0
    for t in range(FACTOR * 12 + OVERLAP):
        output, state = model.encoder.step(torch.randn(1, 1, 11), torch.tensor([1]), state)
        came += [t] * output.frames.shape[1]
        emitted += output.frames.shape[1]
    assert emitted == 12
    assert came == [max(visible_features(frame, 12, Chunking(size))) for frame in range(12)]


def resident_megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the resident memory this way")
@torch.inference_mode()
def test_two_hours_in_constant_memory(make_model):
    """A state of constant size, and at its end what a masked pass over the last stretch gives at those positions."""
    size, left, frames = 32, 4, 2 * 3600 * 25
    model, chunking = make_model(layers=LAYERS, kernel=KERNEL), Chunking(32, 4)
    generator = torch.Generator().manual_seed(0)
    state, tail = model.encoder.start(1, chunking), torch.zeros(1, 0, 11, dtype=torch.float64)
    # What 4 chunks can see: 2 layers of 4 chunks of left context, and the chunks that convolutions reach into.
    stretch = (4 + LAYERS * (left + 1)) * size
    sizes, memory, last = set(), [], []
    for second in range(0, 7200, 6):
        features = torch.randn(1, 600, 11, generator=generator, dtype=torch.float64)
        output, state = model.encoder.step(features, torch.tensor([600]), state)
        tail = torch.cat([tail, features], 1)[:, -(FACTOR * stretch + 1200) :]
        last = [*last, output.frames][-2:]
        if second >= 60:
            sizes.add(sum(t.numel() for layer in state.layers for t in layer))
            memory.append(resident_megabytes())
    assert len(sizes) == 1
    assert state.layers[0][0].shape[1] == left * size
    assert state.pending.shape[1] < FACTOR * size + OVERLAP
    # All cached keys of two hours would be 90 MB.
    assert memory[-1] - memory[0] < 20
    encoded = int(state.positions)
    assert encoded == (frames * FACTOR - OVERLAP) // FACTOR // size * size
    first = encoded - stretch
    assert first > 170_000
    ends = tail.shape[1] - state.pending.shape[1] + OVERLAP
    window = tail[:, ends - (FACTOR * stretch + OVERLAP) : ends]
    positions = torch.arange(first, encoded)
    x = model.encoder.subsampling(model.encoder.cmvn(window))
    mask, valid = chunk_mask(positions, positions, chunking), torch.ones(1, stretch, dtype=torch.bool)
    masked, *_ = model.encoder._layers(x, positions, valid, mask, model.routers, NOTHING)
    streamed = torch.cat(last, 1)[:, -4 * size :]
    assert streamed.shape[1] == 4 * size
    assert (streamed - masked[:, -4 * size :]).abs().max() < 1e-10
    # The same features at the positions of a fresh stream give something else.
    fresh, *_ = model.encoder._layers(x, positions - first, valid, mask, model.routers, NOTHING)
    assert (streamed - fresh[:, -4 * size :]).abs().max() > 1e-6


@torch.inference_mode()
def test_positions_beyond_any_table(make_model, batch):
    """The same at once: a stream that starts late agrees with the masked pass at these positions."""
    model, chunking, first = make_model("shared"), Chunking(4, 2), 1_000_000
    state = model.encoder.start(1, chunking)
    state = replace(state, positions=state.positions + first)
    output, _ = model.encoder.step(batch.features[:1], batch.feature_lengths[:1], state, model.routers)
    positions = torch.arange(first, first + 24)
    x = model.encoder.subsampling(model.encoder.cmvn(batch.features[:1]))
    mask, valid = chunk_mask(positions, positions, chunking), torch.ones(1, 24, dtype=torch.bool)
    masked, *_ = model.encoder._layers(x, positions, valid, mask, model.routers, NOTHING)
    assert output.frames.shape[1] == 24
    assert (output.frames - masked).abs().max() < 1e-10

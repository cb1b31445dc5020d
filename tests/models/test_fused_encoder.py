"""What the fused kernel computes of an encoder, against the modules it replaces."""

import copy

import pytest
import torch
from torch import nn

from moe_asr.config.inference import InferencePrecision
from moe_asr.config.model import Activation, ConvNorm, EncoderConfig, ModelConfig, MoEConfig, RouterConfig
from moe_asr.models.inference import prepare
from moe_asr.models.u2pp import LossConfig, build_model
from moe_asr.modules import attention, fused
from moe_asr.modules.attention import FusedSelfAttention, RelativeSelfAttention, extended, fuse_attention
from moe_asr.modules.convolution import ConvolutionModule, FusedConvolution, fuse_convolution
from moe_asr.modules.moe.routers import FusedRouter, TopKRouter, fuse_router
from moe_asr.tensors import Chunking

FP32 = InferencePrecision.fp32

pytestmark = pytest.mark.skipif(not fused.supported(FP32), reason="no compiler on this machine")


def close(found, expected, error=1e-6):
    return bool((found - expected).norm() < error * expected.norm())


@pytest.mark.parametrize("frames", [1, 16, 40])
@pytest.mark.parametrize("kept", [7, attention.PLACES])
def test_attention(frames, kept, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "PLACES", kept)
    plain = RelativeSelfAttention(96, 2, 0.0)
    fast = copy.deepcopy(plain)
    fuse_attention(fast, FP32)
    x, past = torch.randn(3, frames, 96), torch.randn(3, 7, 2, 97)
    positions = torch.randint(0, 50, (3, frames))
    with torch.inference_mode():
        for cache in (None, (past,)):
            keys = frames + 7 * (cache is not None)
            for shape in (None, (3, 1, 1, keys), (3, 1, frames, keys), (frames, keys)):
                mask = None if shape is None else torch.rand(shape) > 0.4
                found, kept_by_one = fast(x, (positions, 50), mask, cache)
                expected, kept_by_other = plain(x, (positions, 50), mask, cache)
                assert close(found, expected)
                assert all(close(*pair) for pair in zip(kept_by_one, kept_by_other, strict=True))
    assert fast(x, (positions, 50), None)[0].requires_grad  # computed by the parameters
    assert close(copy.deepcopy(fast)(x, (positions, 50), None)[0], plain(x, (positions, 50), None)[0])


@pytest.mark.parametrize("norm", ConvNorm)
@pytest.mark.parametrize("frames", [1, 16, 40])
def test_convolution(norm, frames):
    torch.manual_seed(1)
    plain = ConvolutionModule(96, 5, True, norm, Activation.swish).eval()
    if isinstance(plain.norm, nn.BatchNorm1d):
        plain.norm.running_mean.normal_()
        plain.norm.running_var.uniform_(0.5, 2)
    fast = copy.deepcopy(plain)
    fuse_convolution(fast, FP32)
    x, valid = torch.randn(3, frames, 96), torch.ones(3, frames, dtype=torch.bool)
    with torch.inference_mode():
        for history in (None, torch.randn(3, 9, 96)[:, 5:], plain.empty_history(3)):
            for found, expected in zip(fast(x, valid, history), plain(x, valid, history), strict=True):
                assert close(found, expected)
        fast.norm.weight.mul_(2)
        plain.norm.weight.mul_(2)
        assert close(fast(x, valid)[0], plain(x, valid)[0])


@pytest.mark.parametrize("normalize", [True, False])
def test_router(normalize):
    torch.manual_seed(2)
    plain = TopKRouter(90, 5, 2, RouterConfig(normalize=normalize, scale=1.5)).eval()
    fast = copy.deepcopy(plain)
    fuse_router(fast)
    assert type(fast) is FusedRouter
    x, valid = torch.randn(3, 8, 90), torch.rand(3, 8) > 0.3
    with torch.inference_mode():
        found, expected = fast(x, valid, None), plain(x, valid, None)
    assert close(found.logits, expected.logits)
    assert found.expert_ids.equal(expected.expert_ids)
    assert close(found.weights, expected.weights)


def test_a_cache_grows_in_place_where_there_is_room():
    cache, copies = torch.zeros(2, 0, 3), 0
    for frame in range(40):
        longer = extended(cache, 1)
        copies += longer.untyped_storage().data_ptr() != cache.untyped_storage().data_ptr()
        longer[:, frame:] = float(frame)
        cache = longer
    assert cache.equal(torch.arange(40.0).view(40, 1).expand(2, 40, 3))
    assert 1 < copies < 7
    window = cache[:, -4:]
    for frame in range(40, 90):
        window = extended(window, 1)[:, 1:]
        window[:, -1] = float(frame)
    assert window[:, :, 0].tolist() == [[86.0, 87.0, 88.0, 89.0]] * 2
    assert window.untyped_storage().nbytes() < cache.untyped_storage().nbytes()


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_streams_say_what_they_said(kind):
    torch.manual_seed(3)
    moe = MoEConfig("encoder", num_experts=4, top_k=2) if kind == "moe" else MoEConfig()
    encoder = EncoderConfig(layers=2, width=64, heads=2, ffn_width=96, kernel=5)
    plain = build_model(
        ModelConfig(encoder=encoder), moe, RouterConfig(), LossConfig(), vocab_size=9, mel_bins=11
    ).eval()
    fast, features, lengths = copy.deepcopy(plain), torch.randn(3, 210, 11), torch.tensor([210, 133, 40])
    prepare(fast, release=True)
    found = {type(module) for module in fast.modules()}
    assert {FusedSelfAttention, FusedConvolution} | ({FusedRouter} if kind == "moe" else set()) <= found

    def encoded(model, chunking, streaming):
        if not streaming:
            output = model.encode(features, lengths, chunking)
            return [row[:length] for row, length in zip(output.frames, output.frame_lengths, strict=True)]
        state, parts = model.encoder.start(3, chunking), [[], [], []]
        for first in range(0, 210, 30):
            new, ending = (lengths - first).clamp(0, 30), (lengths > first) & (lengths <= first + 30)
            output, state = model.encoder.step(features[:, first : first + 30], new, state, model.routers, ending)
            for part, row, length in zip(parts, output.frames, output.frame_lengths, strict=True):
                part.append(row[:length])
        return [torch.cat(part) for part in parts]

    with torch.inference_mode():
        for chunking in (Chunking(), Chunking(4, 2), Chunking(8)):
            offline = encoded(plain, chunking, False)
            for way in (encoded(fast, chunking, False), encoded(fast, chunking, True), encoded(plain, chunking, True)):
                assert all(close(*pair, 2e-6) for pair in zip(way, offline, strict=True))

import pytest
import torch

from moe_asr.modules.attention import RelativeSelfAttention, SelfAttention, attend
from moe_asr.modules.positions import sinusoids


def test_relative_attention_is_the_published_sum_of_four_terms():
    torch.manual_seed(0)
    layer = RelativeSelfAttention(12, 3, 0.0).double()
    x, p = torch.randn(2, 5, 12).double(), sinusoids(torch.arange(5), 12).double()
    mask = torch.rand(2, 1, 5, 5) > 0.3
    mask[..., 0] = True
    q, k, v = layer.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
    position = layer.position(p).view(5, 3, 4).transpose(0, 1)
    u, w = layer.content_bias[:, None], layer.position_bias[:, None]
    scores = ((q + u) @ k.mT + (q + w) @ position.mT) / 2
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = layer.out((weights @ v).transpose(1, 2).flatten(2))
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert (layer(x, p, mask)[0] - expected).abs().max() < 1e-12


def test_sinusoids_have_no_last_position():
    even = torch.exp(torch.arange(0, 8, 2) * -(torch.log(torch.tensor(1e4)) / 8))
    far = sinusoids(torch.tensor([3, 123456]), 8)
    assert torch.allclose(far[0, 0::2], torch.sin(3 * even))
    assert torch.allclose(far[0, 1::2], torch.cos(3 * even))
    assert torch.allclose(far[1, 0::2] ** 2 + far[1, 1::2] ** 2, torch.ones(4))
    assert sinusoids(torch.arange(2), 7).shape == (2, 7)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_query_that_may_attend_to_nothing_gives_zero(gradients):
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 3, 2, 4, requires_grad=gradients) for _ in range(3))
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    with torch.set_grad_enabled(gradients):
        for bias in (None, torch.randn(2, 1, 3)):
            y = attend(q, k, v, mask, bias)
            assert y[:, 1].eq(0).all()
            assert y[:, 0].ne(0).any()
            if gradients:
                y.square().sum().backward()
                assert all(t.grad.isfinite().all() for t in (q, k, v))


def test_both_ways_of_computing_agree():
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, 6, 2, 4).double() for _ in range(3))
    mask, bias = torch.rand(2, 1, 6, 6) > 0.4, torch.randn(2, 1, 6).double()
    for m in (None, mask):
        for b in (None, bias):
            with_gradient = attend(q, k, v, m, b)
            with torch.no_grad():
                assert (attend(q, k, v, m, b) - with_gradient).abs().max() < 1e-12


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_cached_keys_are_those_of_the_whole_and_in_inference_grow_in_place(mode):
    torch.manual_seed(3)
    layer = SelfAttention(8, 2, 0.0).double()
    x = torch.randn(2, 6, 8).double()
    expected, (whole,) = layer(x, None, torch.ones(6, 6).tril().bool())
    cache, copies = layer.empty_cache(2), 0
    with mode():
        for i in range(6):
            former = cache[0].untyped_storage()
            y, cache = layer(x[:, i : i + 1], None, None, cache)
            copies += cache[0].untyped_storage().data_ptr() != former.data_ptr()
            assert (y - expected[:, i : i + 1]).abs().max() < 1e-12
    assert (cache[0] - whole).abs().max() < 1e-12
    assert copies == (6 if mode is torch.no_grad else 2)

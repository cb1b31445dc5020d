import pytest
import torch
import torch.nn.functional as F

from moe_asr.config.model import RouterSoftmax
from moe_asr.modules.moe.experts import Experts
from moe_asr.modules.moe.layer import MoEFeedForward
from moe_asr.modules.moe.losses import load_balance_loss, site_balance_loss
from moe_asr.modules.moe.routers import TopKRouter
from moe_asr.modules.moe.routing import MoESite, Routing, SiteTrace, concatenate

SITE = MoESite("encoder", 3, "ffn_out")


def trace_of(logits, ids, valid=None):
    valid = torch.ones(logits.shape[:2], dtype=torch.bool) if valid is None else valid
    ids = ids.masked_fill(~valid.unsqueeze(-1), -1)
    return SiteTrace(SITE, Routing(logits, ids, torch.ones(ids.shape)), valid)


def test_a_site_reads_like_an_address():
    assert str(SITE) == "encoder.03.ffn_out"


@pytest.mark.parametrize("softmax", list(RouterSoftmax))
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_top_k_routing(softmax, top_k):
    torch.manual_seed(0)
    x, valid = torch.randn(2, 4, 6), torch.tensor([[True] * 4, [True, True, False, False]])
    router = TopKRouter(6, 5, top_k, softmax)
    routing = router(x, valid, SITE)
    logits = x @ router.project.weight.T
    assert (routing.expert_ids[1, 2:] == -1).all()
    assert (routing.weights[1, 2:] == 0).all()
    for b, n in valid.nonzero().tolist():
        order = logits[b, n].argsort(descending=True)[:top_k]
        assert routing.expert_ids[b, n].tolist() == order.tolist()
        chosen = logits[b, n, order].softmax(-1) if softmax is RouterSoftmax.after else logits[b, n].softmax(-1)[order]
        assert torch.allclose(routing.weights[b, n], chosen)


def test_a_router_decides_in_float32_under_autocast_and_in_float64_when_asked():
    router, valid = TopKRouter(6, 4, 2, RouterSoftmax.after), torch.ones(1, 3, dtype=torch.bool)
    x = torch.randn(1, 3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x, valid, SITE)
    assert routing.logits.dtype is torch.float32
    assert routing.logits.equal(router(x, valid, SITE).logits)
    assert router.double()(x.double(), valid, SITE).logits.dtype is torch.float64


def test_experts_are_the_weighted_sum_of_chosen_networks():
    torch.manual_seed(1)
    experts = Experts(4, 6, 8, F.silu, 0.0).double()
    rows = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 2], [2, 0], [-1, -1], [2, -1], [0, 2]])  # experts 1 and 3 are idle
    weights = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)

    def naive():
        out = []
        for row, chosen, share in zip(rows, ids.tolist(), weights, strict=True):
            total = torch.zeros(6, dtype=torch.float64)
            for e, w in zip(chosen, share, strict=True):
                if e >= 0:
                    hidden = F.silu(experts.w_in[e] @ row + experts.b_in[e])
                    total = total + w * (experts.w_out[e] @ hidden + experts.b_out[e])
            out.append(total)
        return torch.stack(out)

    tensors = [rows, weights, *experts.parameters()]
    direction = torch.randn(5, 6, dtype=torch.float64)
    one, two = experts(rows, ids, weights), naive()
    assert (one - two).abs().max() < 1e-12
    assert one[2].eq(0).all()
    for left, right in zip(
        torch.autograd.grad(one, tensors, direction), torch.autograd.grad(two, tensors, direction), strict=True
    ):
        assert (left - right).abs().max() < 1e-12
    with torch.inference_mode():
        assert experts(rows, ids, weights).equal(one.detach())


def test_idle_experts_join_the_graph():
    experts = Experts(3, 4, 5, F.relu, 0.0)
    experts(torch.randn(2, 4), torch.full((2, 1), -1), torch.zeros(2, 1)).sum().backward()
    assert all(p.grad is not None and p.grad.eq(0).all() for p in experts.parameters())


def test_stacked_experts_start_like_linear_layers():
    torch.manual_seed(2)
    experts, linear = Experts(8, 64, 16, F.relu, 0.0), torch.nn.Linear(16, 64)
    assert experts.w_out.std().item() == pytest.approx(linear.weight.std().item(), rel=0.1)
    assert experts.w_in.abs().max() <= 1 / 8
    assert experts.w_in.abs().max() > 0.12


def test_padding_gives_zero_and_a_layer_needs_its_router():
    layer = MoEFeedForward(Experts(3, 4, 5, F.relu, 0.0))
    valid = torch.tensor([[True, False, True]])
    y, routing = layer(torch.randn(1, 3, 4), valid, SITE, TopKRouter(4, 3, 2, RouterSoftmax.after))
    assert y[0, 1].eq(0).all()
    assert y[0, 0].ne(0).any()
    assert routing.expert_ids.shape == (1, 3, 2)
    with pytest.raises(ValueError, match=r"encoder\.03\.ffn_out"):
        layer(torch.randn(1, 3, 4), valid, SITE, None)


@pytest.mark.parametrize("experts", [1, 4, 7])
@pytest.mark.parametrize("top_k", [1, 2])
def test_uniform_load_costs_exactly_one(experts, top_k):
    ids = torch.stack([torch.arange(experts * 3).add(k) % experts for k in range(top_k)], -1)[None]
    loss = load_balance_loss((trace_of(torch.zeros(1, experts * 3, experts), ids),))
    assert loss.item() == pytest.approx(1.0)


def test_collapse_costs_as_much_as_there_are_experts():
    logits = torch.full((1, 6, 4), -100.0)
    logits[..., 2] = 100.0
    assert site_balance_loss(trace_of(logits, torch.full((1, 6, 1), 2))).item() == pytest.approx(4.0)
    other = trace_of(logits.roll(1, -1), torch.full((1, 6, 1), 3))
    # Per site, then averaged: opposite collapses do not cancel.
    assert load_balance_loss((trace_of(logits, torch.full((1, 6, 1), 2)), other)).item() == pytest.approx(4.0)
    assert load_balance_loss(()).item() == 0.0


def test_balance_follows_its_formula_and_ignores_padding():
    torch.manual_seed(3)
    logits = torch.randn(2, 5, 4, dtype=torch.float64)
    ids = logits.topk(2).indices
    f = torch.bincount(ids.flatten(), minlength=4) / ids.numel()
    expected = 4 * (f * logits.softmax(-1).mean((0, 1))).sum()
    assert site_balance_loss(trace_of(logits, ids)).item() == pytest.approx(expected.item())
    padded = torch.cat([logits, torch.full((2, 5, 4), 9.0)], 1)  # 50 % padding
    valid = torch.arange(10).expand(2, 10) < 5
    loss = site_balance_loss(trace_of(padded, torch.cat([ids, ids * 0], 1), valid))
    assert loss.item() == pytest.approx(expected.item())


def test_balance_gradient_flows_through_probabilities_only():
    logits = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    site_balance_loss(trace_of(logits, torch.tensor([[[0], [0]]]))).backward()
    assert (logits.grad[..., 0] > 0).all()  # descending makes the crowded expert less likely
    assert logits.grad.sum(-1).abs().max() < 1e-6


def test_traces_are_joined_in_time():
    one, two = (trace_of(torch.randn(1, n, 3), torch.zeros(1, n, 1, dtype=torch.long)) for n in (2, 3))
    (joined,) = concatenate([(one,), (two,)])
    assert joined.routing.logits.equal(torch.cat([one.routing.logits, two.routing.logits], 1))
    assert joined.valid.shape == (1, 5)
    assert concatenate([]) == ()

import pytest
import torch
import torch.nn.functional as F

from moe_asr.config.model import AUXILIARY, Activation, LossConfig, RouterConfig, RouterLogits, RouterScore
from moe_asr.config.placement import MoESite
from moe_asr.errors import InputError
from moe_asr.modules.feed_forward import FeedForward
from moe_asr.modules.moe.experts import BACKENDS, Experts, use_backend
from moe_asr.modules.moe.layer import MoEFeedForward
from moe_asr.modules.moe.losses import auxiliary_losses, balance, importance
from moe_asr.modules.moe.noise import uniform
from moe_asr.modules.moe.routers import Forced, TopKRouter, fixed_expert, random_experts
from moe_asr.modules.moe.routing import Routing, Side, SiteTrace, concatenate
from moe_asr.modules.moe.sharing import RouterBank
from moe_asr.modules.moe.statistics import routing_sums

SITE = MoESite("encoder", 3, "ffn_out")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trace_of(logits, ids, valid=None):
    valid = torch.ones(logits.shape[:2], dtype=torch.bool) if valid is None else valid
    ids = ids.masked_fill(~valid.unsqueeze(-1), -1)
    return SiteTrace(SITE, Routing(logits, ids, torch.ones(ids.shape)), valid)


def test_a_site_reads_like_an_address():
    assert str(SITE) == "encoder.03.ffn_out"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("score", list(RouterScore))
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_top_k_routing(normalize, score, top_k):
    x, valid = torch.randn(2, 4, 6), torch.tensor([[True] * 4, [True, True, False, False]])
    router = TopKRouter(6, 5, top_k, RouterConfig(score=score, normalize=normalize, scale=2.0))
    routing = router(x, valid, SITE)
    logits = x @ router.project.weight.T
    assert (routing.expert_ids[1, 2:] == -1).all()
    assert (routing.weights[1, 2:] == 0).all()
    for b, n in valid.nonzero().tolist():
        order = logits[b, n].argsort(descending=True)[:top_k]
        assert routing.expert_ids[b, n].tolist() == order.tolist()
        scores = logits[b, n].softmax(-1) if score is RouterScore.softmax else logits[b, n].sigmoid()
        chosen = scores[order] / (scores[order].sum() if normalize else 1)
        assert torch.allclose(routing.weights[b, n], 2 * chosen)
    assert torch.allclose(routing.probabilities.sum(-1), torch.ones(2, 4))


def test_a_router_decides_in_float32_under_autocast_and_in_float64_when_asked():
    router, valid = TopKRouter(6, 4, 2, RouterConfig()), torch.ones(1, 3, dtype=torch.bool)
    x = torch.randn(1, 3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x, valid, SITE)
    assert routing.logits.dtype is torch.float32
    assert routing.logits.equal(router(x, valid, SITE).logits)
    assert router.double()(x.double(), valid, SITE).logits.dtype is torch.float64


def test_a_frozen_router_never_learns_and_a_position_router_needs_no_input():
    frozen = TopKRouter(6, 4, 1, RouterConfig(logits=RouterLogits.frozen))
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == []
    assert "project.weight" in frozen.state_dict()
    router = TopKRouter(6, 4, 2, RouterConfig(logits=RouterLogits.position))
    x, valid = torch.randn(1, 6, 6), torch.ones(1, 6, dtype=torch.bool)
    routing = router(x, valid, SITE, Side(positions=torch.arange(3, 9)))
    assert [sorted(ids) for ids in routing.expert_ids[0].tolist()] == [
        sorted((n % 4, (n + 1) % 4)) for n in range(3, 9)
    ]
    assert torch.allclose(routing.weights, torch.tensor(0.5))
    later = router(x[:, 4:], valid[:, 4:], SITE, Side(positions=torch.tensor([[7, 8]])))
    assert later.expert_ids.sort().values.equal(routing.expert_ids[:, 4:].sort().values)
    with pytest.raises(ValueError, match="positions"):
        router(x, valid, SITE)


def test_a_side_input_moves_the_decision():
    router, valid = TopKRouter(6, 4, 1, RouterConfig(side_width=3)), torch.ones(2, 5, dtype=torch.bool)
    x, embedding = torch.randn(2, 5, 6), torch.randn(2, 3)
    plain, given = x @ router.project.weight.T, embedding @ router.side.weight.T
    whole = router(x, valid, SITE, Side(embedding=embedding)).logits
    assert torch.allclose(whole, plain + given.unsqueeze(1), atol=1e-6)
    each = embedding.unsqueeze(1).expand(2, 5, 3)  # a running embedding has one for each position
    assert torch.allclose(router(x, valid, SITE, Side(embedding=each)).logits, whole, atol=1e-6)
    with pytest.raises(InputError, match=r"write router.side_width=0"):
        router(x, valid, SITE)


def test_capacity_drops_what_comes_last_in_training_alone():
    router = TopKRouter(6, 4, 1, RouterConfig(normalize=False, capacity_factor=1.0))
    x = torch.randn(1, 1, 6).expand(2, 6, 6)  # everyone wants the same expert
    valid = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    routing = router(x, valid, SITE)
    kept = routing.expert_ids[..., 0] >= 0
    assert kept.tolist() == [[True, True, False, False, False, False], [False] * 6]  # 8 positions / 4 experts
    assert routing.weights[~kept].eq(0).all()
    sums = routing_sums((SiteTrace(SITE, routing, valid),))
    assert (sums.dropped.item(), sums.positions.item(), sums.counts.sum().item()) == (6, 8, 2)
    assert (router.eval()(x, valid, SITE).expert_ids[valid] >= 0).all()
    second = TopKRouter(6, 4, 2, RouterConfig(capacity_factor=0.8))
    chosen = second(torch.randn(4, 50, 6), torch.ones(4, 50, dtype=torch.bool), SITE).expert_ids
    assert torch.bincount(chosen[chosen >= 0], minlength=4).max() == 80
    assert (chosen[..., 0] >= 0).sum() > (chosen[..., 1] >= 0).sum()  # first choices come first


def test_noise_depends_on_utterance_position_and_site_alone():
    side = Side(keys=torch.tensor([3, 4]), positions=torch.arange(1000))
    drawn = uniform("jitter", side, SITE, 4)
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=0.003)
    assert drawn.min() > 0
    assert drawn.max() < 1
    for shifted in (drawn.roll(1, 1), drawn.roll(1, 2), drawn.flip(0)):
        a, b = drawn - 0.5, shifted - 0.5
        assert abs((a * b).mean().item()) * 12 < 0.05
    part = uniform("jitter", Side(keys=torch.tensor([4]), positions=torch.arange(7, 9).unsqueeze(0)), SITE, 4)
    assert part.equal(drawn[1:, 7:9])
    assert not uniform("jitter", side, MoESite("encoder", 3, "ffn_in"), 4).equal(drawn)
    assert not uniform("gumbel", side, SITE, 4).equal(drawn)
    with pytest.raises(ValueError, match="keys"):
        uniform("jitter", Side(positions=torch.arange(3)), SITE, 4)


@pytest.mark.parametrize("score", RouterScore)
@pytest.mark.parametrize("bias", [None, torch.zeros(3)])
def test_gumbel_noise_draws_from_the_softmax(score, bias):
    logits = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    side = Side(keys=torch.arange(20), positions=torch.arange(500))
    router = TopKRouter(6, 3, 1, RouterConfig(score=score, normalize=False, gumbel=1.0))
    valid = torch.ones(20, 500, dtype=torch.bool)
    drawn = router.decide(logits.expand(20, 500, 3), valid, SITE, side, bias).expert_ids
    assert torch.allclose(torch.bincount(drawn.flatten()) / 10_000, logits.softmax(-1).float(), atol=0.015)


@pytest.mark.parametrize("config", [RouterConfig(jitter=0.3), RouterConfig(gumbel=2.0)])
def test_noise_changes_decisions_in_training_alone(config):
    router, plain = TopKRouter(6, 8, 2, config), TopKRouter(6, 8, 2, RouterConfig())
    plain.load_state_dict(router.state_dict())
    x, valid = torch.randn(2, 50, 6), torch.ones(2, 50, dtype=torch.bool)
    side = Side(keys=torch.tensor([3, 4]), positions=torch.arange(50))
    noisy = router(x, valid, SITE, side)
    assert not noisy.expert_ids.equal(plain(x, valid, SITE).expert_ids)
    assert noisy.expert_ids.equal(router(x, valid, SITE, side).expert_ids)
    assert router.eval()(x, valid, SITE, side).expert_ids.equal(plain(x, valid, SITE).expert_ids)


def test_a_balance_bias_evens_the_load_of_its_site_and_leaves_the_weights():
    sites = (SITE, MoESite("encoder", 4, "ffn_out"))
    bank = RouterBank(lambda: TopKRouter(6, 4, 1, RouterConfig(normalize=False, balance_rate=0.002)), sites, (0, 0))
    bank.routers[0].project.weight.data[2] += 1.0
    x, valid = torch.randn(4, 100, 6) + 0.5, torch.ones(4, 100, dtype=torch.bool)

    def measure(site):
        return routing_sums((SiteTrace(site, bank.get(site)(x, valid, site), valid),))

    before = measure(SITE).load
    for _ in range(400):
        bank.rebalance(measure(SITE))
    after = bank.get(SITE)(x, valid, SITE)
    assert before.max() > 0.6
    assert measure(SITE).load.max() < 0.3
    assert bank.bias[1].eq(0).all()  # of the other site, though the router is shared
    assert "bias" in bank.state_dict()
    raw = after.logits.softmax(-1).gather(-1, after.expert_ids)
    assert after.weights.equal(raw)


def test_forced_routing_changes_who_computes_and_nothing_else():
    router = TopKRouter(6, 4, 2, RouterConfig())
    x, valid = torch.randn(2, 50, 6), torch.arange(50).expand(2, 50) < torch.tensor([[50], [30]])
    side = Side(keys=torch.tensor([3, 4]), positions=torch.arange(50))
    own, fixed = router(x, valid, SITE, side), Forced(router, fixed_expert(3))(x, valid, SITE, side)
    assert fixed.expert_ids[valid].unique(dim=0).tolist() == [[3, 0]]
    assert fixed.weights.equal(own.weights)
    assert fixed.expert_ids[~valid].eq(-1).all()
    drawn = Forced(router, random_experts)(x, valid, SITE, side).expert_ids
    load = torch.bincount(drawn[drawn >= 0], minlength=4) / 160
    assert load.min() > 0.15
    assert (drawn[valid][:, 0] != drawn[valid][:, 1]).all()
    later = Side(side.keys[1:], positions=torch.arange(5, 9))
    part = Forced(router, random_experts)(x[1:, 5:9], valid[1:, 5:9], SITE, later)
    assert part.expert_ids.equal(drawn[1:, 5:9])


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_without_biases_keep_zeros_that_do_not_learn(backend):
    experts = Experts(3, 16, 32, F.silu, 0.0, bias=False).eval()
    assert [name for name, _ in experts.named_parameters()] == ["w_in", "w_out"]
    rows, ids, weights = torch.randn(5, 16), torch.tensor([[0], [2], [2], [0], [2]]), torch.ones(5, 1)
    use_backend(experts, backend)
    with torch.no_grad():
        y = experts(rows, ids, weights)
        assert experts(rows * 0, ids, weights).eq(0).all()
    expected = F.silu(rows[0] @ experts.w_in[0].T) @ experts.w_out[0].T
    assert (y[0] - expected).norm() < 0.02 * expected.norm()


def make_layer(widths, shared=None):
    return MoEFeedForward(widths, lambda count, width: Experts(count, 4, width, F.relu, 0.0), shared)


def test_padding_gives_zero_and_a_layer_needs_its_router():
    shared = FeedForward(4, 6, Activation.relu, 0.0)
    layer = make_layer([5, 5, 5], shared)
    valid = torch.tensor([[True, False, True]])
    y, routing = layer(torch.randn(1, 3, 4), valid, SITE, TopKRouter(4, 3, 2, RouterConfig()))
    assert y[0, 1].eq(0).all()
    assert y[0, 0].ne(0).any()
    assert routing.expert_ids.shape == (1, 3, 2)
    with pytest.raises(ValueError, match=r"encoder\.03\.ffn_out"):
        layer(torch.randn(1, 3, 4), valid, SITE, None)


def test_experts_of_different_widths_null_experts_and_shared_ones():
    shared = FeedForward(4, 6, Activation.relu, 0.0)
    widths = [3, 0, 5, 3]
    layer, router = make_layer(widths, shared).double(), TopKRouter(4, 4, 2, RouterConfig()).double()
    assert [tuple(bank.w_in.shape) for bank in layer.banks] == [(1, 5, 4), (2, 3, 4)]
    x, valid = torch.randn(2, 9, 4, dtype=torch.float64), torch.ones(2, 9, dtype=torch.bool)
    y, routing = layer(x, valid, SITE, router)
    place = {0: (1, 0), 2: (0, 0), 3: (1, 1)}
    seen = set()
    for b in range(2):
        for n in range(9):
            expected = shared(x[b, n], None, SITE, None)[0]
            for e, w in zip(routing.expert_ids[b, n].tolist(), routing.weights[b, n], strict=True):
                seen.add(e)
                if widths[e]:
                    bank, i = layer.banks[place[e][0]], place[e][1]
                    hidden = F.relu(bank.w_in[i] @ x[b, n] + bank.b_in[i])
                    expected = expected + w * (bank.w_out[i] @ hidden + bank.b_out[i])
            assert (y[b, n] - expected).abs().max() < 1e-12
    assert seen == {0, 1, 2, 3}
    (own, shares) = (routing_sums((SiteTrace(SITE, routing, valid),)) for _ in range(2))
    assert own.counts.sum() == shares.positions * 2


def loss_of(loss, *traces):
    return loss(routing_sums(traces)).mean()


@pytest.mark.parametrize("experts", [1, 4, 7])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("loss", [balance, importance])
def test_uniform_load_costs_exactly_one(experts, top_k, loss):
    ids = torch.stack([torch.arange(experts * 3).add(k) % experts for k in range(top_k)], -1)[None]
    value = loss_of(loss, trace_of(torch.zeros(1, experts * 3, experts), ids))
    assert value.item() == pytest.approx(1.0)


@pytest.mark.parametrize("loss", [balance, importance])
def test_collapse_costs_as_much_as_there_are_experts(loss):
    logits = torch.full((1, 6, 4), -100.0)
    logits[..., 2] = 100.0
    one, other = trace_of(logits, torch.full((1, 6, 1), 2)), trace_of(logits.roll(1, -1), torch.full((1, 6, 1), 3))
    assert loss_of(loss, one).item() == pytest.approx(4.0)
    assert loss_of(loss, one, other).item() == pytest.approx(4.0)  # per site: opposite collapses do not cancel
    assert auxiliary_losses(None, LossConfig(balance=1.0), torch.ones(4)) == {}


def test_losses_follow_their_formulas_and_ignore_padding():
    logits = torch.randn(2, 5, 4, dtype=torch.float64)
    ids, p = logits.topk(2).indices, logits.softmax(-1)
    f, mean = torch.bincount(ids.flatten(), minlength=4) / ids.numel(), p.mean((0, 1))
    costs = torch.tensor([1.0, 0.5, 0.5, 0.0], dtype=torch.float64)
    expected = {
        "balance": 4 * (f * mean).sum(),
        "importance": 4 * (mean**2).sum(),
        "z": logits.logsumexp(-1).square().mean(),
        "entropy": -(p * p.log()).sum(-1).mean(),
        "sparsity": (p.norm(p=1, dim=-1) / p.norm(p=2, dim=-1)).mean(),
        "compute": (mean * costs).sum() - 0.25,
    }
    config = LossConfig(**dict.fromkeys(expected, 1.0), compute_budget=0.25)
    padded = torch.cat([logits, torch.full((2, 5, 4), 9.0)], 1)  # 50 % padding
    valid = torch.arange(10).expand(2, 10) < 5
    for trace in (trace_of(logits, ids), trace_of(padded, torch.cat([ids, ids * 0], 1), valid)):
        found = auxiliary_losses(routing_sums((trace,)), config, costs)
        assert list(found) == list(AUXILIARY)
        for name, value in found.items():
            assert value.item() == pytest.approx(expected[name].item()), name
    assert auxiliary_losses(routing_sums((trace,)), LossConfig(), costs) == {}
    spent = auxiliary_losses(routing_sums((trace,)), LossConfig(compute=1.0, compute_budget=1.0), costs)
    assert spent["compute"].item() == 0.0


def test_sums_of_parts_are_the_sums_of_the_whole():
    logits = torch.randn(4, 5, 3, dtype=torch.float64)
    ids = logits.topk(1).indices
    whole = routing_sums((trace_of(logits, ids),))
    parts = [routing_sums((trace_of(logits[i : i + 2], ids[i : i + 2]),)) for i in (0, 2)]
    assert torch.allclose((parts[0] + parts[1]).values, whole.values)
    assert whole.load.sum().item() == pytest.approx(1.0)
    assert whole.mean_probability.sum().item() == pytest.approx(1.0)


def test_balance_gradient_flows_through_probabilities_only():
    logits = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    loss_of(balance, trace_of(logits, torch.tensor([[[0], [0]]]))).backward()
    assert (logits.grad[..., 0] > 0).all()  # descending makes the crowded expert less likely
    assert logits.grad.sum(-1).abs().max() < 1e-6


def test_traces_are_joined_in_time():
    one, two = (trace_of(torch.randn(1, n, 3), torch.zeros(1, n, 1, dtype=torch.long)) for n in (2, 3))
    (joined,) = concatenate([(one,), (two,)])
    assert joined.routing.logits.equal(torch.cat([one.routing.logits, two.routing.logits], 1))
    assert joined.valid.shape == (1, 5)
    assert concatenate([]) == ()

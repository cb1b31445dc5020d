"""Every backend computes what `loop` does."""

import copy

import pytest
import torch
import torch.nn.functional as F

from moe_asr.config.inference import InferencePrecision
from moe_asr.modules import fused, packed
from moe_asr.modules.moe.experts import BACKENDS, Experts, grouped, loop, sorted_rows, use_backend

ROUNDING = {"fp32": 1e-6, "bf16": 5e-3, "int8": 2e-2}
KERNELS = {"packed": packed, "fused": fused}
ERROR = {f"{kernel}_{precision}": error for kernel in KERNELS for precision, error in ROUNDING.items()}
"""Relative, in norm."""


def relative(one, two):
    return ((one.double() - two).norm() / two.norm().clamp(min=1e-30)).item()


def made(name, experts):
    kernel, _, precision = name.partition("_")
    if name in ERROR and not KERNELS[kernel].supported(InferencePrecision(precision)):
        pytest.skip(f"no kernels for {name} on this machine")
    return BACKENDS[name](experts)


def chosen(rows, num_experts, top_k):
    """Distinct experts, of which the second is idle when it can be; row 2 and the first slot of row 4 are empty."""
    ids = torch.rand(rows, num_experts).topk(top_k).indices
    if num_experts > 2:
        ids[ids == 1] = -1
    ids[2:3] = -1
    ids[4:5, 0] = -1
    return ids, torch.rand(rows, top_k)


def gradients(backend, experts, rows, ids, weights):
    rows, weights = rows.detach().clone().requires_grad_(), weights.detach().clone().requires_grad_()
    y = backend(experts, rows, ids, weights)
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return y, *torch.autograd.grad(y, [rows, weights, *experts.parameters()], direction)


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (6, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize("rows", [0, 1, 13, 40])
def test_sorted_is_loop_with_gradients(num_experts, top_k, rows):
    torch.manual_seed(rows)
    experts = Experts(num_experts, 10, 14, F.silu, 0.0).double()
    x, (ids, weights) = torch.randn(10, rows).double().T, chosen(rows, num_experts, top_k)  # not contiguous
    for one, two in zip(
        gradients(sorted_rows, experts, x, ids, weights.double()),
        gradients(loop, experts, x, ids, weights.double()),
        strict=True,
    ):
        assert relative(one, two) < 1e-10


@pytest.mark.parametrize("name", list(ERROR))
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("activation", [F.silu, F.relu, F.gelu])
@pytest.mark.parametrize("hidden", [96, 70])
def test_packed_is_close_to_loop_in_float64(name, num_experts, top_k, activation, hidden):
    torch.manual_seed(0)
    experts = Experts(num_experts, 64, hidden, activation, 0.1).eval()
    backend, exact = made(name, experts), copy.deepcopy(experts).double()
    with torch.inference_mode():
        for rows in (0, 1, 5, 33, packed.WARM_ROWS * num_experts + 7):
            x, (ids, weights) = torch.randn(64, rows).T, chosen(rows, num_experts, top_k)
            expected = loop(exact, x.double(), ids, weights.double())
            y = backend(experts, x, ids, weights)
            assert y.dtype is torch.float32
            assert y[2:3].eq(0).all()
            assert relative(y, expected) < ERROR[name]


@pytest.mark.parametrize("name", list(BACKENDS))
def test_padding_is_never_computed(name):
    experts = Experts(3, 16, 24, F.silu, 0.0).eval()
    x, ids = torch.randn(6, 16), torch.tensor([[0], [2], [-1], [2], [-1], [0]])
    x[ids[:, 0] == -1] = torch.nan
    with torch.inference_mode():
        y = made(name, experts)(experts, x, ids, torch.ones(6, 1))
        assert y.isfinite().all()
        assert y[[2, 4]].eq(0).all()
        assert y[[0, 1, 3, 5]].ne(0).any(1).all()
        assert made(name, experts)(experts, x, ids * 0 - 1, torch.ones(6, 1)).eq(0).all()


@pytest.mark.parametrize("name", ["loop", "sorted"])
def test_idle_experts_cost_nothing_in_evaluation_and_have_zero_gradients_in_training(name, monkeypatch):
    experts, calls = Experts(4, 8, 12, F.relu, 0.0), []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: calls.append(len(x)) or linear(x, *rest))
    x, ids, weights = torch.randn(5, 8), torch.full((5, 1), 2), torch.ones(5, 1)
    with torch.no_grad():
        BACKENDS[name](experts)(experts, x, ids, weights)
    assert calls == [5, 5]
    BACKENDS[name](experts)(experts, x, ids, weights).sum().backward()
    assert sorted(calls) == [0] * 6 + [5] * 4
    for parameter in experts.parameters():
        assert parameter.grad[[0, 1, 3]].eq(0).all()
        assert parameter.grad[2].ne(0).any()


def test_dropout_draws_alike_in_loop_and_sorted():
    experts, (ids, weights) = Experts(4, 8, 32, F.silu, 0.5), chosen(12, 4, 2)

    def after(seed, backend):
        torch.manual_seed(seed)
        return backend(experts, torch.ones(12, 8), ids, weights)

    assert relative(after(5, sorted_rows), after(5, loop).double()) < 1e-6
    assert relative(after(6, sorted_rows), after(5, loop).double()) > 0.1


@pytest.mark.parametrize("backend", [sorted_rows, grouped])
def test_autocast_computes_in_bf16_and_keeps_gradients_in_float32(backend):
    torch.manual_seed(1)
    experts, x, (ids, weights) = Experts(4, 16, 24, F.silu, 0.0), torch.randn(20, 16), chosen(20, 4, 2)
    exact = gradients(loop, copy.deepcopy(experts).double(), x.double(), ids, weights.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(backend, experts, x, ids, weights)
    for one, two in zip(found, exact, strict=True):
        assert one.dtype is torch.float32
        assert 0 < relative(one, two) < 2e-2


class LeavesTheRest(torch.autograd.Function):
    """What grouped_mm does on GPUs: rows behind the last offset, and their gradients, are whatever memory held."""

    @staticmethod
    def forward(ctx, x, weight, offs):
        ctx.save_for_backward(x, weight, offs)
        begins = [0, *offs.tolist()]
        y = torch.full((len(x), weight.shape[2]), torch.nan, dtype=x.dtype)
        for e in range(len(weight)):
            y[begins[e] : begins[e + 1]] = x[begins[e] : begins[e + 1]] @ weight[e]
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, weight, offs = ctx.saved_tensors
        begins = [0, *offs.tolist()]
        parts = [slice(*begins[e : e + 2]) for e in range(len(weight))]
        of_x = torch.full_like(x, torch.nan)
        for e, part in enumerate(parts):
            of_x[part] = gradient[part] @ weight[e].T
        return of_x, torch.stack([x[part].T @ gradient[part] for part in parts]), None


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (6, 2)])
def test_grouped_is_loop_whatever_lies_behind_the_last_expert(num_experts, top_k, monkeypatch):
    torch.manual_seed(2)
    monkeypatch.setattr(F, "grouped_mm", lambda x, weight, offs: LeavesTheRest.apply(x, weight, offs))
    experts = Experts(num_experts, 8, 16, F.silu, 0.0).double()
    x, (ids, weights) = torch.randn(13, 8).double(), chosen(13, num_experts, top_k)
    x[2] = torch.nan  # an empty row
    for one, two in zip(
        gradients(grouped, experts, x, ids, weights.double()),
        gradients(loop, experts, x, ids, weights.double()),
        strict=True,
    ):
        assert relative(one, two) < 1e-10


def test_grouped_on_torchs_own_kernel():
    torch.manual_seed(3)
    experts, x, (ids, weights) = Experts(4, 16, 24, F.silu, 0.0), torch.randn(30, 16), chosen(30, 4, 2)
    for one, two in zip(
        gradients(grouped, experts, x, ids, weights), gradients(loop, experts, x, ids, weights), strict=True
    ):
        assert relative(one, two.double()) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rows", [0, 1, 3000])
def test_on_a_gpu(rows):
    torch.manual_seed(4)
    experts, x, (ids, weights) = Experts(8, 64, 128, F.silu, 0.0), torch.randn(rows, 64), chosen(rows, 8, 2)
    expected = gradients(loop, copy.deepcopy(experts).double(), x.double(), ids, weights.double())
    experts, on_gpu = experts.cuda(), (x.cuda(), ids.cuda(), weights.cuda())
    inputs = on_gpu[0].requires_grad_(), on_gpu[2].requires_grad_(), *experts.parameters()
    for autocast, error in ((False, 1e-5), (True, 2e-2)):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            y = experts(on_gpu[0], on_gpu[1], on_gpu[2])
        direction = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
        for one, two in zip((y, *torch.autograd.grad(y, inputs, direction)), expected, strict=True):
            assert relative(one.cpu(), two) < error


@pytest.mark.parametrize("name", list(ERROR))
def test_packing_leaves_the_state_and_knows_when_it_is_stale(name):
    torch.manual_seed(5)
    model = torch.nn.Sequential(Experts(3, 16, 24, F.silu, 0.0)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made(name, model[0])
    use_backend(model, name)
    x, (ids, weights) = torch.randn(9, 16), chosen(9, 3, 2)
    with torch.inference_mode():
        fast = model[0](x, ids, weights)
        assert not fast.equal(sorted_rows(model[0], x, ids, weights))
    assert model.state_dict().keys() == before.keys()
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    y = model[0](x, ids, weights)
    assert y.requires_grad  # where gradients are wanted, sorted
    other = copy.deepcopy(model)
    other.load_state_dict({key: value * 2 for key, value in before.items()})
    doubled = copy.deepcopy(model).double()
    model.load_state_dict({key: value * 3 for key, value in before.items()})
    with torch.inference_mode():
        for stale in (model, other):
            assert stale[0](x, ids, weights).equal(sorted_rows(stale[0], x, ids, weights))
        assert relative(doubled[0](x.double(), ids, weights.double()), y.double()) < 1e-6


def test_use_backend_reaches_all_experts():
    model = torch.nn.ModuleList([Experts(2, 4, 6, F.relu, 0.0), torch.nn.Linear(2, 2), Experts(3, 4, 6, F.relu, 0.0)])
    assert model[0].backend is sorted_rows
    use_backend(model, "loop")
    assert [model[0].backend, model[2].backend] == [loop, loop]

import pytest
import torch
import torch.nn.functional as F

from moe_asr.config.inference import InferencePrecision
from moe_asr.errors import InputError
from moe_asr.modules import fused, packed
from moe_asr.modules.fused import AFTER_ACTIVATION
from moe_asr.modules.packed import bucket, pack_linear

ERROR = {InferencePrecision.fp32: 1e-6, InferencePrecision.bf16: 5e-3, InferencePrecision.int8: 2e-2}
"""Relative, in norm."""


def needs(precision, fuse=False):
    if not (fused if fuse else packed).supported(precision):
        pytest.skip(f"no {precision} kernels on this machine")


@pytest.fixture(params=[False, True], ids=["packed", "fused"])
def fuse(request):
    return request.param


def relative(one, two):
    return ((one - two).norm() / two.norm()).item()


@pytest.mark.parametrize("precision", list(InferencePrecision))
@pytest.mark.parametrize("activation", [None, F.relu, F.silu, F.gelu, torch.tanh])
def test_a_packed_linear_map_computes_what_it_replaces(precision, activation, fuse):
    needs(precision, fuse)
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 80)
    fast = pack_linear(linear.weight, linear.bias, precision, activation, fuse=fuse)
    for rows in (1, 3, 16, 17, 100, 257):
        x = torch.randn(rows, 96)
        exact = F.linear(x.double(), linear.weight.double(), linear.bias.double())
        exact = exact if activation is None else activation(exact)
        y = fast(x)
        assert y.dtype is torch.float32
        assert y.shape == (rows, 80)
        assert relative(y, exact) < ERROR[precision]


@pytest.mark.parametrize("precision", list(InferencePrecision))
def test_a_row_does_not_depend_on_the_others(precision, fuse):
    needs(precision, fuse)
    torch.manual_seed(1)
    fast = pack_linear(torch.randn(48, 64), torch.randn(48), precision, fuse=fuse)
    x = torch.randn(23, 64)
    alone = fast(x[:5])
    x[9] *= 1000.0  # one loud row must not coarsen the others
    x[11] = torch.nan
    x[13] = 0.0
    together = fast(x)
    # oneDNN's kernels for other numbers of rows may add in another order; int8 adds integers.
    assert relative(together[:5], alone) <= {"fp32": 1e-6, "bf16": 5e-3, "int8": 0.0}[precision] * (not fuse)
    assert together[11].isnan().all()
    assert together[[*range(11), *range(12, 23)]].isfinite().all()


def test_int8_keeps_the_sign_and_uses_the_range_that_activations_leave(fuse):
    needs(InferencePrecision.int8, fuse)
    torch.manual_seed(2)
    weight, bias, hidden = torch.randn(64, 256), torch.zeros(64), F.silu(torch.randn(40, 256))
    exact = hidden.double() @ weight.double().T
    errors = [
        relative(pack_linear(weight, bias, InferencePrecision.int8, negative_share=share, fuse=fuse)(hidden), exact)
        for share in (AFTER_ACTIVATION, 0.5)
    ]
    assert errors[0] < 0.9 * errors[1]
    negative = -hidden.abs() - 1  # coarse, but never clipped
    y = pack_linear(weight, bias, InferencePrecision.int8, negative_share=AFTER_ACTIVATION, fuse=fuse)(negative)
    assert relative(y, negative.double() @ weight.double().T) < 0.05


def test_other_strides_and_types_are_welcome(fuse):
    for precision in InferencePrecision:
        needs(precision, fuse)
    torch.manual_seed(3)
    weight, bias, x = torch.randn(16, 8).double(), torch.randn(16).double(), torch.randn(8, 5).double()
    for precision in InferencePrecision:
        y = pack_linear(weight, bias, precision, fuse=fuse)(x.T)
        assert y.dtype is torch.float64
        assert relative(y, F.linear(x.T, weight, bias)) < ERROR[precision]


def test_packing_keeps_no_view_of_what_it_packed(fuse):
    weight, bias, x = torch.ones(4, 8), torch.ones(4), torch.ones(2, 8)
    possible = [precision for precision in InferencePrecision if (fused if fuse else packed).supported(precision)]
    maps = [pack_linear(weight, bias, precision, fuse=fuse) for precision in possible]
    assert len(maps) > 0
    weight.zero_()
    bias.zero_()
    assert all((linear(x) - 9).abs().max() < 0.1 for linear in maps)


def test_few_numbers_of_rows_are_computed_at_little_waste():
    numbers = [bucket(rows) for rows in range(1, 1025)]
    assert all(rows <= number <= min(rows + 7, max(rows + 1, rows * 1.125)) for rows, number in enumerate(numbers, 1))
    assert numbers[:16] == list(range(1, 17))
    assert len(set(numbers)) == 16 + 8 + 8 + 120


def test_missing_kernels_are_named(monkeypatch):
    monkeypatch.setattr(packed, "supported", lambda precision: precision is InferencePrecision.fp32)
    with pytest.raises(InputError, match=r"precision=int8.*precision=fp32"):
        pack_linear(torch.ones(2, 2), torch.ones(2), InferencePrecision.int8)

import pytest
import torch

from moe_asr.modules.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_share_is_zeroed_and_the_mean_kept(rate):
    torch.manual_seed(0)
    x = torch.ones(401, 503, requires_grad=True)
    y = dropout(x, rate)
    assert y.eq(0).double().mean().item() == pytest.approx(rate, abs=0.005)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    for stride in (1, 2, 4, 503):  # neighbours are independent although they share a drawn number
        pairs = (y.flatten()[:-stride].eq(0) & y.flatten()[stride:].eq(0)).double().mean().item()
        assert pairs == pytest.approx(rate**2, abs=0.005)
    y.sum().backward()
    assert x.grad.equal(y.detach())


def test_it_is_reproducible_and_off_in_evaluation():
    x, layer = torch.ones(3, 5), Dropout(0.5)
    torch.manual_seed(1)
    one = layer(x)
    torch.manual_seed(1)
    assert layer(x).equal(one)
    assert not dropout(torch.ones(9, 9), 0.5).equal(dropout(torch.ones(9, 9), 0.5))
    assert layer.eval()(x) is x

"""Learning rates by step and by part of the model, what is frozen, and gradient norms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moe_asr.config.program import OptimConfig, OptimizerName, Schedule
from moe_asr.errors import InputError
from moe_asr.training.optimisation import freeze, gradient_norms, make_optimizer, schedule_factor, set_learning_rate


def model() -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.ModuleDict({"embed": nn.Linear(3, 4), "layers": nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])})
    return nn.ModuleDict({"encoder": encoder, "encoder_extra": nn.Linear(4, 2), "ctc": nn.Linear(4, 5)})


def by_name(net: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    """A property of the group that each parameter is in."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    return {names[p]: group[key] for group in optimizer.param_groups for p in group["params"]}


@given(
    st.sampled_from(Schedule), st.integers(0, 50), st.integers(1, 300), st.floats(0, 1).filter(lambda share: share > 0)
)
def test_the_factor_rises_to_the_peak_and_then_falls(schedule: Schedule, warmup: int, total: int, share: float) -> None:
    config = OptimConfig(schedule=schedule, warmup_steps=warmup)
    step = max(1, round(share * total))
    factor, following = (schedule_factor(s, config, total) for s in (step, step + 1))
    assert 0 < factor <= 1
    if step < total:
        assert following > factor if step < warmup else following < factor


def test_the_warm_up_is_linear_and_ends_at_the_peak() -> None:
    for schedule in Schedule:
        config = OptimConfig(schedule=schedule, warmup_steps=10)
        factors = [schedule_factor(step, config, 100) for step in range(1, 11)]
        assert factors == pytest.approx([step / 10 for step in range(1, 11)])


def test_after_the_warm_up() -> None:
    inverse = OptimConfig(schedule=Schedule.inverse_sqrt, warmup_steps=25)
    assert [schedule_factor(step, inverse, 10**6) for step in (100, 2500)] == pytest.approx([0.5, 0.1])
    linear = OptimConfig(schedule=Schedule.linear, warmup_steps=10)
    assert [schedule_factor(step, linear, 109) for step in (60, 109)] == pytest.approx([0.5, 0.01])
    assert schedule_factor(10_000, linear, 10_000) < 2e-4


def test_the_longest_prefix_scales_the_rate_of_a_parameter() -> None:
    net = model()
    scales = {"encoder": 0.5, "encoder.layers": 0.1, "encoder.layers.1.bias": 3.0}
    config = OptimConfig(lr=2e-3, warmup_steps=10, lr_scale=scales)
    optimizer = make_optimizer(net, config)
    assert set_learning_rate(optimizer, config, step=5, total_steps=100) == pytest.approx(1e-3)
    assert by_name(net, optimizer, "lr") == pytest.approx(
        {
            "encoder.embed.weight": 5e-4,
            "encoder.embed.bias": 5e-4,
            "encoder.layers.0.weight": 1e-4,
            "encoder.layers.0.bias": 1e-4,
            "encoder.layers.1.weight": 1e-4,
            "encoder.layers.1.bias": 3e-3,
            "encoder_extra.weight": 1e-3,  # "encoder" is no part of its path
            "encoder_extra.bias": 1e-3,
            "ctc.weight": 1e-3,
            "ctc.bias": 1e-3,
        }
    )


def test_matrices_decay_and_vectors_do_not() -> None:
    net = model()
    optimizer = make_optimizer(net, OptimConfig(weight_decay=0.3, betas=[0.8, 0.9]))
    decays = by_name(net, optimizer, "weight_decay")
    assert {name for name, decay in decays.items() if decay == 0.3} == {
        name for name, parameter in net.named_parameters() if parameter.ndim == 2
    }
    assert set(decays) == {name for name, _ in net.named_parameters()}
    assert set(decays.values()) == {0.0, 0.3}
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert type(optimizer) is torch.optim.AdamW
    assert type(make_optimizer(net, OptimConfig(name=OptimizerName.adam))) is torch.optim.Adam


def test_groups_come_in_the_same_order_so_that_a_saved_optimiser_fits() -> None:
    config = OptimConfig(lr_scale={"ctc": 0.1})
    one, other = (make_optimizer(model(), config) for _ in range(2))
    assert [g["scale"] for g in one.param_groups] == [0.1, 0.1, 1.0, 1.0]
    other.load_state_dict(one.state_dict())
    assert [g["scale"] for g in other.param_groups] == [0.1, 0.1, 1.0, 1.0]


def test_frozen_parameters_stay_as_they_are() -> None:
    net = model()
    freeze(net, ["encoder.layers", "ctc.bias"])
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = make_optimizer(net, OptimConfig(lr=0.1))
    x = net["encoder"]["layers"][1](net["encoder"]["layers"][0](net["encoder"]["embed"](torch.ones(2, 3))))
    (net["ctc"](x).square().sum() + net["encoder_extra"](x).square().sum()).backward()
    optimizer.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith(("encoder.layers", "ctc.bias"))}


@pytest.mark.parametrize(
    ("prefix", "closest"),
    [
        ("encodr", "encoder"),
        ("encoder.layer", "encoder.layers"),
        ("enc", "encoder"),
        ("encoder.layers.2", "encoder.layers.1"),
        ("ctc.wieght", "ctc.weight"),
    ],
)
def test_a_misspelt_prefix_is_refused_with_the_closest(prefix: str, closest: str) -> None:
    sentence = f"names {prefix}, which no parameter starts with; did you mean {closest}"
    with pytest.raises(InputError, match=f"^freeze {sentence}"):
        freeze(model(), ["ctc", prefix])
    with pytest.raises(InputError, match=f"^optim.lr_scale {sentence}"):
        make_optimizer(model(), OptimConfig(lr_scale={prefix: 0.1}))


def test_freezing_everything_is_refused() -> None:
    net = model()
    freeze(net, ["encoder", "encoder_extra", "ctc"])
    with pytest.raises(InputError, match="Nothing is left to train: freeze covers every parameter"):
        make_optimizer(net, OptimConfig())


def test_gradient_norms_are_those_of_the_parts() -> None:
    net = model()
    for n, (name, parameter) in enumerate(net.named_parameters(), start=1):
        if not name.startswith("encoder_extra"):
            parameter.grad = torch.full_like(parameter, float(n))
    norms = gradient_norms(net)
    assert set(norms) == {"encoder", "ctc"}
    for part, norm in norms.items():
        squares = [float(p.grad.square().sum()) for p in net[part].parameters()]
        assert float(norm) == pytest.approx(sum(squares) ** 0.5)

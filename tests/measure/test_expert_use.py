"""Collapse is told once, after it was seen twice; dead and dominating experts are marked."""

import math

import pytest

from moe_asr.measure.expert_use import Alarm, Watch, dead, effective_experts, expert_table, heat_map, variation

EVEN, ONE, UNEVEN = [0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.88, 0.04, 0.04, 0.04]


def test_dead_is_below_a_hundredth_of_the_even_share() -> None:
    assert dead([0.0, 0.0024, 0.0026, 0.995]) == [0, 1]
    assert dead(EVEN) == []


def test_experts_in_effect_in_closed_form() -> None:
    assert effective_experts(EVEN) == pytest.approx(4)
    assert effective_experts(ONE) == pytest.approx(1)
    assert effective_experts([0.5, 0.25, 0.25, 0]) == pytest.approx(2**1.5)


def test_variation_in_closed_form() -> None:
    assert variation(EVEN) == 0
    assert variation(ONE) == pytest.approx(math.sqrt(3))  # sqrt(E / top_k - 1)
    assert variation([0.5, 0.5, 0, 0]) == pytest.approx(1)
    assert variation([0.0, 0.0]) == 0


@pytest.mark.parametrize(("load", "experts"), [(ONE, [1, 2, 3]), (UNEVEN, [])])
def test_an_alarm_needs_two_validations_and_comes_once(load: list[float], experts: list[int]) -> None:
    first = Watch().validated(10, {"a": load, "b": EVEN})
    assert first.alarms == []
    assert first.validated(20, {"a": EVEN, "b": EVEN}).validated(30, {"a": load, "b": EVEN}).alarms == []
    second = first.validated(20, {"a": load, "b": EVEN})
    assert second.alarms == [Alarm(20, "a", experts, variation(load))]
    assert second.validated(30, {"a": load, "b": EVEN}).alarms == second.alarms
    assert Watch.from_dict(second.to_dict()) == second


def test_the_same_expert_must_be_dead_twice() -> None:
    two, other = [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]
    assert Watch().validated(1, {"a": two}).validated(2, {"a": other}).alarms == []


def test_a_router_without_gradient_is_told_at_the_second_look() -> None:
    watch = Watch().learnt(1, {"0": 0.0, "1": 1e-30})
    assert watch.alarms == []
    assert watch.learnt(2, {"0": 1e-30, "1": 0.0}).alarms == []
    assert watch.learnt(2, {"0": 0.0, "1": 0.0}).alarms == [Alarm(2, "0")]


def test_what_an_alarm_says() -> None:
    assert str(Alarm(20, "encoder.00.ffn_in", [1, 3], 1.25)) == (
        "step 20: the routing of encoder.00.ffn_in has collapsed (2 dead experts (1, 3), load CV 1.25): raise "
        "loss.balance or router.balance_rate, or lower optim.lr."
    )
    assert "router 3 gets no gradient" in str(Alarm(20, "3"))


def test_the_table_has_a_line_for_each_site() -> None:
    lines = expert_table({"encoder.00.ffn_in": ONE, "encoder.00.ffn_out": EVEN}, {"encoder.00.ffn_in": 0.5})
    assert [line.split() for line in lines] == [
        ["expert", "0", "1", "2", "3", "CV", "entropy"],
        ["encoder.00.ffn_in", "100!", "-", "-", "-", "1.73", "0.50"],
        ["encoder.00.ffn_out", "25", "25", "25", "25", "0.00"],
    ]
    assert len({len(line) for line in lines[:2]}) == 1, "columns are aligned"
    assert expert_table({}, {}) == []


def test_many_experts_are_a_bar_each() -> None:
    load = [2 / 32, 0.0, 1 / 32] + [29 / 32 / 29] * 29
    line = expert_table({"a": load}, {})[1]
    assert line.split()[1] == "█-" + "▅" * 30


def test_the_heat_map_holds_every_load() -> None:
    html = heat_map({"a": ONE, "b": EVEN})
    assert html.count("<tr>") == 2
    assert html.count("<td") == 8
    assert "rgba(30,90,160,1.00)" in html
    assert html.count(">25<") == 4

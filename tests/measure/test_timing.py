"""Turns and spreads."""

import pytest
import torch

from moe_asr.measure import timing
from moe_asr.measure.timing import Spread, interleaved, spread


def test_the_spread_is_median_and_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, first=2.0, third=4.0)


def test_all_have_their_turn_in_every_round_after_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def work(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    monkeypatch.setattr(timing, "clock", lambda device: now[0])
    times = interleaved({"a": lambda: work("a", 1.0), "b": lambda: work("b", 3.0)}, rounds=3)
    assert "".join(order) == "ab" + "abbaab"
    assert times == {"a": [1.0] * 3, "b": [3.0] * 3}


def test_cpu_time_is_measured_with_one_thread_and_wall_time_with_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "process_time", lambda: 1.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 2.0)
    assert timing.clock() == 1.0
    assert not timing.by_cpu("cuda")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert timing.clock() == 2.0

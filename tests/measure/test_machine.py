"""The machine's limits."""

import sys

import pytest
import torch

from moe_asr.measure import machine
from moe_asr.measure.machine import Peaks, growth, measure_peaks


def test_the_limit_is_the_longer_of_computing_and_reading() -> None:
    peaks = Peaks(fp32=100.0, bf16=200.0, int8=400.0, read=50.0)
    assert peaks.seconds(1000) == 20.0
    assert peaks.seconds(1000, weights=100) == 20.0
    assert peaks.seconds(1000, weights=500) == 40.0
    assert peaks.seconds(1000, weights=500, precision="bf16") == 20.0
    assert peaks.seconds(1000, weights=500, precision="int8") == 10.0


def test_the_peak_is_the_best_try_of_the_best_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try is twice as fast as the one before, from half a second on."""
    monkeypatch.setattr(machine, "_products", lambda *_: [lambda: None, lambda: None])
    monkeypatch.setattr(
        machine, "interleaved", lambda works, rounds, device: {w: [1.0, 0.5**i] for i, w in enumerate(works, 1)}
    )
    peaks = measure_peaks(quick=True)
    operations = 2 * 256 * 512 * 2048
    assert (peaks.fp32, peaks.bf16, peaks.int8) == (operations * 4, operations * 16, operations * 64)
    assert peaks.read == machine.READ_BYTES / 4 * 4


@pytest.mark.parametrize("precision", machine.PRECISIONS)
def test_every_way_to_multiply_works_here(precision: str) -> None:
    for work in machine._products(precision, 32, 64, 48):
        assert work().shape == (32, 48)  # type: ignore[attr-defined]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from Linux' /proc")
def test_memory_that_is_kept_and_that_is_only_borrowed() -> None:
    size = 2**26

    def work() -> torch.Tensor:
        borrowed = torch.ones(3 * size // 4)
        return borrowed[: size // 4].clone()

    kept, after, peak = growth(work)
    assert kept.sum() == size // 4
    assert after == pytest.approx(size, rel=0.2)
    assert peak == pytest.approx(4 * size, rel=0.2)

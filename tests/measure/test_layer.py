"""What is compared in a benchmark of one layer."""

from dataclasses import replace

import pytest
import torch

from moe_asr.config.benchmark import BenchmarkConfig, Kind, LayerConfig, quickened
from moe_asr.config.model import MoEConfig
from moe_asr.errors import InputError
from moe_asr.measure.layer import _case, layer_rows
from moe_asr.measure.machine import Peaks
from moe_asr.modules.moe.experts import BACKENDS

PEAKS = Peaks(fp32=1e9, bf16=2e9, int8=4e9, read=1e6)
CONFIG = quickened(BenchmarkConfig(kind=Kind.layer))


def asking(*backends: str, **options: object) -> BenchmarkConfig:
    return replace(CONFIG, layer=replace(CONFIG.layer, backends=list(backends), **options))


def test_every_backend_is_timed_beside_its_limit() -> None:
    rows = layer_rows(CONFIG, PEAKS)
    assert {row.backend for row in rows} - {"dense"} <= set(BACKENDS)
    assert [(row.routing, row.frames) for row in rows if row.backend == "loop"] == [
        *(("independent", frames) for frames in (1, 16)),
        *(("correlated", frames) for frames in (1, 16)),
        ("training", 32),
    ]
    for row in rows:
        assert row.seconds.first <= row.seconds.median <= row.seconds.third
        assert row.ratio == 1 if row.backend == ("dense" if row.routing == "training" else "loop") else row.ratio > 0
    weights = 2 * 32 * 64
    single = next(row for row in rows if (row.backend, row.frames) == ("loop", 1))
    assert (single.experts, single.limit) == (2, 2 * weights * 4 / 1e6)  # two experts from memory
    training = rows[-1]
    assert training.limit == max(2 * 3 * 32 * 2 * weights / 1e9, training.experts * weights * 4 / 1e6)


def test_only_what_is_asked_for_is_timed_beside_loop() -> None:
    assert [row.backend for row in layer_rows(asking("sorted", rows=[3], train_rows=0), PEAKS)] == [
        "loop",
        "sorted",
    ] * 2
    with pytest.raises(InputError, match=r"^layer\.backends has sortd, which is none; did you mean sorted\?"):
        layer_rows(asking("sortd"), PEAKS)


def test_a_backend_without_kernels_here_is_refused_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(_: object) -> None:
        raise InputError("no kernels")

    monkeypatch.setitem(BACKENDS, "sorted", unavailable)  # type: ignore[arg-type]
    assert "sorted" not in {row.backend for row in layer_rows(replace(CONFIG, rounds=1), PEAKS)}
    with pytest.raises(InputError, match="no kernels"):
        layer_rows(asking("sorted"), PEAKS)


def test_correlated_frames_share_their_experts() -> None:
    config = BenchmarkConfig(kind=Kind.layer, layer=LayerConfig(width=64), moe=MoEConfig(num_experts=8, top_k=2))
    torch.manual_seed(0)
    x, expert_ids, weights = _case(config, 2000, 0.98)
    correlation = (x[1:] * x[:-1]).mean() / x.square().mean()
    assert correlation == pytest.approx(0.98, abs=0.01)
    assert x.square().mean() == pytest.approx(1, abs=0.1)
    assert torch.allclose(weights.sum(1), torch.ones(2000))
    independent = _case(config, 2000, 0.0)[1]

    def touched(ids: torch.Tensor) -> float:
        return sum(len(chunk.unique()) for chunk in ids.split(16)) / 125

    assert touched(expert_ids) < 0.7 * touched(independent)
    assert independent.flatten().bincount(minlength=8).min() > 0.5 * 2000 * 2 / 8

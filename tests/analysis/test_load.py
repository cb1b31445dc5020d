"""Expert load from traces made by hand: padding and empty slots are not counted, and sums add up."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_asr.analysis.load import entropies, load_history, load_metrics, loads, measured
from moe_asr.config.placement import MoESite
from moe_asr.errors import InputError
from moe_asr.modules.moe.routing import Routing, SiteTrace
from moe_asr.modules.moe.statistics import routing_sums

HERE, THERE = MoESite("encoder", 3, "ffn_out"), MoESite("left_to_right", 0, "ffn_out")


def trace(site: MoESite, ids: list, valid: list, logits: torch.Tensor) -> tuple[SiteTrace, ...]:
    """ids (B,N,K) and valid (B,N) as lists."""
    expert_ids = torch.tensor(ids)
    return (SiteTrace(site, Routing(logits, expert_ids, torch.ones(expert_ids.shape)), torch.tensor(valid)),)


# Two utterances of 3 positions, 4 experts, 2 slots; the second utterance has 1 valid position, and one slot is empty.
IDS = [[[0, 1], [0, 2], [0, -1]], [[2, 1], [3, 3], [3, 3]]]
VALID = [[True, True, True], [True, False, False]]
UNIFORM = torch.zeros(2, 3, 4)


def test_counts_leave_out_padding_and_empty_slots() -> None:
    sums = measured(trace(HERE, IDS, VALID, UNIFORM))
    assert sums.sites == (HERE,)
    assert sums.counts.tolist() == [[3, 2, 2, 0]]
    assert (sums.positions.tolist(), sums.dropped.tolist()) == ([4], [1])
    assert sums.load[0].tolist() == pytest.approx([3 / 7, 2 / 7, 2 / 7, 0.0])
    assert sums.mean_probability[0].tolist() == pytest.approx([0.25] * 4)


def test_entropy_in_closed_form() -> None:
    assert measured(trace(HERE, IDS, VALID, UNIFORM)).entropy.item() == pytest.approx(4 * math.log(4))
    certain = torch.full((2, 3, 4), -1e4)
    certain[..., 0] = 0.0
    assert measured(trace(HERE, IDS, VALID, certain)).entropy.item() == 0.0
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    logits = (p.log() + 3.0).expand(2, 3, 4)  # a constant added to logits changes nothing
    assert measured(trace(HERE, IDS, VALID, logits)).entropy.item() == pytest.approx(4 * 1.75 * math.log(2))


def test_logits_of_padding_do_not_matter() -> None:
    noisy = UNIFORM.clone()
    noisy[1, 1:] = torch.tensor([9.0, -9.0, 3.0, float("nan")])
    noisy.requires_grad_()
    sums = routing_sums(trace(HERE, IDS, VALID, noisy))
    assert sums.entropy.item() == pytest.approx(4 * math.log(4))
    sums.probabilities.square().sum().backward()
    assert noisy.grad[1, 1:].eq(0).all()


def test_batches_add_up_to_the_whole() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    whole = measured(trace(HERE, IDS, VALID, logits) + trace(THERE, IDS, VALID, logits))
    parts = [
        trace(HERE, [IDS[b]], [VALID[b]], logits[b : b + 1]) + trace(THERE, [IDS[b]], [VALID[b]], logits[b : b + 1])
        for b in (0, 1)
    ]
    first = measured(parts[0])
    merged = measured(parts[1], first)
    assert merged.sites == whole.sites == (HERE, THERE)
    assert torch.allclose(merged.values, whole.values)
    assert merged.values.dtype is torch.float64
    assert first.counts.tolist() == [[3, 1, 1, 0]] * 2  # adding left its arguments alone
    assert measured((), first) is first
    assert measured(()) is None


def test_metrics() -> None:
    found = load_metrics(measured(trace(HERE, IDS, VALID, UNIFORM)))
    assert found == {
        "routing/encoder.03.ffn_out/load_max": pytest.approx(3 / 7),
        "routing/encoder.03.ffn_out/load_min": 0.0,
        "routing/encoder.03.ffn_out/load_cv": pytest.approx(np.std([3, 2, 2, 0]) / np.mean([3, 2, 2, 0])),
        "routing/encoder.03.ffn_out/entropy": pytest.approx(math.log(4)),
        "routing/encoder.03.ffn_out/dropped": 1 / 8,
        "routing/encoder.03.ffn_out/dead_experts": 1.0,
        "routing/dead_experts": 1.0,
        **{f"routing/encoder.03.ffn_out/load/{e}": pytest.approx(n / 7) for e, n in enumerate([3, 2, 2, 0])},
        **{f"routing/encoder.03.ffn_out/probability/{e}": pytest.approx(0.25) for e in range(4)},
    }
    assert load_metrics(measured(trace(HERE, IDS, VALID, UNIFORM)), "x").keys() == {
        name.replace("routing", "x", 1) for name in found
    }
    assert load_metrics(None) == {}


def test_an_idle_site_has_no_share_and_no_division_by_zero() -> None:
    sums = measured(trace(HERE, [[[-1, -1]]], [[False]], torch.zeros(1, 1, 4)))
    assert sums.load.tolist() == [[0.0] * 4]
    assert all(math.isfinite(value) for value in load_metrics(sums).values())
    assert loads(sums) == {}


def test_loads_and_entropies_are_named_by_their_site() -> None:
    sums = measured(trace(HERE, IDS, VALID, UNIFORM))
    assert loads(sums) == {"encoder.03.ffn_out": pytest.approx([3 / 7, 2 / 7, 2 / 7, 0])}
    assert entropies(sums) == {"encoder.03.ffn_out": pytest.approx(math.log(4))}
    assert (loads(None), entropies(None)) == ({}, {})


def test_loads_over_training_are_read_from_the_metrics_of_a_run(tmp_path: Path) -> None:
    rows = ["step,metric,value", "10,train/routing/a/load/1,0.25", "10,train/routing/a/load/0,0.75"]
    rows += [
        "10,routing/a/load/0,0.5",
        "10,train/loss,3.0",
        "20,train/routing/a/load/0,0.5",
        "20,train/routing/a/load/1,0.5",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    found = load_history(tmp_path / "metrics.csv")
    assert list(found) == ["a"]
    assert found["a"][0] == [10, 20]
    np.testing.assert_array_equal(found["a"][1], [[0.75, 0.25], [0.5, 0.5]])
    assert load_history(tmp_path / "metrics.csv", "routing")["a"][1].tolist() == [[0.5]]
    with pytest.raises(InputError, match="tells no loads of experts below 'val'"):
        load_history(tmp_path / "metrics.csv", "val")
    with pytest.raises(InputError, match="cannot be read"):
        load_history(tmp_path / "none.csv")

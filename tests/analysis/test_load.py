"""Expert load from traces made by hand: padding and empty slots are not counted, and sums add up."""

import math

import pytest
import torch

from moe_asr.analysis.load import SiteLoad, expert_load, load_metrics, merge
from moe_asr.modules.moe.routing import MoESite, Routing, SiteTrace

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
    load = expert_load(trace(HERE, IDS, VALID, UNIFORM))
    assert list(load) == ["encoder.03.ffn_out"]
    site = load["encoder.03.ffn_out"]
    assert site.counts.tolist() == [3, 2, 2, 0]
    assert site.positions == 4
    assert site.shares.tolist() == pytest.approx([3 / 7, 2 / 7, 2 / 7, 0.0])


def test_entropy_in_closed_form() -> None:
    assert expert_load(trace(HERE, IDS, VALID, UNIFORM))[str(HERE)].entropy == pytest.approx(4 * math.log(4))
    certain = torch.full((2, 3, 4), -1e4)
    certain[..., 0] = 0.0
    assert expert_load(trace(HERE, IDS, VALID, certain))[str(HERE)].entropy == 0.0
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    logits = (p.log() + 3.0).expand(2, 3, 4)  # a constant added to logits changes nothing
    assert expert_load(trace(HERE, IDS, VALID, logits))[str(HERE)].entropy == pytest.approx(4 * 1.75 * math.log(2))


def test_logits_of_padding_do_not_matter() -> None:
    noisy = UNIFORM.clone()
    noisy[1, 1:] = torch.tensor([9.0, -9.0, 3.0, float("nan")])
    assert expert_load(trace(HERE, IDS, VALID, noisy))[str(HERE)].entropy == pytest.approx(4 * math.log(4))


def test_batches_add_up_to_the_whole() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    whole = expert_load(trace(HERE, IDS, VALID, logits))[str(HERE)]
    parts = [expert_load(trace(HERE, [IDS[b]], [VALID[b]], logits[b : b + 1])) for b in (0, 1)]
    elsewhere = expert_load(trace(THERE, IDS, VALID, logits))
    merged = merge(merge(merge({}, parts[0]), elsewhere), parts[1])
    assert list(merged) == [str(HERE), str(THERE)]
    assert torch.equal(merged[str(HERE)].counts, whole.counts)
    assert merged[str(HERE)].entropy == pytest.approx(whole.entropy)
    assert merged[str(HERE)].positions == whole.positions
    assert torch.equal(merged[str(THERE)].counts, whole.counts)
    assert parts[0][str(HERE)].counts.tolist() == [3, 1, 1, 0]  # merging left its arguments alone


def test_metrics() -> None:
    loads = {
        "a": SiteLoad(torch.tensor([3, 1, 0, 0]), entropy=5.0, positions=4),
        "b": SiteLoad(torch.tensor([1, 1, 1, 0]), entropy=0.0, positions=3),
    }
    assert load_metrics(loads) == {
        "routing/a/load_max": 0.75,
        "routing/a/entropy": 1.25,
        "routing/b/load_max": pytest.approx(1 / 3),
        "routing/b/entropy": 0.0,
        "routing/dead_experts": 3.0,
    }
    assert load_metrics({}) == {}


def test_an_idle_site_has_no_share_and_no_division_by_zero() -> None:
    load = expert_load(trace(HERE, [[[-1, -1]]], [[False]], torch.zeros(1, 1, 4)))[str(HERE)]
    assert load.shares.tolist() == [0.0] * 4
    assert load_metrics({"x": load})["routing/x/entropy"] == 0.0

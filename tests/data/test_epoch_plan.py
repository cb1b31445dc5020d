"""An epoch is a pure function of (seed, epoch): nothing lost, nothing repeated, constant in number, under its caps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.config.data import BatchConfig
from moe_asr.data.epoch_plan import EpochPlan, group_sizes
from moe_asr.errors import InputError

DURATIONS = st.lists(st.floats(0.1, 20.0), min_size=4, max_size=60).map(tuple)
CONFIGS = st.builds(
    BatchConfig, seconds=st.floats(20.0, 60.0), utterances=st.integers(1, 9), bucket_ratio=st.floats(1.0, 3.0)
)
RANKS = st.integers(1, 4)


@given(DURATIONS, CONFIGS, st.integers(0, 3), RANKS)
def test_every_utterance_once_in_a_constant_number_of_batches_under_both_caps(
    durations: tuple[float, ...], config: BatchConfig, seed: int, ranks: int
) -> None:
    plan = EpochPlan(durations, config, seed, ranks)
    for epoch in range(3):
        batches = plan.batches(epoch)
        assert len(batches) == len(plan) * ranks
        assert sorted(i for batch in batches for i in batch) == list(range(len(durations)))
        filled = [batch for batch in batches if batch]
        assert len(filled) == len(batches) or max(map(len, filled)) == 1  # more ranks' batches than utterances
        for batch in filled:
            seconds = [durations[i] for i in batch]
            assert max(seconds) * len(batch) <= config.seconds * (1 + 1e-9)
            assert len(batch) <= config.utterances
            assert seconds == sorted(seconds, reverse=True)


def test_a_batch_holds_similar_durations() -> None:
    durations = tuple(float(i % 20 + 1) for i in range(400))
    plan = EpochPlan(durations, BatchConfig(seconds=60, utterances=64, bucket_ratio=1.2), seed=1)
    ratios = [max(durations[i] for i in batch) / min(durations[i] for i in batch) for batch in plan.batches(0)]
    assert 1.0 < max(ratios) <= 1.2 + 1e-9
    together = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 10), (11, 13), (14, 16), (17, 20)]
    assert [(durations[b[0]], durations[b[-1]]) for b, _ in plan.buckets] == together
    assert len(plan) == sum(-(-20 * (last - first + 1) // min(64, 60 // last)) for first, last in together)


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    durations, config = tuple(1 + i / 50 for i in range(100)), BatchConfig(seconds=20, bucket_ratio=2.0)
    plan = EpochPlan(durations, config, seed=1)
    later_first = EpochPlan(durations, config, seed=1)
    assert later_first.batches(7) == plan.batches(7)
    assert plan.batches(2) == later_first.batches(2)
    assert plan.batches(0) != plan.batches(1)
    assert plan.batches(0) != EpochPlan(durations, config, seed=2).batches(0)
    # Not only the order of the batches, but also their members are new.
    assert {frozenset(b) for b in plan.batches(0)}.isdisjoint({frozenset(b) for b in plan.batches(1)})


def test_the_order_of_batches_is_shuffled() -> None:
    durations = tuple(float(i) for i in range(1, 21))
    plan = EpochPlan(durations, BatchConfig(seconds=20, utterances=1, bucket_ratio=1.2), seed=1)
    buckets = [plan.buckets.index(bucket) for i in range(20) for bucket in plan.buckets if i in bucket[0]]
    orders = [[buckets[batch[0]] for batch in plan.batches(epoch)] for epoch in range(4)]
    assert all(order != sorted(order) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_ranks_share_what_one_process_would_do() -> None:
    durations, config = tuple(1.0 + i % 5 for i in range(50)), BatchConfig(seconds=12, bucket_ratio=1.5)
    alone, shared = (EpochPlan(durations, config, seed=1, ranks=ranks) for ranks in (1, 2))
    assert len(alone) == 2 * len(shared) == 16
    assert alone.batches(0) == shared.batches(0)
    assert len(EpochPlan(durations, config, seed=1, ranks=3)) == 6


@pytest.mark.parametrize(
    ("durations", "ranks", "sentence"),
    [
        ((1.0, 30.5), 1, r"30\.5 s \(at its slowest speed\) does not fit into a batch of 20 s; raise batch\.seconds"),
        ((), 1, "There is no utterance to train on; see problems.jsonl"),
        ((1.0, 1.0), 3, "2 utterances cannot be shared by 3 processes"),
    ],
)
def test_impossible_plans_are_refused(durations: tuple[float, ...], ranks: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        EpochPlan(durations, BatchConfig(seconds=20), seed=1, ranks=ranks)


@pytest.mark.parametrize(
    ("accumulate", "sizes"), [(1, [2, 1, 3, 1, 2]), (2, [3, 3, 4, 4, 2]), (4, [7, 7, 7, 7, 2]), (9, [9] * 5)]
)
def test_group_sizes_count_the_utterances_of_an_optimiser_step(accumulate: int, sizes: list[int]) -> None:
    batches = [[0, 1], [2], [3, 4, 5], [6], [7, 8]]
    assert group_sizes(batches, accumulate) == sizes


def test_the_mean_over_groups_weighs_every_utterance_the_same() -> None:
    plan = EpochPlan(tuple(0.5 + i % 7 for i in range(60)), BatchConfig(seconds=12, bucket_ratio=2.0), seed=1)
    batches = plan.batches(0)
    weight = {i: 1 / size for batch, size in zip(batches, group_sizes(batches, 3), strict=True) for i in batch}
    steps = [sum(weight[i] for batch in batches[s : s + 3] for i in batch) for s in range(0, len(batches), 3)]
    assert steps == pytest.approx([1.0] * len(steps))

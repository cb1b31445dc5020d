"""Segments cut a training run where something must be on disk, and change nothing else about it."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from moe_asr.config.program import TrainerConfig
from moe_asr.training.schedule import Segment, segments, steps_of

TRAINERS = st.builds(
    TrainerConfig,
    epochs=st.integers(1, 4),
    accumulate=st.integers(1, 5),
    validate_every=st.integers(1, 3),
    recover_every=st.integers(1, 6),
    max_steps=st.one_of(st.just(-1), st.integers(1, 60)),
)


def steps(batches: range, epoch: int, accumulate: int, first_step: int) -> list[tuple[int, int, int]]:
    """(epoch, batch, optimiser step) of a stretch of batches whose last group may be smaller."""
    return [(epoch, batch, first_step + 1 + i // accumulate) for i, batch in enumerate(batches)]


@given(st.integers(1, 40), TRAINERS)
def test_segments_take_the_very_steps_of_an_uncut_run(batches: int, trainer: TrainerConfig) -> None:
    uncut: list[tuple[int, int, int]] = []
    for epoch in range(trainer.epochs):
        uncut += steps(range(batches), epoch, trainer.accumulate, uncut[-1][2] if uncut else 0)
    if trainer.max_steps > 0:
        uncut = [place for place in uncut if place[2] <= trainer.max_steps]
    plan = segments(batches, trainer)
    cut = [
        place
        for s in plan
        for place in steps(range(s.start, s.stop), s.epoch, trainer.accumulate, first_step=s.first_step)
    ]
    assert cut == uncut
    assert plan[0].first_step == 0
    assert all(one.last_step == other.first_step for one, other in pairwise(plan))
    assert plan[-1].last_step == uncut[-1][2]
    for s in plan:
        assert s.start % trainer.accumulate == 0
        assert s.stop % trainer.accumulate == 0 or s.stop == batches
        assert 0 < s.last_step - s.first_step <= trainer.recover_every
        due = s.stop == batches and ((s.epoch + 1) % trainer.validate_every == 0 or s.epoch + 1 == trainer.epochs)
        assert s.validate == (due or s == plan[-1])


@given(st.integers(1, 40), TRAINERS, st.integers(1, 6))
def test_where_recovery_points_lie_moves_no_validation(batches: int, trainer: TrainerConfig, other: int) -> None:
    one, two = segments(batches, trainer), segments(batches, replace(trainer, recover_every=other))
    assert [s.last_step for s in one if s.validate] == [s.last_step for s in two if s.validate]


def test_an_example() -> None:
    trainer = TrainerConfig(epochs=3, accumulate=2, recover_every=2, validate_every=2, max_steps=8)
    assert segments(7, trainer) == [
        Segment(0, 0, 4, 0, 2, validate=False),
        Segment(0, 4, 7, 2, 4, validate=False),
        Segment(1, 0, 4, 4, 6, validate=False),
        Segment(1, 4, 7, 6, 8, validate=True),
    ]
    assert segments(7, replace(trainer, max_steps=5))[-1] == Segment(1, 0, 2, 4, 5, validate=True)
    assert segments(7, replace(trainer, max_steps=100)) == segments(7, replace(trainer, max_steps=-1))


def test_the_last_step_of_an_epoch_may_hold_fewer_batches() -> None:
    assert [steps_of(n, 3) for n in (1, 2, 3, 4, 6, 7)] == [1, 1, 1, 2, 2, 3]

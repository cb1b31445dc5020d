"""Training as a list of segments: the whole resume state is how many of them are done.

A segment is a stretch of batches inside one epoch that ends where something must be on disk: at a recovery point, a
validation, or the end of the epoch. Lightning sees each segment as an "epoch" of its own, with a fresh loader, so a
resumed run needs nothing of Lightning's own loop state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from moe_asr.config.program import TrainerConfig


@dataclass(frozen=True)
class Segment:
    """Batches [start, stop) of an epoch: the optimiser steps after `first_step` up to `last_step`."""

    epoch: int
    start: int
    stop: int
    first_step: int
    last_step: int
    validate: bool


def steps_of(batches: int, accumulate: int) -> int:
    """Optimiser steps of so many micro-batches; the last step of an epoch may hold fewer."""
    return -(-batches // accumulate)


def segments(batches_per_epoch: int, trainer: TrainerConfig) -> list[Segment]:
    return list(_segments(batches_per_epoch, trainer))


def _segments(batches_per_epoch: int, trainer: TrainerConfig) -> Iterator[Segment]:
    stride = trainer.recover_every * trainer.accumulate
    cuts = [*range(0, batches_per_epoch, stride), batches_per_epoch]
    per_epoch = steps_of(batches_per_epoch, trainer.accumulate)
    for epoch in range(trainer.epochs):
        for start, stop in pairwise(cuts):
            first_step = epoch * per_epoch + start // trainer.accumulate
            last_step = first_step + steps_of(stop - start, trainer.accumulate)
            end_of_epoch = stop == batches_per_epoch
            validate = end_of_epoch and ((epoch + 1) % trainer.validate_every == 0 or epoch + 1 == trainer.epochs)
            if 0 < trainer.max_steps <= last_step:
                stop = min(stop, start + (trainer.max_steps - first_step) * trainer.accumulate)
                yield Segment(epoch, start, stop, first_step, trainer.max_steps, validate=True)
                return
            yield Segment(epoch, start, stop, first_step, last_step, validate)

"""Times that can be compared: taken in turns, in one process, stated with their spread."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy
import torch

from moe_asr.measure.rtf import synchronize

Name = TypeVar("Name")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles, in seconds."""

    median: float
    first: float
    third: float


def spread(seconds: Sequence[float]) -> Spread:
    first, median, third = numpy.quantile(seconds, [0.25, 0.5, 0.75])
    return Spread(float(median), float(first), float(third))


def by_cpu(device: str | torch.device = "cpu") -> bool:
    """Whether CPU seconds are told, as with one thread, since other programs disturb them least; else wall seconds."""
    return torch.device(device).type == "cpu" and torch.get_num_threads() == 1


def clock(device: str | torch.device = "cpu") -> float:
    """Seconds of this process or of the wall, by `by_cpu`; once a GPU has done what was asked of it."""
    synchronize(device)
    return time.process_time() if by_cpu(device) else time.perf_counter()


def seconds(work: Callable[[], object], device: str | torch.device = "cpu") -> float:
    begin = clock(device)
    work()
    return clock(device) - begin


def interleaved(
    works: Mapping[Name, Callable[[], object]], rounds: int, device: str | torch.device = "cpu"
) -> dict[Name, list[float]]:
    """Seconds of each work in every round; all have their turn in each, after one round that does not count."""
    for work in works.values():
        work()
    times: dict[Name, list[float]] = {name: [] for name in works}
    for i in range(rounds):
        # Back and forth, so that none always follows the same other one.
        for name in list(works)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(seconds(works[name], device))
    return times

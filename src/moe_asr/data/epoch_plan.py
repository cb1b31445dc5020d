"""An epoch as a pure function of (seed, epoch): a list of batches, constant in number.

Utterances are put into buckets of similar duration once. Every epoch reshuffles the members of each bucket, cuts them
into the same number of batches, and shuffles the order of all batches. So the batch count never changes (Lightning
freezes it at the first epoch), no utterance is dropped or repeated, the seconds of a batch stay under its cap, and the
state to resume from is just (epoch, position).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil

from moe_asr.config.data import BatchConfig
from moe_asr.errors import InputError
from moe_asr.randomness import numpy_rng


@dataclass(frozen=True)
class EpochPlan:
    """durations: seconds of each utterance as they enter a batch (slowest speed perturbation included).

    ranks: processes that share an epoch; the number of batches is a multiple of it.
    """

    durations: tuple[float, ...]
    config: BatchConfig
    seed: int
    ranks: int = 1

    def __post_init__(self) -> None:
        if not self.durations:
            raise InputError("There is no utterance to train on; see problems.jsonl in the run directory.")
        if max(self.durations) > self.config.seconds:
            raise InputError(
                f"An utterance of {max(self.durations):.1f} s (at its slowest speed) does not fit into a batch of "
                f"{self.config.seconds:g} s; raise batch.seconds or lower data.max_seconds."
            )
        if len(self.durations) < self.ranks:
            raise InputError(f"{len(self.durations)} utterances cannot be shared by {self.ranks} processes.")

    @cached_property
    def buckets(self) -> list[tuple[list[int], int]]:
        """(members by index, number of batches) of each bucket, from short to long."""
        by_duration = sorted(range(len(self.durations)), key=lambda i: (self.durations[i], i))
        members: list[list[int]] = []
        for utterance in by_duration:
            if not members or self.durations[utterance] > self.durations[members[-1][0]] * self.config.bucket_ratio:
                members.append([])
            members[-1].append(utterance)
        counts = []
        for bucket in members:
            longest = self.durations[bucket[-1]]
            fit = min(self.config.utterances, int(self.config.seconds / longest))
            counts.append(ceil(len(bucket) / fit))
        # Split further, largest batches first, until every rank has the same number of batches.
        while sum(counts) % self.ranks:
            largest = max(range(len(members)), key=lambda b: len(members[b]) / counts[b])
            counts[largest] += 1
        return list(zip(members, counts, strict=True))

    def __len__(self) -> int:
        """Batches of one rank in an epoch."""
        return sum(count for _, count in self.buckets) // self.ranks

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as indices of utterances, longest first within a batch; ranks take them in turn."""
        rng = numpy_rng("batches", self.seed, epoch)
        batches: list[list[int]] = []
        for members, count in self.buckets:
            shuffled = [members[i] for i in rng.permutation(len(members))]
            bounds = [len(shuffled) * i // count for i in range(count + 1)]
            batches += [shuffled[a:b] for a, b in pairwise(bounds)]
        order = rng.permutation(len(batches))
        return [sorted(batches[i], key=lambda u: (-self.durations[u], u)) for i in order]


def group_sizes(batches: Sequence[Sequence[int]], accumulate: int) -> list[int]:
    """For each batch, the utterances of its accumulation group: the loss of a step is a mean over all of them."""
    sizes = []
    for start in range(0, len(batches), accumulate):
        group = batches[start : start + accumulate]
        sizes += [sum(map(len, group))] * len(group)
    return sizes

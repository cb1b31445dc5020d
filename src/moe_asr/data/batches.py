"""From planned utterances to tensors: reading, augmenting, log-mel, padding. Everything keyed, nothing carried."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy
import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from moe_asr.config.data import AugmentConfig, FeaturesConfig
from moe_asr.data.augmentation import augment_features, augment_samples
from moe_asr.data.manifest import Problem, load_samples
from moe_asr.data.surroundings import Sounds, sounds_of
from moe_asr.errors import InputError
from moe_asr.features.fbank import LogMel
from moe_asr.models.batch import Batch
from moe_asr.randomness import numpy_rng


@dataclass(frozen=True)
class PlannedBatch:
    """Where a batch stands in training, which utterances it holds, and how many its optimiser step holds."""

    epoch: int
    index: int
    members: list[int]
    group_utterances: int


@dataclass(frozen=True)
class LoadedBatch:
    """`batch` is None when none of its audio could be read; `problems` lists what could not."""

    plan: PlannedBatch | None
    batch: Batch | None
    problems: tuple[Problem, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self if self.batch is None else replace(self, batch=self.batch.to(device, non_blocking))


def checksum(features: Tensor) -> str:
    """CRC-32 of a tensor's bytes: two runs that log the same value saw the same features, masks included."""
    return f"{zlib.crc32(features.contiguous().numpy().tobytes()):08x}"


def read_all(cuts: Sequence[Cut], sample_rate: int) -> tuple[dict[int, Tensor], tuple[Problem, ...]]:
    """Samples (S,) by index of those utterances that can be read, and what is wrong with the others."""
    samples, problems = {}, []
    for i, cut in enumerate(cuts):
        try:
            samples[i] = torch.from_numpy(load_samples(cut, sample_rate))
        except InputError as error:
            problems.append(Problem(cut.id, "unreadable audio", str(error)))
    return samples, tuple(problems)


def pad(rows: Sequence[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor]:
    """Tensors of different length -> one padded batch and the lengths (B,)."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value), torch.tensor([len(row) for row in rows])


def make_batch(
    samples: Sequence[Tensor],
    tokens: Sequence[Sequence[int]],
    ids: Sequence[str],
    log_mel: LogMel,
    augment: tuple[AugmentConfig, int, int, float, Sounds] | None = None,
) -> Batch:
    """Utterances -> one padded batch; `augment` = (options, seed, epoch, dither, sounds) turns augmentation on."""
    if augment is not None:
        config, seed, epoch, dither, sounds = augment
        samples = [
            augment_samples(row, config, numpy_rng("augment", seed, epoch, name), dither, sounds)
            for row, name in zip(samples, ids, strict=True)
        ]
    seconds = sum(map(len, samples)) / log_mel.sample_rate
    features, feature_lengths = log_mel(*pad(samples))
    if augment is not None:
        features, feature_lengths = pad(
            [
                augment_features(row[:length], config, numpy_rng("augment_features", seed, epoch, name))
                for row, length, name in zip(features, feature_lengths.tolist(), ids, strict=True)
            ]
        )
    padded_tokens, token_lengths = pad([torch.tensor(row, dtype=torch.long) for row in tokens], value=-1)
    return Batch(tuple(ids), features, feature_lengths, padded_tokens, token_lengths, seconds)


class TrainingBatches(Dataset[LoadedBatch]):
    """A stretch of planned batches, each loaded whole by one worker."""

    def __init__(
        self,
        cuts: Sequence[Cut],
        tokens: Sequence[Sequence[int]],
        plans: Sequence[PlannedBatch],
        features: FeaturesConfig,
        augment: AugmentConfig,
        seed: int,
    ) -> None:
        self.cuts, self.tokens, self.plans, self.augment, self.seed = cuts, tokens, plans, augment, seed
        self.features, self.log_mel = features, LogMel(features)
        self.sounds = sounds_of(augment, cuts, features.sample_rate)

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, position: int) -> LoadedBatch:
        plan = self.plans[position]
        cuts = [self.cuts[i] for i in plan.members]
        samples, problems = read_all(cuts, self.features.sample_rate)
        if not samples:
            return LoadedBatch(plan, None, problems)
        batch = make_batch(
            list(samples.values()),
            [self.tokens[plan.members[i]] for i in samples],
            [cuts[i].id for i in samples],
            self.log_mel,
            (self.augment, self.seed, plan.epoch, self.features.dither, self.sounds),
        )
        return LoadedBatch(plan, batch, problems)


def similar(cuts: Sequence[Cut], size: int, seconds: float) -> list[list[Cut]]:
    """All utterances once, longest first, at most `size` and (but for one alone) `seconds` with padding together."""
    batches: list[list[Cut]] = []
    for cut in sorted(cuts, key=lambda cut: (-cut.duration, cut.id)):
        if not batches or len(batches[-1]) == size or batches[-1][0].duration * (len(batches[-1]) + 1) > seconds:
            batches.append([])
        batches[-1].append(cut)
    return batches


class EvaluationBatches(Dataset[LoadedBatch]):
    """All utterances once, in `similar` batches, unaugmented and without tokens.

    Of `ranks` processes each takes its share of the batches, in turn, and all equally many: the last may be empty.
    """

    def __init__(
        self, cuts: Sequence[Cut], features: FeaturesConfig, size: int, seconds: float, rank: int = 0, ranks: int = 1
    ) -> None:
        batches = similar(cuts, size, seconds)
        self.batches = [*batches, *([[]] * (-len(batches) % ranks))][rank::ranks]
        self.log_mel, self.sample_rate = LogMel(features), features.sample_rate

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> LoadedBatch:
        cuts = self.batches[position]
        samples, problems = read_all(cuts, self.sample_rate)
        if not samples:
            return LoadedBatch(None, None, problems)
        ids = [cuts[i].id for i in samples]
        return LoadedBatch(None, make_batch(list(samples.values()), [()] * len(ids), ids, self.log_mel), problems)


def sample_cuts(cuts: Sequence[Cut], count: int, rng: numpy.random.Generator) -> list[Cut]:
    """At most `count` utterances, drawn without replacement, in their original order."""
    if len(cuts) <= count:
        return list(cuts)
    return [cuts[i] for i in sorted(rng.choice(len(cuts), count, replace=False))]


def sample_hours(cuts: Sequence[Cut], hours: float, rng: numpy.random.Generator) -> list[Cut]:
    """The utterances of a random order that begin within the first `hours`, in their original order.

    Hence generators of one key draw nested samples. Raises InputError where there is less speech than that.
    """
    order = rng.permutation(len(cuts))
    ends = numpy.cumsum([cuts[i].duration for i in order]) / 3600
    if ends[-1] < 0.999 * hours:  # hours are rounded where they are shown
        raise InputError(f"data.hours={hours:g} is more than the {ends[-1]:.3f} h there are; leave it out to use all.")
    return [cuts[i] for i in sorted(order[: numpy.searchsorted(ends, hours, "left") + 1])]

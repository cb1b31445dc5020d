"""From planned utterances to tensors: reading, augmenting, log-mel, padding. Everything keyed, nothing carried."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy
import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.utils.data import Dataset

from moe_asr.config.data import AugmentConfig, FeaturesConfig
from moe_asr.data.augmentation import augment_features, augment_samples
from moe_asr.data.manifest import load_samples
from moe_asr.data.selection import Problem
from moe_asr.errors import InputError
from moe_asr.features.fbank import LogMel
from moe_asr.models.batch import Batch


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

    def to(self, *args: object, **kwargs: object) -> Self:
        return self if self.batch is None else replace(self, batch=self.batch.to(*args, **kwargs))


def checksum(features: Tensor) -> str:
    """CRC-32 of a tensor's bytes: two runs that log the same value saw the same features, masks included."""
    return f"{zlib.crc32(features.contiguous().numpy().tobytes()):08x}"


def make_batch(
    cuts: Sequence[Cut],
    tokens: Sequence[Sequence[int]],
    log_mel: LogMel,
    augment: AugmentConfig | None = None,
    key: tuple[int, int] | None = None,
) -> tuple[Batch | None, tuple[Problem, ...]]:
    """Reads utterances into one padded batch; `augment` with `key` = (seed, epoch) turns augmentation on."""
    rate = log_mel.config.sample_rate
    samples: list[Tensor] = []
    kept: list[int] = []
    problems = []
    for i, cut in enumerate(cuts):
        try:
            audio = torch.from_numpy(load_samples(cut, rate))
        except InputError as error:
            problems.append(Problem(cut.id, "unreadable audio", str(error)))
            continue
        if augment is not None and key is not None:
            audio = augment_samples(audio, rate, augment, ("augment", *key, cut.id))
        samples.append(audio)
        kept.append(i)
    if not kept:
        return None, tuple(problems)
    sample_lengths = torch.tensor([len(s) for s in samples])
    features, feature_lengths = log_mel(torch.nn.utils.rnn.pad_sequence(samples, batch_first=True), sample_lengths)
    if augment is not None and key is not None:
        rows = [
            augment_features(features[row, :length], augment, ("augment", *key, cuts[i].id))
            for row, (i, length) in enumerate(zip(kept, feature_lengths.tolist(), strict=True))
        ]
        feature_lengths = torch.tensor([len(row) for row in rows])
        features = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    token_rows = [torch.tensor(tokens[i], dtype=torch.long) for i in kept]
    batch = Batch(
        ids=tuple(cuts[i].id for i in kept),
        features=features,
        feature_lengths=feature_lengths,
        tokens=torch.nn.utils.rnn.pad_sequence(token_rows, batch_first=True, padding_value=-1),
        token_lengths=torch.tensor([len(row) for row in token_rows]),
        audio_seconds=float(sample_lengths.sum()) / rate,
    )
    return batch, tuple(problems)


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
        self.log_mel = LogMel(features)

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, position: int) -> LoadedBatch:
        plan = self.plans[position]
        cuts = [self.cuts[i] for i in plan.members]
        tokens = [self.tokens[i] for i in plan.members]
        batch, problems = make_batch(cuts, tokens, self.log_mel, self.augment, (self.seed, plan.epoch))
        return LoadedBatch(plan, batch, problems)


class EvaluationBatches(Dataset[LoadedBatch]):
    """All utterances once, in batches of similar duration, unaugmented. `tokens` only matter for a loss."""

    def __init__(
        self, cuts: Sequence[Cut], tokens: Sequence[Sequence[int]] | None, features: FeaturesConfig, size: int
    ) -> None:
        order = sorted(range(len(cuts)), key=lambda i: (-cuts[i].duration, cuts[i].id))
        self.batches = [order[i : i + size] for i in range(0, len(order), size)]
        self.cuts, self.tokens = cuts, tokens or [()] * len(cuts)
        self.log_mel = LogMel(features)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> LoadedBatch:
        members = self.batches[position]
        batch, problems = make_batch([self.cuts[i] for i in members], [self.tokens[i] for i in members], self.log_mel)
        return LoadedBatch(None, batch, problems)


def sample_cuts(cuts: Sequence[Cut], count: int, rng: numpy.random.Generator) -> list[Cut]:
    """At most `count` utterances, drawn without replacement, in their original order."""
    if len(cuts) <= count:
        return list(cuts)
    return [cuts[i] for i in sorted(rng.choice(len(cuts), count, replace=False))]

"""How fast training data come: hours of audio per second of one core, stage by stage and in all."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import soundfile
import torch
from lhotse.cut import Cut

from moe_asr.config.benchmark import BenchmarkConfig
from moe_asr.config.data import FeaturesConfig
from moe_asr.data.augmentation import augment_features, augment_samples
from moe_asr.data.batches import PlannedBatch, TrainingBatches, pad, read_all
from moe_asr.data.epoch_plan import EpochPlan
from moe_asr.data.manifest import read_split, recording
from moe_asr.errors import InputError
from moe_asr.features.fbank import LogMel
from moe_asr.measure.timing import Spread, interleaved, spread
from moe_asr.randomness import numpy_rng

UTTERANCES = 48
"""Of a generated corpus, from an eighth of `seconds` to all of them long."""


@dataclass(frozen=True)
class Row:
    stage: str
    seconds: Spread
    """Of all batches."""
    hours_per_second: float


def loading_rows(config: BenchmarkConfig) -> tuple[list[Row], float]:
    """The stages of an epoch's first batches, at most as many utterances as a generated corpus has, and their seconds.

    Without a corpus noise is read, from FLAC files. Raises InputError for audio that cannot be read.
    """
    if config.data is not None:
        cuts = list(chain.from_iterable(read_split(config.data, name) for name in config.sets or ["train"]))
        return _rows(config, cuts[:UTTERANCES])
    with tempfile.TemporaryDirectory() as folder:
        return _rows(config, _noise(Path(folder), config.seconds, config.seed))


def _noise(folder: Path, seconds: float, seed: int) -> list[Cut]:
    rate, rng, cuts = FeaturesConfig().sample_rate, numpy_rng("noise", seed), []
    for i in range(UTTERANCES):
        count = int(rate * seconds * rng.uniform(1 / 8, 1))
        soundfile.write(folder / f"{i}.flac", 0.1 * rng.standard_normal(count).clip(-9, 9), rate)
        cuts.append(recording(f"noise-{i}", folder / f"{i}.flac", rate, count).to_cut())
    return cuts


def _rows(config: BenchmarkConfig, cuts: Sequence[Cut]) -> tuple[list[Row], float]:
    features, augment = FeaturesConfig(), config.augment
    plan = EpochPlan(tuple(cut.duration / min(augment.speeds) for cut in cuts), config.batch, config.seed)
    batches = [PlannedBatch(0, i, members, len(members)) for i, members in enumerate(plan.batches(0))]
    tokens = [[1] * round(4 * cut.duration) for cut in cuts]
    data, log_mel = TrainingBatches(cuts, tokens, batches, features, augment, config.seed), LogMel(features)
    members = [[cuts[i] for i in batch.members] for batch in batches]
    read = [read_all(group, features.sample_rate) for group in members]
    if problems := [problem for _, found in read for problem in found]:
        raise InputError(f"{problems[0].detail}; choose other data=CORPUS or sets=[...].")
    samples = [list(found.values()) for found, _ in read]
    rows = [log_mel(*pad(group))[0] for group in samples]
    names = [[cut.id for cut in group] for group in members]

    def augment_all() -> None:
        for ids, waves, mels in zip(names, samples, rows, strict=True):
            for name, wave, mel in zip(ids, waves, mels, strict=True):
                rng = numpy_rng("augment", config.seed, 0, name)
                augment_samples(wave, augment, rng, features.dither, data.sounds)
                augment_features(mel, augment, rng)

    def batch_all() -> None:
        EpochPlan(plan.durations, config.batch, config.seed).batches(0)
        for batch, waves, mels in zip(batches, samples, rows, strict=True):
            pad(waves), pad(list(mels)), pad([torch.tensor(tokens[i]) for i in batch.members])

    stages: dict[str, Callable[[], object]] = {
        "reading": lambda: [read_all(group, features.sample_rate) for group in members],
        "features": lambda: [log_mel(*pad(group)) for group in samples],
        "augmentation": augment_all,
        "batching": batch_all,
        "together": lambda: [data[i] for i in range(len(data))],
    }
    seconds = sum(cut.duration for cut in cuts)
    times = {stage: spread(taken) for stage, taken in interleaved(stages, config.rounds).items()}
    return [Row(stage, time, seconds / 3600 / time.median) for stage, time in times.items()], seconds

"""From planned utterances to tensors: keyed by (seed, epoch, utterance), and one bad file spoils nothing else."""

import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse.cut import Cut
from torch.utils.data import DataLoader

from moe_asr.config.data import AugmentConfig, FeaturesConfig
from moe_asr.data.batches import (
    EvaluationBatches,
    LoadedBatch,
    PlannedBatch,
    TrainingBatches,
    checksum,
    pad,
    sample_cuts,
    sample_hours,
)
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.features.fbank import LogMel
from moe_asr.models.batch import Batch
from moe_asr.randomness import numpy_rng

AUGMENT = AugmentConfig(time_mask_frames=20, time_mask_share=0.3, gain_db=6.0, trim_frames=5)
FEATURES = FeaturesConfig()


@pytest.fixture(scope="module")
def cuts(digits: Path) -> list[Cut]:
    return read_split(digits, "train")[:6]


def unreadable(cut: Cut) -> Cut:
    plain = cut.to_dict()
    plain["recording"]["sources"][0]["source"] = "/nowhere/at-all.flac"
    return type(cut).from_dict(plain)


def load(
    cuts: list[Cut], members: list[int], epoch: int = 0, seed: int = 1, augment: AugmentConfig = AUGMENT
) -> LoadedBatch:
    tokens = [[10 + i] * (i + 1) for i in range(len(cuts))]
    plan = PlannedBatch(epoch, 0, members, len(members))
    return TrainingBatches(cuts, tokens, [plan], FEATURES, augment, seed)[0]


def batch_of(*args: object, **kwargs: object) -> Batch:
    loaded = load(*args, **kwargs)  # type: ignore[arg-type]
    assert loaded.batch is not None
    return loaded.batch


def rows(batch: Batch) -> dict[str, torch.Tensor]:
    """The features of each utterance, without padding."""
    lengths = batch.feature_lengths.tolist()
    return {name: row[:n] for name, row, n in zip(batch.ids, batch.features, lengths, strict=True)}


def test_a_batch_is_padded_and_its_tokens_follow_their_utterances(cuts: list[Cut]) -> None:
    batch = batch_of(cuts, [4, 0, 2])
    assert batch.ids == (cuts[4].id, cuts[0].id, cuts[2].id)
    assert batch.tokens.tolist() == [[14] * 5, [10, -1, -1, -1, -1], [12, 12, 12, -1, -1]]
    assert batch.token_lengths.tolist() == [5, 1, 3]
    assert batch.features.shape == (3, int(batch.feature_lengths.max()), 80)
    for row, length in zip(batch.features, batch.feature_lengths.tolist(), strict=True):
        assert not row[length:].any()
        assert row[length - 1].any()


def test_without_augmentation_features_are_those_of_the_audio(cuts: list[Cut]) -> None:
    off = AugmentConfig(speeds=[1.0], time_masks=0, mel_masks=0, substitutions=0)
    plan = PlannedBatch(3, 0, [1, 5], 2)
    batch = TrainingBatches(cuts, [[1]] * 6, [plan], FeaturesConfig(), off, seed=1)[0].batch
    assert batch is not None
    audio = [torch.from_numpy(load_samples(cuts[i])) for i in (1, 5)]
    features, lengths = LogMel(FeaturesConfig())(*pad(audio))
    assert torch.equal(batch.features, features)
    assert torch.equal(batch.feature_lengths, lengths)
    assert batch.audio_seconds == pytest.approx(cuts[1].duration + cuts[5].duration)


OF_SAMPLES = AugmentConfig(gain_db=6.0, time_masks=0, mel_masks=0, substitutions=0)
OF_FEATURES = AugmentConfig(speeds=[1.0])


@pytest.mark.parametrize("augment", [AUGMENT, OF_SAMPLES, OF_FEATURES])
def test_augmentation_is_a_function_of_seed_epoch_and_utterance(cuts: list[Cut], augment: AugmentConfig) -> None:
    first, again = (batch_of(cuts, [0, 1, 2], augment=augment) for _ in range(2))
    assert torch.equal(first.features, again.features)
    for place in ({"epoch": 1}, {"seed": 2}):
        other = batch_of(cuts, [0, 1, 2], augment=augment, **place)
        assert all(not torch.equal(row, rows(other)[name]) for name, row in rows(first).items())


def test_companions_and_order_do_not_matter(cuts: list[Cut]) -> None:
    together, reversed_ = rows(batch_of(cuts, [0, 1, 2])), rows(batch_of(cuts, [2, 1, 0]))
    for i in (0, 1, 2):
        name = cuts[i].id
        assert torch.equal(together[name], reversed_[name])
        # Alone it has no padding, which gives the matrix products other shapes and may change last bits.
        torch.testing.assert_close(together[name], rows(batch_of(cuts, [i]))[name], atol=1e-4, rtol=1e-4)


def test_augmentation_is_on_in_training_and_off_in_evaluation(cuts: list[Cut]) -> None:
    plain: dict[str, torch.Tensor] = {}
    batches = EvaluationBatches(cuts, FEATURES, size=4, seconds=300.0)
    for position in range(len(batches)):
        batch = batches[position].batch
        assert batch is not None
        plain |= rows(batch)
        assert batch.token_lengths.tolist() == [0] * len(batch.ids)
    log_mel = LogMel(FEATURES)
    for cut in cuts:
        alone, _ = log_mel(*pad([torch.from_numpy(load_samples(cut))]))
        torch.testing.assert_close(plain[cut.id], alone[0], atol=1e-4, rtol=1e-4)
    augmented = rows(batch_of(cuts, list(range(6)), augment=replace(AUGMENT, speeds=[1.0])))
    assert all(not torch.allclose(plain[name][: len(row)], row) for name, row in augmented.items())


def test_evaluation_covers_every_utterance_once_longest_first(cuts: list[Cut]) -> None:
    longest = max(cuts, key=lambda cut: cut.duration)
    batches = EvaluationBatches([*cuts, unreadable(longest.with_id("broken"))], FEATURES, size=3, seconds=300.0)
    loaded = [batches[i] for i in range(len(batches))]
    ids = [name for item in loaded if item.batch for name in item.batch.ids]
    problems = [problem for item in loaded for problem in item.problems]
    assert sorted(ids) == sorted(cut.id for cut in cuts)
    assert [(p.id, p.reason) for p in problems] == [("broken", "unreadable audio")]
    assert "/nowhere/at-all.flac" in problems[0].detail or "broken" in problems[0].detail
    seconds = [cut.duration for item in batches.batches for cut in item]
    assert seconds == sorted(seconds, reverse=True)
    assert [len(item) for item in batches.batches] == [3, 3, 1]


def test_processes_share_the_batches_of_an_evaluation_and_have_equally_many(cuts: list[Cut]) -> None:
    alone = EvaluationBatches(cuts[:5], FEATURES, size=2, seconds=300.0).batches
    first, second = (EvaluationBatches(cuts[:5], FEATURES, 2, 300.0, rank, ranks=2) for rank in range(2))
    assert [first.batches, second.batches] == [[alone[0], alone[2]], [alone[1], []]]
    assert (second[1].batch, second[1].problems) == (None, ())


def test_an_unreadable_utterance_leaves_the_rest_of_its_batch(cuts: list[Cut]) -> None:
    broken = [cuts[0], unreadable(cuts[1]), cuts[2]]
    loaded = load(broken, [0, 1, 2])
    assert loaded.batch is not None
    assert loaded.batch.ids == (cuts[0].id, cuts[2].id)
    assert loaded.batch.token_lengths.tolist() == [1, 3]
    assert [(p.id, p.reason) for p in loaded.problems] == [(cuts[1].id, "unreadable audio")]
    whole = rows(batch_of(cuts, [0, 1, 2]))
    for name, row in rows(loaded.batch).items():
        torch.testing.assert_close(row, whole[name], atol=1e-4, rtol=1e-4)


def test_a_batch_without_readable_audio_is_none(cuts: list[Cut]) -> None:
    broken = [unreadable(cut) for cut in cuts[:2]]
    loaded = load(broken, [0, 1])
    assert loaded.batch is None
    assert [p.id for p in loaded.problems] == [cuts[0].id, cuts[1].id]
    assert loaded.to("cpu") is loaded
    evaluated = EvaluationBatches(broken, FEATURES, size=2, seconds=300.0)[0]
    assert evaluated.batch is None
    assert len(evaluated.problems) == 2


def test_the_checksum_sees_every_bit() -> None:
    features = torch.arange(12.0).view(3, 4)
    changed = features.clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    assert checksum(features) == f"{zlib.crc32(features.numpy().tobytes()):08x}"
    assert checksum(features) != checksum(changed)
    assert checksum(features.t()) != checksum(features)
    assert checksum(features.t().contiguous().t()) == checksum(features)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on forking with threads
def test_worker_processes_change_no_bit(cuts: list[Cut]) -> None:
    plans = [PlannedBatch(2, i, [i, i + 1], 2) for i in range(5)]
    dataset = TrainingBatches(cuts, [[1]] * 6, plans, FEATURES, AUGMENT, seed=1)
    alone, workers = (list(DataLoader(dataset, batch_size=None, num_workers=n)) for n in (0, 2))
    assert [item.plan for item in workers] == plans
    for one, other in zip(alone, workers, strict=True):
        assert torch.equal(one.batch.features, other.batch.features)
        assert one.batch.ids == other.batch.ids


def test_a_sample_of_utterances_keeps_their_order(cuts: list[Cut]) -> None:
    drawn = sample_cuts(cuts, 3, numpy_rng("test", 1))
    places = [cuts.index(cut) for cut in drawn]
    assert places == sorted(set(places))
    assert len(places) == 3
    assert sample_cuts(cuts, 3, numpy_rng("test", 1)) == drawn
    assert len({tuple(cut.id for cut in sample_cuts(cuts, 3, numpy_rng("test", n))) for n in range(9)}) > 1
    assert sample_cuts(cuts, 6, numpy_rng("test", 1)) == cuts


def test_fewer_hours_are_a_part_of_more(cuts: list[Cut]) -> None:
    whole = sum(cut.duration for cut in cuts) / 3600
    previous: list[Cut] = []
    for share in (0.01, 0.4, 0.7, 1.0):
        drawn = sample_hours(cuts, share * whole, numpy_rng("test", 1))
        assert set(map(id, previous)) <= set(map(id, drawn))
        assert [cuts.index(cut) for cut in drawn] == sorted(cuts.index(cut) for cut in drawn)
        seconds = sum(cut.duration for cut in drawn)
        assert seconds >= share * whole * 3600 - 1e-6
        assert seconds - max(cut.duration for cut in drawn) < share * whole * 3600
        previous = drawn
    assert previous == cuts
    assert len({tuple(cut.id for cut in sample_hours(cuts, 0.4 * whole, numpy_rng("test", n))) for n in range(9)}) > 1
    with pytest.raises(
        InputError, match=r"^data\.hours=9 is more than the 0\.00\d h there are; leave it out to use all\.$"
    ):
        sample_hours(cuts, 9.0, numpy_rng("test", 1))

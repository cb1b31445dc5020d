"""Augmentation: on when asked, off when not, everywhere in the utterance, safe for the shortest, keyed."""

from dataclasses import replace

import numpy
import pytest
import torch
from scipy.stats import kstest

from moe_asr.config.data import AugmentConfig
from moe_asr.data.augmentation import augment_features, augment_samples, change_speed, draw_speed
from moe_asr.errors import InputError
from moe_asr.randomness import numpy_rng

OFF = AugmentConfig(speeds=[1.0], time_masks=0, mel_masks=0, substitutions=0)
T, F = 200, 80
FRAMES = numpy.arange(1.0, T + 1)[:, None].repeat(F, 1)  # every feature says its frame; 0 appears only as a mask
SAMPLES = torch.randn(1600, generator=torch.Generator().manual_seed(0)) * 0.1


def many(config: AugmentConfig, features: numpy.ndarray = FRAMES, times: int = 600) -> list[numpy.ndarray]:
    return [augment_features(features, config, numpy_rng("test", n)) for n in range(times)]


def is_uniform(values: list[int], size: int) -> bool:
    return bool(kstest((numpy.array(values) + 0.5) / size, "uniform").pvalue > 1e-3)


def test_off_changes_nothing() -> None:
    rng = numpy_rng("test")
    assert torch.equal(augment_samples(SAMPLES, OFF, rng), SAMPLES)
    assert numpy.array_equal(augment_features(FRAMES, OFF, rng), FRAMES)


def test_the_default_recipe_is_observed_on() -> None:
    rows = many(AugmentConfig(trim_frames=20), times=50)
    assert all((row[:, 0] == 0).any() or (row[:, -1] == 0).any() for row in rows)  # time masks
    assert all((row == 0).all(0).any() for row in rows)  # mel masks
    assert all((numpy.diff(row.max(1)) < 0).any() for row in rows)  # earlier frames come again
    assert all(len(row) < T for row in rows)
    lengths = {len(augment_samples(SAMPLES, AugmentConfig(), numpy_rng("test", n))) for n in range(50)}
    assert lengths == {1778, 1600, 1455}


def test_input_is_left_alone() -> None:
    features, samples = FRAMES.copy(), SAMPLES.clone()
    everything = AugmentConfig(speeds=[1.0], gain_db=6, trim_frames=5)
    augment_features(features, everything, numpy_rng("test"))
    augment_samples(samples, everything, numpy_rng("test"), dither=1.0)
    assert numpy.array_equal(features, FRAMES)
    assert torch.equal(samples, SAMPLES)


def test_time_masks_start_anywhere_and_have_every_length() -> None:
    rows = many(replace(OFF, time_masks=1, mask_value=-7.0))
    masks = [numpy.flatnonzero((row == -7.0).all(1)) for row in rows]
    assert all((numpy.diff(mask) == 1).all() for mask in masks)
    assert is_uniform([mask[0] for mask in masks], T)
    inner = [len(mask) for mask in masks if mask[0] < T - 50]
    assert (min(inner), max(inner)) == (1, 50)
    assert is_uniform([n - 1 for n in inner], 50)


def test_mel_masks_start_anywhere_and_have_every_length() -> None:
    rows = many(replace(OFF, mel_masks=1))
    masks = [numpy.flatnonzero((row == 0).all(0)) for row in rows]
    assert is_uniform([mask[0] for mask in masks], F)
    inner = [len(mask) for mask in masks if mask[0] < F - 10]
    assert (min(inner), max(inner)) == (1, 10)


def test_time_mask_share_limits_the_masks_of_short_utterances() -> None:
    rows = many(replace(OFF, time_masks=1, time_mask_share=0.2), FRAMES[:21])
    assert max(int((row == 0).all(1).sum()) for row in rows) == 4


def test_substitution_repeats_earlier_frames_of_the_same_utterance() -> None:
    rows = many(replace(OFF, substitutions=1))
    changed = [row[:, 0] != FRAMES[:, 0] for row in rows]
    starts = []
    for row, where in zip(rows, changed, strict=True):
        if not where.any():  # a span may be replaced by itself
            continue
        span = numpy.flatnonzero(where)
        back = FRAMES[span, 0] - row[span, 0]
        assert (numpy.diff(span) == 1).all()
        assert (back == back[0]).all()
        assert 0 < back[0] <= span[0]
        assert len(span) <= 30
        starts.append(int(span[0]))
    assert len(starts) > 500
    assert min(starts) < 20
    assert max(starts) > 180


def test_trim_cuts_less_than_half_of_the_end() -> None:
    rows = many(replace(OFF, trim_frames=20))
    assert {T - len(row) for row in rows} == set(range(1, 21))
    assert all(numpy.array_equal(row, FRAMES[: len(row)]) for row in rows)
    assert {len(row) for row in many(replace(OFF, trim_frames=20), FRAMES[:10])} == {6, 7, 8, 9, 10}


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_the_shortest_utterances_survive(frames: int) -> None:
    for row in many(AugmentConfig(trim_frames=20, time_mask_share=0.5), FRAMES[:frames], times=30):
        assert row.shape[1] == F
        assert frames / 2 < len(row) <= frames or frames == 0
    for size in range(4):
        samples = augment_samples(SAMPLES[:size], AugmentConfig(gain_db=3), numpy_rng("test"), dither=1.0)
        assert len(samples) in (size, -(-size * 10 // 9), -(-size * 10 // 11))


def test_arrays_and_tensors_agree() -> None:
    config = AugmentConfig(trim_frames=20)
    tensor = augment_features(torch.from_numpy(FRAMES), config, numpy_rng("test", 5))
    array = augment_features(FRAMES, config, numpy_rng("test", 5))
    assert isinstance(tensor, torch.Tensor)
    assert numpy.array_equal(tensor.numpy(), array)


def test_one_key_gives_one_result() -> None:
    config = AugmentConfig(gain_db=6)
    first, again, other = (augment_samples(SAMPLES, config, numpy_rng("test", n), 1.0) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first[:100], other[:100])


def test_switching_one_off_leaves_the_draws_of_the_others() -> None:
    both = many(replace(OFF, time_masks=2, mel_masks=2), times=20)
    time, mel = many(replace(OFF, time_masks=2), times=20), many(replace(OFF, mel_masks=2), times=20)
    assert all(numpy.array_equal(b == 0, (t == 0) | (m == 0)) for b, t, m in zip(both, time, mel, strict=True))
    rngs = [numpy_rng("test", 3) for _ in range(3)]
    loud = replace(OFF, gain_db=12)
    gain = augment_samples(SAMPLES, loud, rngs[0]) / SAMPLES
    noisy = augment_samples(SAMPLES, loud, rngs[1], dither=1.0)
    noise = augment_samples(SAMPLES, OFF, rngs[2], dither=1.0) - SAMPLES
    torch.testing.assert_close(noisy, SAMPLES * gain[0] + noise)


def test_speeds_are_equally_probable() -> None:
    rng = numpy_rng("test")
    speeds = [draw_speed(rng, [0.9, 1.0, 1.1]) for _ in range(3000)]
    assert all(abs(speeds.count(speed) - 1000) < 110 for speed in (0.9, 1.0, 1.1))


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.0, 1.05, 1.1])
def test_speed_changes_length_and_pitch(speed: float) -> None:
    def tone(hertz: float, size: int) -> torch.Tensor:
        return torch.sin(2 * torch.pi * hertz * torch.arange(size, dtype=torch.float64) / 16000)

    faster = change_speed(tone(500.0, 16000), speed)
    assert len(faster) == -int(-16000 // speed)
    middle = slice(100, -100)  # the tone's sudden start and end ring
    torch.testing.assert_close(faster[middle], tone(500 * speed, len(faster))[middle], atol=5e-3, rtol=0)


def test_gain_and_dither_have_the_asked_strength() -> None:
    gains = [augment_samples(SAMPLES, replace(OFF, gain_db=6), numpy_rng("test", n))[0] for n in range(300)]
    decibels = 20 * torch.log10(torch.stack(gains) / SAMPLES[0])
    assert bool(kstest((decibels.numpy() + 6) / 12, "uniform").pvalue > 1e-3)
    noise = augment_samples(torch.zeros(16000), OFF, numpy_rng("test"), dither=2.0) * 32768
    assert noise.dtype == torch.float32
    assert abs(float(noise.std()) - 2.0) < 0.05


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"speeds": []}, "speeds"),
        ({"trim_frames": -1}, "trim_frames=-1"),
        ({"time_mask_share": 2.0}, "between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(wrong: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        AugmentConfig(**wrong)

"""Training-time augmentation of one utterance, before batching, so that padding is never touched.

A fresh `rng` of one key gives one result. Each augmentation draws from a stream of its own, so switching one
off or changing its strength leaves the draws of all others as they are.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy
import torchaudio.functional
from numpy.random import Generator
from torch import Tensor

from moe_asr.config.data import AugmentConfig
from moe_asr.data.surroundings import Sounds, surround

Features = TypeVar("Features", numpy.ndarray, Tensor)
_NO_SOUNDS = Sounds()


def draw_speed(rng: Generator, speeds: Sequence[float]) -> float:
    """One of the speeds, all equally probable; costs one draw whatever their number."""
    return speeds[int(rng.random() * len(speeds))]


def change_speed(samples: Tensor, speed: float) -> Tensor:
    """(S,) -> (ceil(S / speed),): played `speed` times as fast, with the pitch, by sinc resampling."""
    ratio = Fraction(speed).limit_denominator(100)
    if ratio == 1 or not len(samples):
        return samples
    return torchaudio.functional.resample(samples, ratio.numerator, ratio.denominator)


def augment_samples(
    samples: Tensor, config: AugmentConfig, rng: Generator, dither: float = 0.0, sounds: Sounds = _NO_SOUNDS
) -> Tensor:
    """Speed, surroundings, gain, then dither of samples (S,) in [-1,1]; the speed changes their number.

    dither: standard deviation of white noise on the scale of 16-bit samples (`FeaturesConfig.dither`).
    """
    speed_rng, gain_rng, dither_rng, surroundings_rng = rng.spawn(4)
    samples = change_speed(samples, draw_speed(speed_rng, config.speeds))
    samples = surround(samples, config, surroundings_rng, sounds)
    if config.gain_db:
        samples = samples * 10 ** (gain_rng.uniform(-config.gain_db, config.gain_db) / 20)
    if dither:
        noise = samples.new_tensor(dither_rng.standard_normal(len(samples)))
        samples = samples + noise * (dither / 32768)
    return samples


def augment_features(features: Features, config: AugmentConfig, rng: Generator) -> Features:
    """SpecAugment, SpecSub and SpecTrim of log-mel features (T,F) before CMVN, as in the U2++ recipe.

    SpecAugment (arXiv 1904.08779, without time warping) masks time, then mel bins; SpecSub (U2++,
    arXiv 2106.05642) replaces spans by earlier ones; SpecTrim cuts the end. A span starts anywhere in the
    utterance with equal probability, has a length drawn from [1, longest] and is cut at the utterance's end.
    Returns new features (T',F), more than half as long; the input stays as it is.
    """
    time_rng, mel_rng, substitution_rng, trim_rng = rng.spawn(4)
    T, F = features.shape
    masked = _copy(features)
    for start, end in _spans(time_rng, config.time_masks, config.time_mask_frames, T):
        masked[start : min(end, start + int(config.time_mask_share * T))] = config.mask_value
    for start, end in _spans(mel_rng, config.mel_masks, config.mel_mask_bins, F):
        masked[:, start:end] = config.mask_value
    substituted = _copy(masked)
    for start, end in _spans(substitution_rng, config.substitutions, config.substitution_frames, T):
        back = int(substitution_rng.integers(start + 1))
        substituted[start:end] = masked[start - back : end - back]
    cut = int(trim_rng.integers(1, config.trim_frames + 1)) if config.trim_frames else 0
    return substituted[: T - cut] if cut < T / 2 else substituted


def _spans(rng: Generator, count: int, longest: int, size: int) -> Iterator[tuple[int, int]]:
    for _ in range(count if longest and size else 0):
        start = int(rng.integers(size))
        yield start, min(start + int(rng.integers(1, longest + 1)), size)


def _copy(features: Features) -> Features:
    return features.clone() if isinstance(features, Tensor) else features.copy()

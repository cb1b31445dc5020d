"""Global mean and variance of features, as U2++ normalises with them before the first layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor

from moe_asr.errors import InputError
from moe_asr.tensors import lengths_to_mask


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums over feature frames, float64; `a + b` covers the frames of both."""

    frames: int
    total: Tensor
    """(F,) sum of the features."""
    squares: Tensor
    """(F,) sum of their squares."""

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        return FeatureStatistics(self.frames + other.frames, self.total + other.total, self.squares + other.squares)

    def mean_istd(self) -> tuple[Tensor, Tensor]:
        """Mean (F,) and inverse standard deviation 1 / sqrt(max(E[x²] - mean², 1e-20)) (F,), float32.

        Raises InputError where no feature frame was counted.
        """
        if self.frames == 0:
            raise InputError("no feature frame to normalise by: every utterance is shorter than one window.")
        mean = self.total / self.frames
        variance = self.squares / self.frames - mean.square()
        return mean.float(), variance.clamp(min=1e-20).rsqrt().float()


def feature_statistics(batches: Iterable[tuple[Tensor, Tensor]]) -> FeatureStatistics:
    """Statistics of the valid feature frames of batches (features (B,T,F), feature_lengths (B,)).

    Raises InputError where there is no batch.
    """
    frames = (features[lengths_to_mask(lengths, features.shape[1])].double() for features, lengths in batches)
    parts = [FeatureStatistics(len(valid), valid.sum(0), valid.square().sum(0)) for valid in frames]
    if not parts:
        raise InputError("no utterance to estimate the feature mean and variance from.")
    return reduce(add, parts)

"""A padded batch of utterances, as the models take it and the data floor makes it."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """features (B,T,F) padded with 0, feature_lengths (B,), tokens (B,U) padded with -1, token_lengths (B,)."""

    ids: tuple[str, ...]
    features: Tensor
    feature_lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    audio_seconds: float

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        names = ("features", "feature_lengths", "tokens", "token_lengths")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names})

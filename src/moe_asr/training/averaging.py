"""The final model: the mean of the weights of several checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe_asr.config.program import Keep


@dataclass(frozen=True)
class Candidate:
    """Weights saved at a validation, with the dev error that they got."""

    step: int
    error: float

    @property
    def file(self) -> str:
        return f"step={self.step:07d}.pt"


def retain(candidates: Sequence[Candidate], keep: Keep, count: int) -> list[Candidate]:
    """The candidates that will be averaged: the `count` best by dev error (ties: the newer), or the newest."""
    order = (lambda c: (c.error, -c.step)) if keep is Keep.best else (lambda c: (-c.step, 0.0))
    return sorted(candidates, key=order)[:count]


def average(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of state dicts, summed in float64; what is not floating point (counters) comes from the first file."""
    total: dict[str, Tensor] = {}
    for file in files:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        for name, value in weights.items():
            if not value.is_floating_point():
                total.setdefault(name, value)
            else:
                total[name] = total[name] + value.double() if name in total else value.double()
        dtypes = {name: value.dtype for name, value in weights.items()}
    return {
        name: (value / len(files)).to(dtypes[name]) if value.is_floating_point() else value
        for name, value in total.items()
    }

"""Sinusoidal positions, computed for the positions asked: no table, hence no longest utterance."""

import math

import torch
from torch import Tensor, nn

from moe_asr.modules.dropout import Dropout


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Positions (...) -> (..., width): sines at even, cosines at odd dimensions (arXiv 1706.03762, section 3.5).

    Computed in float32, like the tables of the models that may be imported.
    """
    even = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions.unsqueeze(-1).float() * torch.exp(even * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :width]


class RelativePositions(nn.Module):
    """Leaves the position to the attention: (x (B,N,d), positions (N,) or (B,N)) -> (scaled x, sinusoids)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        return self.dropout(x * width**0.5), self.dropout(sinusoids(positions, width).to(x.dtype))


class AbsolutePositions(nn.Module):
    """Adds the position to the input: (x (B,N,d), positions (N,) or (B,N)) -> (B,N,d)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        width = x.shape[-1]
        return self.dropout(x * width**0.5 + sinusoids(positions, width).to(x.dtype))

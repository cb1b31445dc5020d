"""Where frames and tokens are, computed for the positions asked: no table, hence no longest utterance.

Each kind maps (x (B,N,d), positions (N,) or (B,N)) to the x that goes in and what the attention is told besides.
"""

import math

import torch
from torch import Tensor, nn

from moe_asr.config.model import EncoderConfig, Positions
from moe_asr.modules.dropout import Dropout


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Positions (...) -> (..., width): sines at even, cosines at odd dimensions (arXiv 1706.03762, section 3.5).

    Computed in float32, like the tables of the models that may be imported.
    """
    even = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions.unsqueeze(-1).float() * torch.exp(even * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[..., :width]


Places = tuple[Tensor, int]
"""Positions (B|1,N), and a number that is larger than any of them."""


class RelativePositions(nn.Module):
    """Leaves the position to the attention: (scaled x, sinusoids), or `places` where it makes these itself."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout, self.places = Dropout(dropout), False

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | Places]:
        width = x.shape[-1]
        if self.places and not torch.is_grad_enabled():
            positions = positions.view(-1, x.shape[1]).contiguous()
            return x * width**0.5, (positions, int(positions.max()) + 1)
        return self.dropout(x * width**0.5), self.dropout(sinusoids(positions, width).to(x.dtype))


class AbsolutePositions(nn.Module):
    """Adds the position to the input.

    shift (positions), scale: augmentation in training (CAPE, arXiv 2106.03143, section 3.1): the positions of an
    utterance move together by up to `shift`, each by up to half a position, and all stretch by up to `scale`.
    """

    def __init__(self, dropout: float, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.dropout, self.shift, self.log_scale = Dropout(dropout), shift, math.log(scale)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, None]:
        width = x.shape[-1]
        if self.training and self.shift > 0:
            together = torch.rand(2, len(x), 1, device=x.device) * 2 - 1
            alone = torch.rand(x.shape[:2], device=x.device) - 0.5
            positions = (positions + self.shift * together[0] + alone) * (self.log_scale * together[1]).exp()
        return self.dropout(x * width**0.5 + sinusoids(positions, width).to(x.dtype)), None


class RotaryPositions(nn.Module):
    """Leaves the position to the attention: (scaled x, cosines and sines (N,2,c/2) or (B,N,2,c/2) of its angles).

    c: the width of a head (RoFormer, arXiv 2104.09864, section 3.2.2).
    """

    def __init__(self, dropout: float, head_width: int) -> None:
        super().__init__()
        self.dropout, self.head_width = Dropout(dropout), head_width

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        even = torch.arange(0, self.head_width, 2, device=x.device, dtype=torch.float64)
        angles = positions.unsqueeze(-1) * torch.exp(even * (-math.log(10000.0) / self.head_width))
        return self.dropout(x * x.shape[-1] ** 0.5), torch.stack([angles.cos(), angles.sin()], -2).to(x.dtype)


def make_positions(config: EncoderConfig) -> nn.Module:
    match config.positions:
        case Positions.relative:
            return RelativePositions(config.position_dropout)
        case Positions.rotary:
            return RotaryPositions(config.position_dropout, config.width // config.heads)
        case Positions.sinusoidal:
            return AbsolutePositions(config.position_dropout)
        case Positions.cape:
            return AbsolutePositions(config.position_dropout, config.cape_shift, config.cape_scale)

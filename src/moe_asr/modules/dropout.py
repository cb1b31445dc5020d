"""Dropout whose random bits are cheap on CPUs, where torch's own takes about a seventh of a training step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zeroes a share `rate` < 1 of x and scales the rest by 1 / (1 - rate), drawing from torch's global generator.

    On CPUs each drawn 64-bit number decides about four elements, so that the rate is rounded to 1 / 65536.
    """
    if not x.is_cpu:
        return F.dropout(x, rate)
    drawn = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) >= round(rate * 2**16) - 2**15
    return x * kept.to(x.dtype).mul_(1 / (1 - rate))


class Dropout(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate) if self.training and self.rate > 0 else x

"""Feature frames (10 ms) -> frames (40 ms): two strided convolutions without padding, or stacking."""

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.model import EncoderConfig, Subsampling

FACTOR = 4
"""Feature frames per frame."""
OVERLAP = {Subsampling.conv2d: 3, Subsampling.stack: 0}
"""Feature frames that two neighbouring windows share: n frames are made of ``FACTOR * n + OVERLAP``."""

Count = TypeVar("Count", int, Tensor)


def frame_lengths(feature_lengths: Count, subsampling: Subsampling) -> Count:
    """How many frames so many feature frames give."""
    frames = (feature_lengths - OVERLAP[subsampling]) // FACTOR
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)


class ConvolutionalSubsampling(nn.Module):
    """(B,T,F) -> (B,N,d) with ``N = frame_lengths(T)``: two 3x3 convolutions of stride 2, then a projection.

    Needs ``T >= 7``.
    """

    def __init__(self, mel_bins: int, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, 2)
        self.conv2 = nn.Conv2d(channels, channels, 3, 2)
        self.project = nn.Linear(channels * (((mel_bins - 1) // 2 - 1) // 2), width)

    def forward(self, features: Tensor) -> Tensor:
        # One input channel makes a poor convolution but a good matrix product, whose output is channels-last:
        # the layout in which the second convolution and the projection need no copy. Twice as fast on CPUs.
        patches = features.unfold(1, 3, 2).unfold(2, 3, 2).flatten(-2)
        x = F.linear(patches, self.conv1.weight.flatten(1), self.conv1.bias).relu().permute(0, 3, 1, 2)
        x = self.conv2(x).relu().permute(0, 2, 3, 1)  # (B, N, F', d)
        # The projection expects channel-major inputs; permuting its weight is cheaper than permuting x.
        weight = self.project.weight.unflatten(1, (-1, x.shape[2])).transpose(1, 2).flatten(1)
        return F.linear(x.flatten(2), weight, self.project.bias)


class FrameStacking(nn.Module):
    """(B,T,F) -> (B,N,d) with ``N = T // 4``: a linear map of four feature frames side by side (arXiv 2507.05724)."""

    def __init__(self, mel_bins: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(FACTOR * mel_bins, width)

    def forward(self, features: Tensor) -> Tensor:
        whole = features.shape[1] // FACTOR * FACTOR
        return self.project(features[:, :whole].unflatten(1, (-1, FACTOR)).flatten(2))


def make_subsampling(config: EncoderConfig, mel_bins: int) -> nn.Module:
    if config.subsampling is Subsampling.stack:
        return FrameStacking(mel_bins, config.width)
    return ConvolutionalSubsampling(mel_bins, config.width, config.subsampling_channels or config.width)

"""Feature frames (10 ms) -> frames (40 ms): two strided convolutions without padding, or stacking."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.inference import InferencePrecision
from moe_asr.config.model import EncoderConfig, Subsampling
from moe_asr.modules.fused import AFTER_ACTIVATION
from moe_asr.modules.packed import Identity, Linear, give_up, identity, pack_linear

FACTOR = 4
"""Feature frames per frame."""
OVERLAP = {Subsampling.conv2d: 3, Subsampling.stack: 0}
"""Feature frames that two neighbouring windows share: n frames are made of ``FACTOR * n + OVERLAP``."""

BLOCK = 16
"""Frames that a packed subsampling works on at once, so that patches stay in the cache."""

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
        x = self.conv2(self._first(features).permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)  # (B,N,F',d)
        return F.linear(x.flatten(2), self._projection(), self.project.bias)

    def _first(self, features: Tensor) -> Tensor:
        """(B,T,F) -> (B,T',F',d)."""
        # One input channel makes a poor convolution but a good matrix product, whose output is channels-last:
        # the layout in which the second convolution and the projection need no copy. Twice as fast on CPUs.
        patches = features.unfold(1, 3, 2).unfold(2, 3, 2).flatten(-2)
        return F.linear(patches, self.conv1.weight.flatten(1), self.conv1.bias).relu_()

    def _projection(self) -> Tensor:
        """The weight of the projection, which expects channel-major inputs, for channels-last ones."""
        return self.project.weight.unflatten(1, (self.conv2.out_channels, -1)).transpose(1, 2).flatten(1)


class PackedSubsampling(ConvolutionalSubsampling):
    """What `pack_subsampling` makes of one in place: parameters are the same, and rule as in a `PackedLinear`.

    The second convolution is a packed linear map of patches, some frames at a time.
    """

    packed: tuple[Linear, Linear]
    packed_from: Identity

    def forward(self, features: Tensor) -> Tensor:
        if torch.is_grad_enabled() or identity(self.parameters()) != self.packed_from:
            return super().forward(features)
        second, third = self.packed
        frames, step = frame_lengths(features.shape[1], Subsampling.conv2d), max(1, BLOCK // len(features))
        blocks = []
        for first in range(0, frames, step):
            window = features[:, FACTOR * first : FACTOR * min(first + step, frames) + OVERLAP[Subsampling.conv2d]]
            patches = self._first(window).unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3)  # (B,N,F',3,3,d)
            x = second(patches.flatten(3).flatten(0, 2))
            blocks.append(third(x.view(patches.shape[0] * patches.shape[1], -1)).view(*patches.shape[:2], -1))
        return torch.cat(blocks, 1)


def pack_subsampling(
    module: ConvolutionalSubsampling, precision: InferencePrecision, release: bool = False, fuse: bool = False
) -> None:
    """Raises InputError where the machine lacks the kernels."""
    weight, bias = module.conv2.weight.permute(0, 2, 3, 1).flatten(1), module.conv2.bias
    assert bias is not None
    second = pack_linear(weight, bias, precision, F.relu, AFTER_ACTIVATION, fuse)
    third = pack_linear(module._projection(), module.project.bias, precision, None, AFTER_ACTIVATION, fuse)
    if release:
        give_up(module.conv2.weight, module.project.weight)
    module.__class__ = PackedSubsampling
    assert isinstance(module, PackedSubsampling)
    module.packed, module.packed_from = (second, third), identity(module.parameters())


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

"""Kaldi-compatible log-mel filter bank, batched, on any device."""

import math

import torch
from torch import Tensor, nn

from moe_asr.config.data import FeaturesConfig, Window
from moe_asr.errors import InputError
from moe_asr.tensors import lengths_to_mask

LOW_HZ = 20.0
PREEMPHASIS = 0.97
INT16 = 32768.0
"""Kaldi works on the scale of 16-bit samples; ours lie in [-1, 1]."""


class LogMel(nn.Module):
    """Waveforms -> log-mel features, equal to Kaldi's `compute-fbank-feats` with snip-edges, without dither.

    Per window of 25 ms: subtract its mean, pre-emphasise (its first sample follows itself), window, zero-pad
    to a power of two, power spectrum, triangular filters on the mel scale from 20 Hz to Nyquist, natural
    logarithm floored at float32's epsilon (digital silence = -15.94).

    Feature frame t depends on samples [160 t, 160 t + 400) only (at 16 kHz). Hence a stream yields the
    features of the whole utterance: turn `samples_needed(n)` samples into n feature frames, then drop the
    first 160 n samples. The tables are no part of the state dict. `dtype` is that of samples and features.
    Raises InputError where a mel filter would hold no frequency of the spectrum.
    """

    window: Tensor
    delayed_window: Tensor
    mel: Tensor

    def __init__(self, config: FeaturesConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.sample_rate = config.sample_rate
        self.width = round(config.sample_rate * config.frame_length_ms / 1000)
        self.shift = round(config.sample_rate * config.frame_shift_ms / 1000)
        self.fft_size = 2 ** math.ceil(math.log2(self.width))
        self.mel_bins = config.mel_bins
        window = _window(config.window, self.width) * INT16
        # A sample enters the pre-emphasised frame twice: as itself and, one later, times -0.97.
        window[0] *= 1 - PREEMPHASIS
        self.register_buffer("delayed_window", (-PREEMPHASIS * window[1:]).to(dtype), persistent=False)
        self.register_buffer("window", window.to(dtype), persistent=False)
        # Squared real and imaginary parts lie side by side; doubling the rows adds them inside the product.
        mel = _mel_filters(config, self.fft_size).repeat_interleave(2, dim=0)
        self.register_buffer("mel", mel.to(dtype), persistent=False)

    def feature_lengths(self, sample_lengths: Tensor) -> Tensor:
        """Samples -> feature frames: the windows that fit whole, 0 for less than one window."""
        return ((sample_lengths - self.width) // self.shift + 1).clamp(min=0)

    def samples_needed(self, feature_frames: int) -> int:
        """The fewest samples that yield so many feature frames."""
        return (feature_frames - 1) * self.shift + self.width if feature_frames > 0 else 0

    def forward(self, samples: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """samples (B,S) in [-1,1], sample_lengths (B,) -> features (B,T,F), feature_lengths (B,).

        Padding samples may hold anything: no valid feature frame sees them. Padding feature frames are 0.
        """
        lengths = self.feature_lengths(sample_lengths)
        if samples.shape[1] < self.width:
            return samples.new_zeros(samples.shape[0], 0, self.mel_bins), lengths
        # One utterance at a time stays in a CPU's cache, which doubles the speed.
        blocks = samples.split(1 if samples.device.type == "cpu" else samples.shape[0])
        features = torch.cat([self._log_mel(block) for block in blocks])
        valid = lengths_to_mask(lengths, features.shape[1])
        return features.masked_fill(~valid.unsqueeze(-1), 0.0), lengths

    def _log_mel(self, samples: Tensor) -> Tensor:
        frames = samples.unfold(1, self.width, self.shift)
        frames = frames - frames.mean(-1, keepdim=True)
        shaped = frames * self.window
        shaped[..., 1:].addcmul_(frames[..., :-1], self.delayed_window)
        spectrum = torch.view_as_real(torch.fft.rfft(shaped, n=self.fft_size)).flatten(-2)
        return (spectrum.square() @ self.mel).clamp(min=torch.finfo(torch.float32).eps).log()


def _window(kind: Window, width: int) -> Tensor:
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(width, dtype=torch.float64) / (width - 1))
    return hann.pow(0.85) if kind is Window.povey else 0.08 + 0.92 * hann


def _mel_filters(config: FeaturesConfig, fft_size: int) -> Tensor:
    """(fft_size // 2 + 1, F): half-overlapping triangles of equal width on the scale 1127 ln(1 + f / 700)."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log(1.0 + hertz / 700.0)

    # In float32 as in Kaldi, whose rounding shifts the edges enough to change narrow filters by 2e-4.
    nyquist = config.sample_rate / 2
    low, high = mel(torch.tensor([LOW_HZ, nyquist], dtype=torch.float64)).tolist()
    edges = low + torch.arange(config.mel_bins + 2, dtype=torch.float32) * ((high - low) / (config.mel_bins + 1))
    bins = mel(torch.arange(fft_size // 2 + 1, dtype=torch.float32) * (config.sample_rate / fft_size)).unsqueeze(1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0.0)
    if not bool((filters.sum(0) > 0).all()):
        raise InputError(
            f"features.mel_bins={config.mel_bins} is too many for windows of {config.frame_length_ms:g} ms: "
            "some filters lie between two frequencies of the spectrum; write fewer mel_bins."
        )
    return filters

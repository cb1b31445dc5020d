"""The filter bank against Kaldi's numbers, against an independent implementation, and under padding."""

from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from moe_asr.config.data import FeaturesConfig, Window
from moe_asr.errors import InputError
from moe_asr.features.fbank import LogMel

PARITY = Path(__file__).parents[2] / "../shared/parity/fbank"
FLOOR = float(numpy.log(numpy.finfo(numpy.float32).eps))
POVEY = FeaturesConfig()
HAMMING = FeaturesConfig(mel_bins=40, window=Window.hamming)


def log_mel(samples: Tensor, config: FeaturesConfig = POVEY) -> Tensor:
    features, lengths = LogMel(config, samples.dtype)(samples[None], torch.tensor([len(samples)]))
    assert features.shape == (1, int(lengths), config.mel_bins)
    return features[0]


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 0.4 - 0.2


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize(("config", "key"), [(POVEY, "fbank80"), (HAMMING, "fbank40hamming")])
def test_equals_the_golden_numbers(name: str, config: FeaturesConfig, key: str) -> None:
    if not PARITY.exists():
        pytest.skip("the golden numbers of ../shared/parity are not here")
    samples = torch.from_numpy(numpy.load(PARITY / "inputs.npz")[f"wav_{name}"]).float() / 32768
    expected = torch.from_numpy(numpy.load(PARITY / "outputs.npz")[f"{key}_{name}"])
    torch.testing.assert_close(log_mel(samples, config), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("config", [POVEY, HAMMING, FeaturesConfig(sample_rate=8000, mel_bins=23)])
def test_equals_kaldi_of_torchaudio(config: FeaturesConfig) -> None:
    from torchaudio.compliance import kaldi  # not before moe_asr, which makes it importable without CUDA

    samples = noise(config.sample_rate) + 0.1  # an offset, so that removing it counts
    expected = kaldi.fbank(
        samples[None] * 32768,
        num_mel_bins=config.mel_bins,
        sample_frequency=config.sample_rate,
        window_type=config.window.value,
        energy_floor=0.0,
    )
    torch.testing.assert_close(log_mel(samples, config), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(log_mel(samples.float(), config), expected.float(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 5000.0])
def test_a_tone_peaks_in_the_filter_of_its_pitch(frequency: float) -> None:
    tone = 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(8000) / 16000)
    low, high, pitch = (1127 * numpy.log(1 + f / 700) for f in (20.0, 8000.0, frequency))
    centre = (pitch - low) / (high - low) * 81 - 1
    peaks = log_mel(tone).argmax(-1)
    assert (peaks - centre).abs().max() < 1


def test_silence_and_constant_offset_lie_on_the_floor() -> None:
    torch.testing.assert_close(log_mel(torch.zeros(800)), torch.full((3, 80), FLOOR))
    torch.testing.assert_close(log_mel(torch.full((800,), 0.5)), torch.full((3, 80), FLOOR))


def test_lengths_count_whole_windows() -> None:
    log = LogMel(POVEY)
    samples = torch.tensor([0, 399, 400, 559, 560, 16000])
    assert log.feature_lengths(samples).tolist() == [0, 0, 1, 1, 2, 98]
    assert [log.samples_needed(n) for n in range(4)] == [0, 400, 560, 720]
    for frames in (1, 7, 100):
        needed = log.samples_needed(frames)
        assert log.feature_lengths(torch.tensor([needed - 1, needed])).tolist() == [frames - 1, frames]


def test_padding_changes_nothing_and_becomes_zero() -> None:
    samples = noise(4, 4000)
    lengths = torch.tensor([4000, 2001, 399, 0])
    padded = samples.masked_fill(torch.arange(4000) >= lengths[:, None], float("nan"))
    features, feature_lengths = LogMel(POVEY, torch.float64)(padded, lengths)
    assert feature_lengths.tolist() == [23, 11, 0, 0]
    for row, (size, frames) in enumerate(zip(lengths.tolist(), feature_lengths.tolist(), strict=True)):
        assert (features[row, frames:] == 0).all()
        alone = log_mel(samples[row, :size])
        torch.testing.assert_close(features[row, :frames], alone, atol=1e-10, rtol=0)


def test_blocks_of_a_stream_yield_the_features_of_the_whole() -> None:
    samples = noise(16000)
    log = LogMel(POVEY, torch.float64)
    blocks = []
    for frames in (1, 3, 20, 74):
        needed = log.samples_needed(frames)
        blocks.append(log(samples[None, :needed], torch.tensor([needed]))[0][0])
        samples = samples[frames * 160 :]
    torch.testing.assert_close(torch.cat(blocks), log_mel(noise(16000)), atol=1e-10, rtol=0)


def test_tables_stay_out_of_checkpoints() -> None:
    assert not LogMel(POVEY).state_dict()


def test_refuses_filters_narrower_than_the_spectrum() -> None:
    with pytest.raises(InputError, match=r"features\.mel_bins=200 is too many"):
        LogMel(FeaturesConfig(mel_bins=200))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_cuda_device_agrees() -> None:
    samples, lengths = noise(3, 16000).float(), torch.tensor([16000, 9000, 100])
    expected, _ = LogMel(POVEY)(samples, lengths)
    features, _ = LogMel(POVEY).cuda()(samples.cuda(), lengths.cuda())
    torch.testing.assert_close(features.cpu(), expected, atol=2e-3, rtol=0)

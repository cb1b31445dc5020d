"""Feature statistics: right numbers, whatever the batching and the padding."""

import pytest
import torch

from moe_asr.errors import InputError
from moe_asr.features.cmvn import feature_statistics

FEATURES = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 5.0, 0.1]) - 12


def batch(*utterances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(u) for u in utterances])
    padded = torch.nn.utils.rnn.pad_sequence(list(utterances), batch_first=True, padding_value=1e6)
    return padded, lengths


def test_mean_and_inverse_deviation() -> None:
    mean, istd = feature_statistics([batch(FEATURES)]).mean_istd()
    assert mean.dtype == istd.dtype == torch.float32
    torch.testing.assert_close(mean, FEATURES.double().mean(0).float())
    torch.testing.assert_close(istd, 1 / FEATURES.double().std(0, correction=0).float())
    normalised = (FEATURES - mean) * istd
    torch.testing.assert_close(normalised.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)


def test_batching_and_padding_do_not_matter() -> None:
    whole = feature_statistics([batch(FEATURES)])
    parts = feature_statistics([batch(FEATURES[:7], FEATURES[7:20], FEATURES[:0]), batch(FEATURES[20:])])
    assert parts.frames == whole.frames == 50
    torch.testing.assert_close(parts.mean_istd(), whole.mean_istd())


def test_merged_statistics_cover_both() -> None:
    merged = feature_statistics([batch(FEATURES[:11])]) + feature_statistics([batch(FEATURES[11:])])
    torch.testing.assert_close(merged.mean_istd(), feature_statistics([batch(FEATURES)]).mean_istd())


def test_a_constant_bin_gives_a_finite_scale() -> None:
    mean, istd = feature_statistics([batch(torch.full((5, 2), 3.0))]).mean_istd()
    assert mean.tolist() == [3.0, 3.0]
    torch.testing.assert_close(istd, torch.full((2,), 1e10))


def test_nothing_to_count_is_refused() -> None:
    with pytest.raises(InputError, match="no utterance"):
        feature_statistics([])
    with pytest.raises(InputError, match="no feature frame"):
        feature_statistics([batch(FEATURES[:0])]).mean_istd()

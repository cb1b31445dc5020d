"""The intervals cover what they say; `moe-asr compare simulate=10000` is the whole table of experiments/."""

import numpy
import pytest
from scipy.special import stdtrit

from moe_asr.measure.comparison import crossed
from moe_asr.measure.comparison_coverage import (
    POPULATIONS,
    Population,
    coverage_of_checkpoints,
    coverage_of_methods,
    coverage_of_suites,
    simulated,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seeds differ", "as in the balance study", "skewed, speakers differ"])
def test_intervals_of_methods_cover(name: str) -> None:
    for speakers, draws in ((5, 2000), (8, 2000), (40, 500)):
        for seeds in (3, 10):
            shares = coverage_of_methods(POPULATIONS[name], draws, seeds, speakers, 0.8)
            assert all(0.93 <= share <= 1.0 for share in shares)
            assert speakers < 40 or shares[0] < 0.985  # not by being far too wide


@pytest.mark.slow
def test_unpaired_intervals_of_runs_that_share_nothing_cover() -> None:
    apart = Population(speaker=0.5, method_speaker=0.05, method_seed=0.1, cell=0.1, order=0.0)
    for speakers in (5, 40):
        assert 0.935 <= coverage_of_methods(apart, 1000, 5, speakers, 0.8)[1] < 0.995


@pytest.mark.slow
def test_intervals_of_checkpoints_cover() -> None:
    for speakers in (5, 8):
        assert coverage_of_checkpoints(POPULATIONS["skewed, speakers differ"], 1000, speakers, 0.8) >= 0.935


def test_speakers_taken_as_fixed_would_not_cover() -> None:
    """What an interval over seeds alone says of new speakers: the reason for the crossed one."""
    data = simulated(POPULATIONS["speakers differ"], 200, 10, 8, 0.8, numpy.random.default_rng(1))
    shares = []
    for a, b in (data, tuple(errors.sum(axis=-1, keepdims=True) for errors in data)):
        estimate, error, df, _ = crossed(a, b, paired=True)
        shares.append((abs(estimate - numpy.log(0.8)) <= stdtrit(df, 0.975) * error).mean())
    assert shares[0] > 0.92 > 0.8 > shares[1]


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_means_over_domains_cover(seeds: int) -> None:
    for name in ("seeds differ", "skewed, speakers differ"):
        for share in coverage_of_suites(POPULATIONS[name], 1000, seeds, 8, 0.8):
            assert 0.93 <= share <= 0.999
        for share in coverage_of_suites(POPULATIONS[name], 500, seeds, 40, 0.8):
            assert 0.93 <= share < 0.985

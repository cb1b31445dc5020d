import dataclasses

import numpy
import pytest
from scipy.special import stdtrit

from moe_asr.measure.comparison import Spread, crossed
from moe_asr.measure.comparison_coverage import Population, simulated
from moe_asr.measure.comparison_power import DEFAULT, power, power_lines, seeds_needed, speakers_needed


def test_power_is_what_simulated_data_have() -> None:
    """Where counts are many, so that the spread is that of the log factors alone."""
    population = Population(speaker=0.0, method_speaker=0.1, method_seed=0.05, cell=0.1)
    a, b = simulated(population, 2000, 5, 20, 0.9, numpy.random.default_rng(1))
    estimate, error, df, _ = crossed(a, b, paired=True)
    found = (abs(estimate) > stdtrit(df, 0.975) * error).mean()
    counted = 2 / (250 * 0.1)  # variance of the log ratio of two Poisson counts
    spread = Spread(0.05, 0.1, (0.1**2 + counted) ** 0.5, 0.9, True, 250)
    assert found == pytest.approx(power(spread, 10, 5, 20), abs=0.06)
    assert 0.4 < found < 0.8


def test_more_of_anything_needs_less_of_the_rest() -> None:
    needed = [seeds_needed(DEFAULT, 5, speakers) or 99 for speakers in (20, 40, 160)]
    assert needed == sorted(needed, reverse=True)
    assert needed[-1] < needed[0]
    assert (seeds_needed(DEFAULT, 5, 40, times=4.0) or 99) < (seeds_needed(DEFAULT, 5, 40) or 99)
    assert (seeds_needed(DEFAULT, 10, 40) or 99) < (seeds_needed(DEFAULT, 5, 40) or 99)
    assert seeds_needed(dataclasses.replace(DEFAULT, speaker=0.3), 5, 10) is None
    assert (speakers_needed(DEFAULT, 10) or 9999) < (speakers_needed(DEFAULT, 5) or 9999)
    assert speakers_needed(dataclasses.replace(DEFAULT, cell=100.0), 5) is None


def test_the_seeds_needed_are_the_fewest_that_are_enough() -> None:
    seeds = seeds_needed(DEFAULT, 8, 40)
    assert seeds is not None
    assert power(DEFAULT, 8, seeds, 40) >= 0.8 > power(DEFAULT, 8, seeds - 1, 40)
    assert any(
        f"40 speakers, 2400 utterances    {seeds} paired seeds of each" in line for line in power_lines(DEFAULT, 8, 60)
    )

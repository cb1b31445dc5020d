"""How often the 95 % intervals of `moe_asr.measure.comparison` cover the truth, by simulation.

Run s of a method makes Poisson(n_g R m_g f_s ...) errors on speaker g, with log-normal factors of mean 1 for the
speaker (both methods fail more on the same ones), the seed (of data order, both methods), and beside these, for each
method, the speaker, the seed, and seed x speaker. The truth is the ratio of the methods' expected rates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy
from scipy.special import stdtrit

from moe_asr.measure.comparison import Array, compare_checkpoints, crossed
from moe_asr.measure.comparison_suite import Mean, crossed_means
from moe_asr.randomness import numpy_rng

RATE, TOKENS, BLOCK = 0.1, 250, 500


@dataclass(frozen=True)
class Population:
    """Standard deviations of log factors; those of a method are of log(B / A), half the variance in each."""

    speaker: float
    """Of rates between speakers."""
    method_speaker: float
    method_seed: float
    cell: float
    order: float = 0.1
    """Of the data order, which paired seeds share."""


POPULATIONS = {
    "nothing but counts": Population(0.5, 0.0, 0.0, 0.0),
    "seeds differ": Population(0.5, 0.02, 0.1, 0.1),
    "speakers differ": Population(0.5, 0.2, 0.01, 0.1),
    "both differ": Population(0.5, 0.1, 0.05, 0.1),
    "as in the balance study": Population(0.8, 0.06, 0.1, 0.2),
    "skewed, speakers differ": Population(0.8, 0.3, 0.05, 0.2),
    "very skewed": Population(1.1, 0.1, 0.05, 0.1),
}


def simulated(
    population: Population, draws: int, seeds: int, speakers: int, ratio: float, rng: numpy.random.Generator
) -> tuple[Array, Array]:
    """Errors of A and B, (draws, seeds, speakers); the expected error rate of B is `ratio` times that of A."""

    def factor(deviation: float, *shape: int) -> Array:
        return numpy.exp(deviation * rng.standard_normal((draws, *shape)) - deviation**2 / 2)

    expected = RATE * numpy.round(rng.uniform(0.6, 1.4, (draws, 1, speakers)) * TOKENS)
    expected = expected * factor(population.speaker, 1, speakers) * factor(population.order, seeds, 1)
    half = 0.5**0.5
    a, b = (
        rng.poisson(
            times
            * expected
            * factor(half * population.method_speaker, 1, speakers)
            * factor(half * population.method_seed, seeds, 1)
            * factor(half * population.cell, seeds, speakers)
        ).astype(float)
        for times in (1.0, ratio)
    )
    return a, b


def coverage_of_methods(
    population: Population, draws: int, seeds: int, speakers: int, ratio: float
) -> tuple[float, float]:
    """Share of `draws` data sets whose interval holds the truth, with the seeds paired and not."""
    rng = numpy_rng("coverage", seeds, speakers, f"{population} {ratio}")
    hits = numpy.zeros(2)
    for start in range(0, draws, BLOCK):
        data = simulated(population, min(BLOCK, draws - start), seeds, speakers, ratio, rng)
        for i, paired in enumerate((True, False)):
            estimate, error, df, _ = crossed(*data, paired)
            hits[i] += (abs(estimate - numpy.log(ratio)) <= stdtrit(df, 0.975) * error).sum()
    return float(hits[0] / draws), float(hits[1] / draws)


def coverage_of_checkpoints(population: Population, draws: int, speakers: int, ratio: float) -> float:
    """The same for one run of each, whose seeds are no part of the question."""
    rng = numpy_rng("coverage", 1, speakers, f"{population} {ratio}")
    fixed = Population(population.speaker, population.method_speaker, 0.0, population.cell, 0.0)
    a, b = simulated(fixed, draws, 1, speakers, ratio, rng)
    found = (
        compare_checkpoints(x[0], y[0], numpy.full(speakers, TOKENS), range(speakers))
        for x, y in zip(a, b, strict=True)
    )
    bounds = numpy.array([c.relative_ci95 or (numpy.nan, numpy.nan) for c in found])
    return float(((bounds[:, 0] <= ratio - 1) & (ratio - 1 <= bounds[:, 1])).mean())


LEVELS, STEEPNESS, OTHERS = numpy.array([0.3, 1.0, 3.0, 1.0]), numpy.array([0.5, 1.0, 1.5, 1.0]), 8
"""Of four domains: error rates over `RATE`, and which power of `ratio` B makes of them; the last one's own speakers."""


def coverage_of_suites(
    population: Population, draws: int, seeds: int, speakers: int, ratio: float
) -> tuple[float, float]:
    """Of the plain and the geometric mean of four domains, with paired seeds; seeds = 1: of two checkpoints.

    Half of the variance of what a method does to a speaker or a seed is common to all domains.
    """
    rng = numpy_rng("coverage of suites", seeds, speakers, f"{population} {ratio}")
    G, ratios = speakers + OTHERS, ratio**STEEPNESS
    spoken = numpy.ones((G, len(LEVELS)))
    spoken[:speakers, -1] = spoken[speakers:, :-1] = 0
    truths = numpy.log((LEVELS * ratios).sum() / LEVELS.sum()), numpy.log(ratios).mean()
    of_seed, order = (population.method_seed, population.order) if seeds > 1 else (0.0, 0.0)
    hits = numpy.zeros(2)
    for start in range(0, draws, BLOCK):
        size = min(BLOCK, draws - start)
        n = spoken * numpy.round(rng.uniform(0.6, 1.4, (G, 1)) * TOKENS)

        def factor(deviation: float, *shape: int, size: int = size) -> Array:
            return numpy.exp(deviation * rng.standard_normal((size, *shape)) - deviation**2 / 2)

        both = RATE * LEVELS * n * factor(population.speaker, 1, G, 1) * factor(order, seeds, 1, 1)
        both = both * factor(0.2, 1, G, len(LEVELS))
        a, b = (
            rng.poisson(
                times
                * both
                * factor(population.method_speaker / 2, 1, G, 1)
                * factor(population.method_speaker / 2, 1, G, len(LEVELS))
                * factor(of_seed / 2, seeds, 1, 1)
                * factor(of_seed / 2, seeds, 1, len(LEVELS))
                * factor(0.5**0.5 * population.cell, seeds, G, len(LEVELS))
            ).astype(float)
            for times in (1.0, ratios)
        )
        for i, (mean, truth) in enumerate(zip(Mean, truths, strict=True)):
            (of_a, of_b), error, df = crossed_means(a, b, n, mean, paired=True)
            hits[i] += (abs(numpy.log(of_b / of_a) - truth) <= stdtrit(df, 0.975) * error).sum()
    return float(hits[0] / draws), float(hits[1] / draws)


def coverage_table(draws: int) -> Iterator[str]:
    """Lines for the terminal, as they are computed: percent covered at 3, 5, 10 seeds and 5, 8, 40 speakers."""
    yield f"{draws} data sets a cell; percent of 95 % intervals that hold the truth, for B as good as A / 20 % better"
    counts = [(seeds, speakers) for speakers in (5, 8, 40) for seeds in (3, 5, 10)]
    yield f"{'seeds x speakers':<34}" + "".join(f"{f'{seeds} x {speakers}':>15}" for seeds, speakers in counts)
    lowest = 1.0
    for name, population in POPULATIONS.items():
        cells = [[coverage_of_methods(population, draws, *n, ratio) for ratio in (1.0, 0.8)] for n in counts]
        lowest = min(lowest, *(share for cell in cells for pair in cell for share in pair))
        for i, kind in enumerate(("", ", unpaired")):
            shown = "".join(f"{f'{100 * null[i]:.1f} / {100 * better[i]:.1f}':>15}" for null, better in cells)
            yield f"{name + kind:<34}{shown}"
    yield f"lowest {100 * lowest:.1f}"
    yield f"means over four domains, {draws} data sets a cell; plain / geometric, for B about 20 % better"
    counts = [(seeds, speakers) for speakers in (5, 8, 40) for seeds in (1, 3, 5, 10)]
    yield f"{'(1: two checkpoints)':<34}" + "".join(f"{f'{seeds} x {speakers}':>15}" for seeds, speakers in counts)
    lowest = 1.0
    for name, population in POPULATIONS.items():
        found = [coverage_of_suites(population, draws, *n, 0.8) for n in counts]
        lowest = min(lowest, *(share for pair in found for share in pair))
        yield f"{name:<34}" + "".join(f"{f'{100 * p:.1f} / {100 * g:.1f}':>15}" for p, g in found)
    yield f"lowest {100 * lowest:.1f}"

"""Is B better than A? Two questions, which have different answers, and three answers.

*These two methods*: training again would give other runs, other speakers other errors. Several seeds of each::

    x_sg = e_B,sg / E_B - e_A,sg / E_A,   log(E_B / E_A) - truth ~ mean_s sum_g x_sg = seeds + speakers + cells

with the errors e of run s on speaker g and the mean E of a run's errors. The effects of seeds and speakers are
random and crossed (as items and subjects: Clark 1973), so with the variances v_s of the mean over seeds, v_g of the
sum over speakers and v_e of what is left, which v_s and v_g both contain::

    V = max(v_s + v_g - v_e, v_s, v_g),   df = V^2 / (v_s^2 / (S - 1) + v_g^2 / d + v_e^2 / (S - 1)(G - 1))

Satterthwaite's degrees of freedom, not below those of v_s or v_g; V is never below what either says alone, since
taking a noisy v_e away can leave too little or nothing. Speakers whose many errors decide are fewer than their
number: d = min(G - 1, (sum w^2)^2 / sum w^4), w being a speaker's share of the errors. Seeds that both methods have
are paired: the data order is the same, and what it does to both cancels. Otherwise v_s and v_e are sums over methods.

*These two checkpoints*: the same speakers, S = 1: x_g alone. From 20 speakers on a bootstrap-t over speakers.

*MAPSSWE* (Gillick and Cox 1989): these checkpoints on these speakers. Errors far apart do not depend on each other, so
differences by segment are averaged; it says nothing about other speakers or another training.

Everything is on the logarithm of the ratio: speakers' rates are skewed, but a better method is better by a factor, so
that skewness cancels. With differences and skewed speakers the same interval covered down to 82 %.
Coverage by simulation: `moe_asr.measure.comparison_coverage`, recorded in experiments/2026-11-20_compare_coverage.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtr, stdtrit

from moe_asr.config.score import FEWEST_SPEAKERS, Unit
from moe_asr.measure.errors import error_places
from moe_asr.measure.intervals import FEWEST_FOR_BOOTSTRAP, studentised_ratio, sum_by

Array = NDArray[numpy.float64]

GOOD_TOKENS = 2
"""Tokens running that both systems have right, which end a segment of MAPSSWE (as in NIST's SCTK)."""


@dataclass(frozen=True)
class Comparison:
    """B against A. Rates and relative differences are fractions: relative = rate_b / rate_a - 1."""

    rate_a: float
    rate_b: float
    relative: float | None
    """None where A has no error."""
    relative_ci95: tuple[float, float] | None
    p: float | None
    """Of no difference, two-sided; below 0.05 exactly where the interval excludes 0."""
    method: str
    """How, and what the interval covers; or why there is none."""
    seeds: tuple[int, int] | None
    """Runs of A and of B; None of two checkpoints."""
    speakers: int
    """0 if unknown."""
    spread: "Spread | None" = None

    @property
    def difference(self) -> float:
        return self.rate_b - self.rate_a

    @property
    def difference_ci95(self) -> tuple[float, float] | None:
        """What the relative interval means at A's error rate."""
        bounds = self.relative_ci95
        return bounds and (bounds[0] * self.rate_a, bounds[1] * self.rate_a)


@dataclass(frozen=True)
class Spread:
    """Standard deviations of log(E_B / E_A) that would come from one seed, one speaker, and one of both beside that."""

    seed: float
    speaker: float
    cell: float
    evenness: float
    """Degrees of freedom of the speakers over their number less one: 1 where all have as many errors."""
    paired: bool
    tokens: float
    """Reference tokens of a speaker, on average."""


def compare_methods(
    errors_a: ArrayLike,
    errors_b: ArrayLike,
    tokens: ArrayLike,
    speakers: Sequence[Hashable] | None = None,
    paired: bool = False,
) -> Comparison:
    """Method B against method A over seeds and speakers: t interval of the error ratio.

    errors_a (S, U), errors_b (T, U): errors of each run on each utterance, S and T at least 2; tokens (U,): of the
    references; speakers: of each utterance. paired: row i of both is of one seed. Counts summed over several cells of
    a grid (and tokens with them) compare the pooled methods. With fewer than 5 speakers, or unknown ones, the interval
    covers other trainings, tested on the same utterances. Raises ValueError for shapes that do not fit.
    """
    a, b, n = (numpy.asarray(values, dtype=float) for values in (errors_a, errors_b, tokens))
    if a.ndim != 2 or a.shape[1:] != n.shape or b.shape[1:] != n.shape or min(len(a), len(b)) < 2:
        raise ValueError(f"errors of shapes {a.shape} and {b.shape} do not fit at least 2 seeds x {n.shape} tokens")
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} seeds cannot be paired")
    seeds, count = (len(a), len(b)), 0 if speakers is None else len(set(speakers))
    rates = float(a.mean(axis=0).sum() / max(1, n.sum())), float(b.mean(axis=0).sum() / max(1, n.sum()))
    if why := _nothing_to_compare(a, b):
        return Comparison(*rates, rates[1] / rates[0] - 1 if rates[0] else None, None, None, why, seeds, count)
    random = speakers is not None and count >= FEWEST_SPEAKERS
    groups = list(speakers) if random and speakers is not None else [0] * len(n)
    a, b = (numpy.stack([sum_by(groups, run) for run in runs]) for runs in (a, b))
    estimate, error, df, parts = crossed(a, b, paired)
    seed, speaker, cell, evenness = map(float, parts)
    if error == 0:
        return Comparison(*rates, float(numpy.expm1(estimate)), None, None, "none: no spread at all", seeds, count)
    t = abs(estimate) / error
    bounds = tuple(float(numpy.expm1(estimate + sign * stdtrit(df, 0.975) * error)) for sign in (-1, 1))
    sampled = f"{'paired' if paired else 'unpaired'} seeds x speakers; new runs and speakers"
    fixed = f"{'paired' if paired else 'unpaired'} seeds; new runs, these test utterances only"
    return Comparison(
        *rates,
        float(numpy.expm1(estimate)),
        (bounds[0], bounds[1]),
        float(2 * stdtr(df, -t)),
        f"t({df:.1f}) over {sampled if random else fixed}",
        seeds,
        count,
        Spread(seed, speaker, cell, evenness, paired, float(n.sum()) / count) if random else None,
    )


def crossed(a: Array, b: Array, paired: bool) -> tuple[Array, Array, Array, tuple[Array, ...]]:
    """log(E_B / E_A), its standard error, degrees of freedom and the first four of `Spread`.

    a (..., S, G), b (..., T, G): errors by run and speaker; leading axes are independent data sets. G = 1: the speakers
    are not random.
    """
    total_a, total_b = (e.sum(axis=-1).mean(axis=-1)[..., None, None] for e in (a, b))
    x_a, x_b = a / total_a, b / total_b
    share = (x_a.mean(axis=-2) + x_b.mean(axis=-2)) / 2
    return numpy.log(total_b / total_a)[..., 0, 0], *crossed_error(x_a, x_b, share, paired)


def crossed_error(
    x_a: Array, x_b: Array, share: Array, paired: bool, strata: Sequence[Array | slice] = (slice(None),)
) -> tuple[Array, Array, tuple[Array, ...]]:
    """The standard error of mean_s sum_g (x_B - x_A), its degrees of freedom and the first four of `Spread`.

    x_a (..., S, G), x_b (..., T, G), whose means over seeds sum to the same over each stratum of speakers; share
    (..., G): of each speaker in the errors. With S = T = 1 seeds are no part of the question.
    """
    G = x_a.shape[-1]
    blocks = [x_b - x_a] if paired else [x_b, -x_a]
    by_seeds = [x.shape[-2] - 1 for x in blocks]
    several = min(by_seeds) > 0
    none = numpy.zeros(x_a.shape[:-2])
    of_seeds = [x.sum(axis=-1).var(axis=-1, ddof=1) / x.shape[-2] for x in blocks] if several else [none]
    v_s = numpy.sum(of_seeds, axis=0)
    uncertainty = sum(v**2 / max(1, d) for v, d in zip(of_seeds, by_seeds, strict=several))
    fewest = numpy.asarray(float(min(by_seeds)) if several else numpy.inf)
    v_g, v_e, d, of_speakers = none, none, numpy.ones_like(none), none
    if G > 1:
        d = numpy.full_like(none, numpy.inf)
        for stratum in strata:
            parts, w = [x[..., stratum] for x in blocks], share[..., stratum]
            size = w.shape[-1]
            freedom = numpy.minimum(size - 1, (w**2).sum(axis=-1) ** 2 / (w**4).sum(axis=-1))
            v = size / (size - 1) * (sum(x.mean(axis=-2) for x in parts) ** 2).sum(axis=-1)
            v_g, of_speakers, d = v_g + v, of_speakers + v**2 / freedom, numpy.minimum(d, freedom)
            for x, s in zip(parts, by_seeds, strict=True) if several else ():
                left = _interaction(x) * size / (x.shape[-2] * (size - 1) * s)
                v_e, uncertainty = v_e + left, uncertainty + left**2 / ((size - 1) * s)
        with numpy.errstate(invalid="ignore"):
            d = numpy.fmax(d, v_g**2 / of_speakers)
        uncertainty = uncertainty + of_speakers
        fewest = numpy.minimum(fewest, d)
    V = numpy.maximum(v_s + v_g - v_e, numpy.maximum(v_s, v_g))
    with numpy.errstate(invalid="ignore"):
        df = numpy.maximum(V**2 / uncertainty, fewest)
    runs = x_a.shape[-2] if paired else 2 / (1 / x_a.shape[-2] + 1 / x_b.shape[-2])
    components = (v_s - v_e) * runs, (v_g - v_e) * G, v_e * runs * G
    spread = (*(numpy.sqrt(numpy.maximum(0, part)) for part in components), d / max(1, G - 1))
    return numpy.sqrt(V), df, spread


def _interaction(x: Array) -> Array:
    """Sum of squares (...) of x (..., S, G) without the means of rows and columns."""
    rows, columns = x.mean(axis=-1, keepdims=True), x.mean(axis=-2, keepdims=True)
    return ((x - rows - columns + x.mean(axis=(-2, -1), keepdims=True)) ** 2).sum(axis=(-2, -1))


def _nothing_to_compare(a: Array, b: Array) -> str | None:
    if a.shape == b.shape and (a == b).all():
        return "none: all errors are the same"
    return None if a.sum() and b.sum() else "none: without errors there is no ratio"


def compare_checkpoints(
    errors_a: ArrayLike, errors_b: ArrayLike, tokens: ArrayLike, speakers: Sequence[Hashable] | None = None
) -> Comparison:
    """Checkpoint B against checkpoint A over speakers: nothing about methods, which other seeds would move.

    errors_a, errors_b, tokens: (U,) by utterance. With fewer than 5 speakers there is no interval.
    """
    a, b, n = (numpy.asarray(values, dtype=float) for values in (errors_a, errors_b, tokens))
    count = 0 if speakers is None else len(set(speakers))
    rates = float(a.sum() / max(1, n.sum())), float(b.sum() / max(1, n.sum()))
    relative = rates[1] / rates[0] - 1 if rates[0] else None
    few = None if count >= FEWEST_SPEAKERS else f"none: fewer than {FEWEST_SPEAKERS} known speakers"
    why = _nothing_to_compare(a, b) or few
    if why or speakers is None:
        return Comparison(*rates, relative, None, None, str(why), None, count)
    a, b = sum_by(speakers, a), sum_by(speakers, b)
    order = numpy.lexsort((a, b))
    a, b = a[order], b[order]
    x = b / b.sum() - a / a.sum()
    error = float(numpy.sqrt(count / (count - 1) * (x**2).sum()))
    ratio = float(b.sum() / a.sum())
    if error == 0:
        return Comparison(*rates, relative, None, None, "none: every speaker has the same ratio", None, count)
    studentised = studentised_ratio(b, a) if count >= FEWEST_FOR_BOOTSTRAP else None
    if studentised is not None:
        low, high = numpy.quantile(studentised, [0.025, 0.975])
        at = (ratio - 1) / (ratio * error)
        bounds = max(-1.0, ratio * (1 - high * error) - 1), ratio * (1 - low * error) - 1
        p = 2 * min((studentised >= at).mean(), (studentised <= at).mean())
        p = min(1.0, max(float(p), 2 / len(studentised)))
        method = "bootstrap-t over speakers; new speakers, these two checkpoints only"
    else:
        share = (a / a.sum() + b / b.sum()) / 2
        df = min(count - 1, float((share**2).sum() ** 2 / (share**4).sum()))
        reach = float(stdtrit(df, 0.975)) * error
        bounds = float(ratio * numpy.exp(-reach) - 1), float(ratio * numpy.exp(reach) - 1)
        p = float(2 * stdtr(df, -abs(numpy.log(ratio)) / error))
        method = f"t({df:.1f}) over speakers; new speakers, these two checkpoints only"
    return Comparison(*rates, relative, (float(bounds[0]), float(bounds[1])), p, method, None, count)


@dataclass(frozen=True)
class Mapsswe:
    segments: int
    mean: float
    """Errors of B less those of A, per segment."""
    z: float | None
    p: float | None
    """Two-sided; None where fewer than 2 segments or no spread leave nothing to test."""


def mapsswe(
    references: Sequence[str], hypotheses_a: Sequence[str], hypotheses_b: Sequence[str], unit: Unit = Unit.word
) -> Mapsswe:
    """Matched-pair test on segments: an utterance is cut where both systems have at least 2 tokens running right."""
    differences = []
    pair = (error_places(references, hypotheses, unit) for hypotheses in (hypotheses_a, hypotheses_b))
    for places_a, places_b in zip(*pair, strict=True):
        last = None
        for place, (a, b) in enumerate(zip(places_a, places_b, strict=True)):
            if a or b:
                if last is None or place // 2 - (last + 1) // 2 >= GOOD_TOKENS:  # whole tokens since the last error
                    differences.append(0)
                differences[-1] += b - a
                last = place
    size = len(differences)
    mean = sum(differences) / max(1, size)
    deviation = float(numpy.std(differences, ddof=1)) if size > 1 else 0.0
    z = mean / (deviation / size**0.5) if deviation else None
    return Mapsswe(size, mean, z, None if z is None else float(2 * ndtr(-abs(z))))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p values, of as many tests as have one."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted

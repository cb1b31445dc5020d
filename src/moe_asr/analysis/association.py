"""How the experts that sites choose hang together, and with what is said: from routing traces, with their nulls.

A first choice per position counts. Positions within an utterance are not independent, so that a null permutes
utterances, never positions; what is undefined (one expert takes all) is NaN, not 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy
from scipy.special import entr

from moe_asr.analysis.trace import Trace
from moe_asr.errors import InputError
from moe_asr.randomness import numpy_rng

Measure = Callable[[numpy.ndarray], float]
"""A contingency table (A,B) of counts -> how strongly its rows and columns go together, in [0, 1]."""


def contingency(a: numpy.ndarray, b: numpy.ndarray, rows: int, columns: int) -> numpy.ndarray:
    """How often each pair of categories meets: a, b (P,) -> (rows, columns); negative ones (none) are left out."""
    known = (a >= 0) & (b >= 0)
    return numpy.bincount(a[known] * columns + b[known], minlength=rows * columns).reshape(rows, columns)


def cramers_v(table: numpy.ndarray) -> float:
    """``sqrt(chi2 / (n * (min(A, B) - 1)))`` over the categories that occur (Cramér 1946, chapter 21)."""
    table = _occurring(table)
    n, least = table.sum(), min(table.shape)
    return float(numpy.sqrt(_phi_squared(table) / (least - 1))) if n and least > 1 else float("nan")


def corrected_cramers_v(table: numpy.ndarray) -> float:
    """Cramér's V without the bias of small samples (Bergsma 2013): about 0 for independent categories."""
    table = _occurring(table)
    n, (rows, columns) = table.sum(), table.shape
    if n < 2 or min(rows, columns) < 2:
        return float("nan")
    excess = max(0.0, _phi_squared(table) - (rows - 1) * (columns - 1) / (n - 1))
    least = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1))
    return float(numpy.sqrt(excess / (least - 1)))


def normalized_mutual_information(table: numpy.ndarray) -> float:
    """``I(A;B) / sqrt(H(A) H(B))`` (Strehl and Ghosh 2002)."""
    rows, columns, both = _entropies(table)
    return (rows + columns - both) / (rows * columns) ** 0.5 if rows * columns > 0 else float("nan")


def explained(table: numpy.ndarray) -> float:
    """``I(A;B) / H(A)``: which share of the entropy of the rows the columns explain (Theil's U, 1970)."""
    rows, columns, both = _entropies(table)
    return (rows + columns - both) / rows if rows > 0 else float("nan")


def _entropies(table: numpy.ndarray) -> tuple[float, float, float]:
    """Of the rows, of the columns and of both together, nats."""
    p = table / max(table.sum(), 1)
    return tuple(float(entr(q).sum()) for q in (p.sum(1), p.sum(0), p))  # type: ignore[return-value]


def agreement(table: numpy.ndarray) -> float:
    """How often both have the same number, which means something where sites share a router."""
    n = table.sum()
    return float(numpy.trace(table) / n) if n else float("nan")


def kappa(table: numpy.ndarray) -> float:
    """``(agreement - chance) / (1 - chance)``, chance being that of independent choices (Cohen 1960)."""
    n = max(table.sum(), 1)
    chance = float(table.sum(1) @ table.sum(0)) / n**2
    return (agreement(table) - chance) / (1 - chance) if chance < 1 else float("nan")


def _occurring(table: numpy.ndarray) -> numpy.ndarray:
    return table[table.any(1)][:, table.any(0)]


def _phi_squared(table: numpy.ndarray) -> float:
    expected = numpy.outer(table.sum(1), table.sum(0)) / table.sum()
    return float(((table - expected) ** 2 / expected).sum() / table.sum())


def permutation_p_value(observed: numpy.ndarray | float, null: numpy.ndarray) -> numpy.ndarray:
    """observed (...), null (D,...) -> (...): share of the null at least as large, the observed counted in (North et al.
    2002)."""
    return (1 + (null >= observed).sum(0)) / (1 + len(null))


@dataclass(frozen=True)
class SiteAssociation:
    """observed (S,S); null (D,S,S): the same with the utterances of one site permuted, D times."""

    sites: tuple[str, ...]
    observed: numpy.ndarray
    null: numpy.ndarray

    @property
    def null_mean(self) -> numpy.ndarray:
        """(S,S)."""
        return self.null.mean(0)

    @property
    def p_value(self) -> numpy.ndarray:
        """(S,S), see `permutation_p_value`."""
        return permutation_p_value(self.observed, self.null)

    @property
    def excess(self) -> float:
        """Mean over the pairs of different sites of what is observed beyond the mean of the null."""
        pairs = numpy.triu_indices(len(self.sites), 1)
        return float(numpy.nanmean((self.observed - self.null_mean)[pairs])) if len(pairs[0]) else float("nan")


def site_association(
    trace: Trace,
    stack: str = "encoder",
    measure: Measure = cramers_v,
    draws: int = 100,
    within: numpy.ndarray | None = None,
    seed: int = 1,
) -> SiteAssociation:
    """Between the choices of every two sites of a stack (arXiv 2507.05724).

    within (P,): True at the positions that count, e.g. where a phone is known. Raises InputError for a stack without
    sites; sites of different stacks have different positions and cannot be compared.
    """
    sites = [site for site in trace.sites if site.partition(".")[0] == stack]
    if not sites:
        raise InputError(f"the trace has no site in {stack!r}; it has {', '.join(trace.sites) or 'none'}.")
    if len(trace.utterances) < 2:
        raise InputError("the null permutes utterances: trace at least 2.")
    experts, offsets = int(trace.card["num_experts"]), trace.offsets[stack]
    chosen = numpy.stack([trace.sites[site].ids[:, 0].astype(numpy.int64) for site in sites])
    if within is not None:
        chosen = numpy.where(within, chosen, -1)

    def all_pairs(others: numpy.ndarray) -> numpy.ndarray:
        return numpy.array([[measure(contingency(a, b, experts, experts)) for b in others] for a in chosen])

    rng = numpy_rng("association", seed)
    null = [all_pairs(chosen_of_others(chosen, offsets, rng)) for _ in range(draws)]
    return SiteAssociation(tuple(sites), all_pairs(chosen), numpy.array(null).reshape(draws, len(sites), len(sites)))


def chosen_of_others(chosen: numpy.ndarray, offsets: numpy.ndarray, rng: numpy.random.Generator) -> numpy.ndarray:
    """chosen (S,P), offsets (U+1,) -> (S,P): at every position what another utterance has there, -1 after its end."""
    order = rng.permutation(len(offsets) - 1)
    donors = numpy.empty_like(order)
    donors[order] = numpy.roll(order, 1)  # one cycle: nobody is his own donor
    moved = numpy.full_like(chosen, -1)
    for utterance, donor in enumerate(donors):
        count = min(offsets[utterance + 1] - offsets[utterance], offsets[donor + 1] - offsets[donor])
        first, source = offsets[utterance], offsets[donor]
        moved[:, first : first + count] = chosen[:, source : source + count]
    return moved


def segment_lengths(choices: numpy.ndarray, offsets: numpy.ndarray) -> numpy.ndarray:
    """choices (P,), offsets (U+1,) -> how many positions each uninterrupted use of one expert lasts."""
    if len(choices) == 0:
        return numpy.zeros(0, numpy.int64)
    begins = numpy.concatenate([[True], choices[1:] != choices[:-1]])
    starts = offsets[:-1]
    begins[starts[starts < len(choices)]] = True
    return numpy.diff(numpy.append(begins.nonzero()[0], len(choices)))


def switching_rate(choices: numpy.ndarray, offsets: numpy.ndarray) -> float:
    """How often a position (P,) has another expert than the one before it in its utterance; offsets (U+1,)."""
    first = numpy.isin(numpy.arange(len(choices)), offsets)[1:]
    return float((choices[1:] != choices[:-1])[~first].mean()) if (~first).any() else float("nan")


def shuffled_segment_lengths(
    choices: numpy.ndarray, offsets: numpy.ndarray, draws: int = 20, seed: int = 1
) -> numpy.ndarray:
    """The null of `segment_lengths`: (D,) mean lengths where the positions of each utterance are shuffled."""
    rng, means = numpy_rng("segments", seed), []
    for _ in range(draws):
        mixed = numpy.concatenate([rng.permutation(choices[a:b]) for a, b in pairwise(offsets)])
        means.append(segment_lengths(mixed, offsets).mean())
    return numpy.array(means)


def loss_spikes(losses: Sequence[float], window: int = 50, height: float = 6.0) -> list[int]:
    """Where a training loss jumps above the median of the `window` values before by `height` robust deviations.

    A deviation is 1.4826 times the median distance from that median, at least 1 % of it. What is not finite counts.
    """
    values, found = numpy.asarray(losses, dtype=float), []
    for i in range(window, len(values)):
        before = values[i - window : i]
        before = before[numpy.isfinite(before)]
        centre = float(numpy.median(before)) if len(before) else 0.0
        deviation = max(1.4826 * float(numpy.median(abs(before - centre))) if len(before) else 0.0, 0.01 * abs(centre))
        if not numpy.isfinite(values[i]) or values[i] > centre + height * deviation:
            found.append(i)
    return found

"""Is B better than A on a suite of domains? The ratio of the means of their error rates over domains.

With the errors e and tokens n of run s on speaker g in domain d, N_d = sum_g n_gd, and the rate R_d of a method::

    x_sg = sum_d w_d (e_sgd - R_d n_gd) / N_d,   log(M_B / M_A) - truth ~ mean_s sum_g (x_B,sg - x_A,sg)
    plain mean      M = sum_d R_d / D,      w_d = 1 / (D M)
    geometric mean  M = prod_d R_d^(1/D),   w_d = 1 / (D R_d)

linearised as in `moe_asr.measure.domains`; then seeds and speakers have crossed effects as in
`moe_asr.measure.comparison`. What one speaker says in several domains is his, and speakers are drawn among those who
speak in the same domains (a stratum). The domains are no sample: a claim is about these.
"""

from collections.abc import Hashable, Sequence
from enum import StrEnum

import numpy
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from moe_asr.config.score import FEWEST_SPEAKERS
from moe_asr.measure.comparison import Array, Comparison, crossed_error
from moe_asr.measure.domains import FLOOR_ERRORS


class Mean(StrEnum):
    plain = "mean"
    geometric = "geometric mean"


def compare_suites(
    errors_a: ArrayLike,
    errors_b: ArrayLike,
    tokens: ArrayLike,
    speakers: Sequence[Hashable] | None,
    domains: Sequence[Hashable],
    mean: Mean,
    paired: bool = True,
) -> Comparison:
    """B against A by the mean of their rates over domains.

    errors_a (S, U), errors_b (T, U): errors of each run on each utterance; of two checkpoints S = T = 1, of methods at
    least 2. tokens, speakers, domains: of each utterance. Where fewer than 5 speakers speak in the same domains, the
    interval of methods covers other trainings alone, and checkpoints have none.
    """
    known = speakers is not None
    groups, parts = _numbered(speakers if speakers is not None else [0] * len(domains)), _numbered(domains)
    shape = (max(groups) + 1, max(parts) + 1)
    place = numpy.ravel_multi_index((groups, parts), shape)

    def cells(values: ArrayLike) -> Array:
        """(..., U) -> (runs, G, D)."""
        runs = numpy.atleast_2d(numpy.asarray(values, dtype=float))
        return numpy.stack([numpy.bincount(place, run, shape[0] * shape[1]).reshape(shape) for run in runs])

    a, b, n = cells(errors_a), cells(errors_b), cells(tokens)[0]
    methods, count = min(len(a), len(b)) > 1, shape[0] if known else 0
    random = known and min(map(len, strata_of(n))) >= FEWEST_SPEAKERS
    seeds = (len(a), len(b)) if methods else None
    why = "none: all errors are the same" if a.shape == b.shape and (a == b).all() else None
    if not (methods or random):
        why = why or f"none: fewer than {FEWEST_SPEAKERS} known speakers of the same domains"
    rates, error, df = crossed_means(a, b, n, mean, paired, random)
    rate_a, rate_b, log_ratio = float(rates[0]), float(rates[1]), float(numpy.log(rates[1] / rates[0]))
    if why or error == 0:
        why = why or "none: no spread at all"
        return Comparison(rate_a, rate_b, rate_b / rate_a - 1, None, None, why, seeds, count)
    low, high = (float(numpy.expm1(log_ratio + sign * stdtrit(df, 0.975) * error)) for sign in (-1, 1))
    sampled = f"{'paired' if paired else 'unpaired'} seeds" if methods else ""
    sampled += (" x " if methods else "") + "speakers" if random else ""
    new = " and ".join(["runs"] * methods + ["speakers"] * random)
    method = f"t({float(df):.1f}) over {sampled} within domains; new {new}, these {shape[1]} domains"
    method += "" if methods else ", these two checkpoints only"
    p = float(2 * stdtr(df, -abs(log_ratio) / error))
    return Comparison(rate_a, rate_b, rate_b / rate_a - 1, (low, high), p, method, seeds, count)


def crossed_means(
    a: Array, b: Array, n: Array, mean: Mean, paired: bool, random: bool = True
) -> tuple[tuple[Array, Array], Array, Array]:
    """The mean rates M_A and M_B, the standard error of log(M_B / M_A) and its degrees of freedom.

    a (..., S, G, D), b (..., T, G, D): errors; n (G, D): tokens. random: speakers are.
    """
    (rate_a, x_a, share_a), (rate_b, x_b, share_b) = (_linearised(e, n, mean) for e in (a, b))
    if not random:
        x_a, x_b = (x.sum(axis=-1, keepdims=True) for x in (x_a, x_b))
    error, df, _ = crossed_error(x_a, x_b, (share_a + share_b) / 2, paired, strata_of(n))
    return (rate_a, rate_b), error, df


def _linearised(e: Array, n: Array, mean: Mean) -> tuple[Array, Array, Array]:
    """M (...), x (..., S, G), and the share (..., G) of each speaker in M; a domain without errors has half of one."""
    N, D = numpy.maximum(1, n.sum(axis=0)), n.shape[1]
    rates = numpy.maximum(e.sum(axis=-2).mean(axis=-2), FLOOR_ERRORS) / N
    plain = rates.mean(axis=-1)
    w = 1 / (D * (rates if mean is Mean.geometric else numpy.broadcast_to(plain[..., None], rates.shape))) / N
    x = ((e - (rates[..., None, :] * n)[..., None, :, :]) * w[..., None, None, :]).sum(axis=-1)
    share = (e.mean(axis=-3) * w[..., None, :]).sum(axis=-1)
    return numpy.exp(numpy.log(rates).mean(axis=-1)) if mean is Mean.geometric else plain, x, share


def strata_of(n: Array) -> list[Array]:
    """Numbers of the speakers who speak in the same domains, from tokens (G, D)."""
    groups: dict[bytes, list[int]] = {}
    for g, spoken in enumerate(n > 0):
        groups.setdefault(spoken.tobytes(), []).append(g)
    return [numpy.array(members) for members in groups.values()]


def _numbered(names: Sequence[Hashable]) -> list[int]:
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return [number[name] for name in names]

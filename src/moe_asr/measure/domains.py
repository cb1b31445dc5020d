"""One number for a suite of domains: the plain mean of their error rates, as papers state it, and the geometric one.

One hard domain dominates the plain mean; in the geometric one a tenth less counts as much anywhere. Both intervals
take speakers as independent, and what one speaker says in several domains as dependent::

    of log M, M = mean_d R_d:      u_g = mean_d d_gd / M
    of log G = mean_d log R_d:     u_g = mean_d d_gd / R_d
    d_gd = (e_gd - R_d n_gd) / N_d,   V_s = G_s / (G_s - 1) * sum_g u_g^2,   se^2 = sum_s V_s

with the errors e and tokens n of speaker g in domain d and N_d = sum_g n_gd: the linearised error of a ratio as in
`moe_asr.measure.intervals`, summed over domains before it is squared. The G_s speakers of a stratum s speak in the same
domains; the degrees of freedom of t are Satterthwaite's, (sum_s V_s)^2 / sum_s V_s^2 / (G_s - 1). The ratio of two
systems on the same speakers has the difference of their u_g.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from scipy.special import stdtrit

from moe_asr.config.score import FEWEST_SPEAKERS, Unit
from moe_asr.errors import InputError

FLOOR_ERRORS = 0.5
"""A domain without any error counts as having half of one, as the logarithm of 0 is no number."""

Influence = dict[str, tuple[float, tuple[str, ...]]]
"""Speaker -> u_g and the domains he speaks in."""


def domain_means(test: Mapping[str, Any], against: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Means over the sets of results["test"], for each way of decoding by its suffix ("", "_c16", ...).

    against: results["test"] of another system, whose means divide ours. Raises InputError if that has other sets.
    """
    means = {}
    suffixes = dict.fromkeys(decoding_suffix(name, result) for name, result in test.items())
    for suffix in suffixes:
        own = {name: result for name, result in test.items() if decoding_suffix(name, result) == suffix}
        means[suffix] = {"domains": len(own), **_means(own)}
        if against is not None:
            if missing := [name for name in own if name not in against]:
                raise InputError(f"the results to compare with have no {missing[0]}; evaluate both on the same sets.")
            means[suffix]["against"] = _ratios(own, {name: against[name] for name in own})
    return means


def read_results(path: str) -> dict[str, Any]:
    """results["test"] of a results.json or of the folder that holds it. Raises InputError if it is none."""
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        return dict(json.loads(file.read_text("utf8"))["test"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"against={path} is no results.json of evaluate ({error!r}).") from None


def domain_lines(means: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    lines = []
    for suffix, mean in means.items():
        plain, geometric = (_shown(mean[kind], mean[f"{kind}_ci95"], 100, " %") for kind in ("mean", "geometric"))
        name = f"domains{suffix}"
        lines.append(f"{name:<15} mean {plain}, geometric mean {geometric}  ({mean['domains']} domains)")
        if other := mean.get("against"):
            plain, geometric = (_shown(other[k], other[f"{k}_ci95"], 1, "") for k in ("mean", "geometric"))
            lines.append(f"  times that of the other results: mean {plain}, geometric mean {geometric}")
    return lines


def decoding_suffix(name: str, result: Mapping[str, Any]) -> str:
    split = str(result["split"])
    return name.removeprefix(split if name.startswith(split) else split.rpartition("/")[2])


def _means(test: Mapping[str, Any]) -> dict[str, Any]:
    (mean, of_mean), (geometric, of_geometric) = _plain(test), _geometric(test)
    return {
        "mean": mean,
        "mean_ci95": _interval(mean, of_mean),
        "geometric": geometric,
        "geometric_ci95": _interval(geometric, of_geometric),
    }


def _ratios(test: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    for kind, estimate in (("mean", _plain), ("geometric", _geometric)):
        (a, of_a), (b, of_b) = estimate(test), estimate(other)
        if of_a.keys() != of_b.keys():
            raise InputError("the results to compare with are of other speakers; evaluate both on the same corpus.")
        difference = {speaker: (u - of_b[speaker][0], where) for speaker, (u, where) in of_a.items()}
        ratios |= {kind: a / b, f"{kind}_ci95": _interval(a / b, difference)}
    return ratios


def _plain(test: Mapping[str, Any]) -> tuple[float, Influence]:
    rates = {name: _rate(result) for name, result in test.items()}
    mean = float(numpy.mean(list(rates.values())))
    return mean, _influences(test, {name: rate / mean for name, rate in rates.items()})


def _geometric(test: Mapping[str, Any]) -> tuple[float, Influence]:
    logs = [numpy.log(_rate(result)) for result in test.values()]
    return float(numpy.exp(numpy.mean(logs))), _influences(test, dict.fromkeys(test, 1.0))


def _rate(result: Mapping[str, Any]) -> float:
    return max(result[Unit(result["unit"]).rate], FLOOR_ERRORS / max(1, result["num_tokens"]))


def _influences(test: Mapping[str, Any], weights: Mapping[str, float]) -> Influence:
    """Of every speaker; nothing where speakers are not known."""
    influences: Influence = {}
    for name, result in test.items():
        key, rate = Unit(result["unit"]).rate, _rate(result)
        for speaker, own in result.get("per_speaker", {}).items():
            relative = (own[key] - result[key]) * own["num_tokens"] / result["num_tokens"] / rate
            u, where = influences.get(speaker, (0.0, ()))
            influences[speaker] = u + weights[name] * relative / len(test), (*where, name)
    return influences


def _interval(value: float, influences: Influence) -> list[float] | None:
    """None where fewer than 5 speakers speak in the same domains."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for u, where in influences.values():
        groups.setdefault(where, []).append(u)
    if not groups or min(map(len, groups.values())) < FEWEST_SPEAKERS:
        return None
    sizes = numpy.array([len(group) for group in groups.values()])
    parts = numpy.array([numpy.sum(numpy.square(group)) for group in groups.values()]) * sizes / (sizes - 1)
    if not parts.sum():
        return None
    freedom = parts.sum() ** 2 / (parts**2 / (sizes - 1)).sum()
    factor = float(numpy.exp(stdtrit(freedom, 0.975) * numpy.sqrt(parts.sum())))
    return [value / factor, value * factor]


def _shown(value: float, interval: list[float] | None, scale: float, unit: str) -> str:
    between = f"[{scale * interval[0]:.2f}, {scale * interval[1]:.2f}]" if interval else "no interval"
    return f"{scale * value:.2f}{unit} {between}"

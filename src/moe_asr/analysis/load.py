"""How much each expert is used, and how sure the router is: figures from the sums over routing traces."""

from pathlib import Path

import numpy

from moe_asr.errors import InputError
from moe_asr.measure.expert_use import Loads, dead, variation
from moe_asr.modules.moe.losses import entropy
from moe_asr.modules.moe.routing import RoutingTrace
from moe_asr.modules.moe.statistics import RoutingSums, routing_sums
from moe_asr.runs.directory import read_metrics


def measured(trace: RoutingTrace, before: RoutingSums | None = None) -> RoutingSums | None:
    """`before` and the sums of this trace, without gradients, in float64; None for a dense model."""
    sums = routing_sums(trace)
    if sums is None:
        return before
    now = RoutingSums(sums.sites, sums.values.detach().double())
    return now if before is None else before + now


def loads(sums: RoutingSums | None) -> Loads:
    """Of every site that any position reached."""
    if sums is None:
        return {}
    return {str(site): load for site, load in zip(sums.sites, sums.load.tolist(), strict=True) if sum(load) > 0}


def entropies(sums: RoutingSums | None) -> dict[str, float]:
    """Mean entropy of a position's router probabilities at every site, nats."""
    return {} if sums is None else {str(s): nats for s, nats in zip(sums.sites, entropy(sums).tolist(), strict=True)}


def load_metrics(sums: RoutingSums | None, prefix: str = "routing") -> dict[str, float]:
    """What is logged of every site and expert, and over all sites; README explains each figure."""
    if sums is None:
        return {}
    columns = (
        sums.load,
        sums.mean_probability,
        entropy(sums),
        sums.dropped / (sums.dropped + sums.counts.sum(-1)).clamp(min=1),
    )
    found: dict[str, float] = {}
    for site, load, probability, nats, dropped in zip(sums.sites, *(c.tolist() for c in columns), strict=True):
        figures = {
            "load_max": max(load),
            "load_min": min(load),
            "load_cv": variation(load),
            "entropy": nats,
            "dropped": dropped,
            "dead_experts": float(len(dead(load))),
            **{f"load/{expert}": share for expert, share in enumerate(load)},
            **{f"probability/{expert}": share for expert, share in enumerate(probability)},
        }
        found |= {f"{prefix}/{site}/{name}": value for name, value in figures.items()}
    return found | {f"{prefix}/dead_experts": sum(v for name, v in found.items() if name.endswith("/dead_experts"))}


def load_history(metrics: Path, prefix: str = "train/routing") -> dict[str, tuple[list[int], numpy.ndarray]]:
    """By site, the steps (T,) and the load of each expert (T,E), as a run's metrics.csv tells below `prefix`.

    Raises InputError where there is none, as in a dense run's.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}
    try:
        for step, metric, value in read_metrics(metrics):
            place, _, expert = metric.rpartition("/load/")
            if place.startswith(f"{prefix}/"):
                found.setdefault(place.removeprefix(f"{prefix}/"), {}).setdefault(step, {})[int(expert)] = value
    except OSError as error:
        raise InputError(f"{metrics} cannot be read ({error}); give the metrics.csv of a run.") from error
    if not found:
        raise InputError(f"{metrics} tells no loads of experts below {prefix!r}: is this run dense?")
    return {
        site: (list(rows), numpy.array([[row[e] for e in sorted(row)] for row in rows.values()]))
        for site, rows in found.items()
    }

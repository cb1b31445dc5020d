"""How much each expert is used, and how sure the router is: figures from the sums over routing traces."""

from moe_asr.modules.moe.routing import RoutingTrace
from moe_asr.modules.moe.statistics import RoutingSums, routing_sums


def measured(trace: RoutingTrace, before: RoutingSums | None = None) -> RoutingSums | None:
    """`before` and the sums of this trace, without gradients, in float64 on the CPU; None for a dense model."""
    sums = routing_sums(trace)
    if sums is None:
        return before
    now = RoutingSums(sums.sites, sums.values.detach().cpu().double())
    return now if before is None else before + now


def load_metrics(sums: RoutingSums | None) -> dict[str, float]:
    """What is logged of every site, and over all sites; README explains each figure."""
    if sums is None:
        return {}
    load, positions = sums.load, sums.per_position[:, 0]
    figures = {
        "load_max": load.amax(-1),
        "load_min": load.amin(-1),
        "load_cv": load.std(-1, correction=0) / load.mean(-1).clamp(min=1e-12),
        "entropy": sums.entropy / positions,
        "dropped": sums.dropped / (sums.dropped + sums.counts.sum(-1)).clamp(min=1),
    }
    by_site = {
        f"routing/{site}/{name}": float(value)
        for name, values in figures.items()
        for site, value in zip(sums.sites, values.tolist(), strict=True)
    }
    return {**by_site, "routing/dead_experts": float((sums.counts == 0).sum())}

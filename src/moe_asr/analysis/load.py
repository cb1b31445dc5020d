"""How much each expert is used, and how sure the router is: sums over traces, so batches and ranks simply add up."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_asr.modules.moe.routing import RoutingTrace


@dataclass(frozen=True)
class SiteLoad:
    """counts (E,): assignments per expert; entropy: summed router entropy in nats; positions: valid positions."""

    counts: Tensor
    entropy: float
    positions: int

    def __add__(self, other: "SiteLoad") -> "SiteLoad":
        return SiteLoad(self.counts + other.counts, self.entropy + other.entropy, self.positions + other.positions)

    @property
    def shares(self) -> Tensor:
        """(E,) share of the assignments that each expert got; they sum to 1."""
        return self.counts.double() / self.counts.sum().clamp(min=1)


ExpertLoad = Mapping[str, SiteLoad]


def expert_load(trace: RoutingTrace) -> dict[str, SiteLoad]:
    """The load of every site of a trace; padding and empty slots (id -1) are not counted."""
    loads = {}
    for site_trace in trace:
        routing, valid = site_trace.routing, site_trace.valid
        experts = routing.logits.shape[-1]
        ids = routing.expert_ids[valid]
        counts = torch.bincount(ids[ids >= 0].flatten(), minlength=experts).cpu()
        log_p = routing.logits[valid].double().log_softmax(-1)
        entropy = float(-(log_p.exp() * log_p).sum())
        loads[str(site_trace.site)] = SiteLoad(counts, entropy, int(valid.sum()))
    return loads


def merge(one: ExpertLoad, other: ExpertLoad) -> dict[str, SiteLoad]:
    merged = dict(one)
    for site, load in other.items():
        merged[site] = merged[site] + load if site in merged else load
    return merged


def load_metrics(loads: ExpertLoad) -> dict[str, float]:
    """Per site the largest share and the mean router entropy in nats; over all sites the experts never used."""
    metrics = {}
    for site, load in loads.items():
        metrics[f"routing/{site}/load_max"] = float(load.shares.max())
        metrics[f"routing/{site}/entropy"] = load.entropy / max(load.positions, 1)
    if loads:
        metrics["routing/dead_experts"] = float(sum(int((load.counts == 0).sum()) for load in loads.values()))
    return metrics

"""Sums over a routing trace, of which every router loss and every figure of expert use is a function."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_asr.config.placement import MoESite
from moe_asr.modules.moe.routing import RoutingTrace, SiteTrace


@dataclass(frozen=True)
class RoutingSums:
    """Sums over the valid positions of S sites, which batches and ranks simply add up; padding is never in them."""

    sites: tuple[MoESite, ...]
    values: Tensor
    """(S, 5 + 2E): the five (S,) sums below, then counts, then probabilities."""

    @property
    def positions(self) -> Tensor:
        """(S,) valid positions."""
        return self.values[:, 0]

    @property
    def dropped(self) -> Tensor:
        """(S,) empty slots among them."""
        return self.values[:, 1]

    @property
    def entropy(self) -> Tensor:
        """(S,) of the router's probabilities, nats."""
        return self.values[:, 2]

    @property
    def squared_log_norm(self) -> Tensor:
        """(S,) ``logsumexp(logits) ** 2``."""
        return self.values[:, 3]

    @property
    def unit_l1(self) -> Tensor:
        """(S,) L1 norm of the probabilities over their L2 norm."""
        return self.values[:, 4]

    @property
    def counts(self) -> Tensor:
        """(S,E) assignments of each expert."""
        return self.values[:, 5:].chunk(2, -1)[0]

    @property
    def probabilities(self) -> Tensor:
        """(S,E) router probability of each expert."""
        return self.values[:, 5:].chunk(2, -1)[1]

    def __add__(self, other: "RoutingSums") -> "RoutingSums":
        return RoutingSums(self.sites, self.values + other.values)

    @property
    def load(self) -> Tensor:
        """(S,E) share of the assignments of each expert: f in the Switch loss."""
        return self.counts / self.counts.sum(-1, keepdim=True).clamp(min=1)

    @property
    def mean_probability(self) -> Tensor:
        """(S,E): P in the Switch loss."""
        return self.probabilities / self.per_position

    @property
    def per_position(self) -> Tensor:
        """(S,1) what to divide sums by."""
        return self.positions.clamp(min=1).unsqueeze(-1)


def routing_sums(trace: RoutingTrace) -> RoutingSums | None:
    """None for a dense model. Gradients flow through all but the counts; float32, or float64 for such logits."""
    if not trace:
        return None
    return RoutingSums(tuple(part.site for part in trace), torch.stack([_site_sums(part) for part in trace]))


def over_ranks(sums: RoutingSums) -> RoutingSums:
    """The sum over all processes, gradients included: what a single process would have for the whole micro-batch."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    return RoutingSums(sums.sites, _SumOverRanks.apply(sums.values))


class _SumOverRanks(torch.autograd.Function):
    """As every process has the sum, its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)


def _site_sums(trace: SiteTrace) -> Tensor:
    routing, valid = trace.routing, trace.valid
    ids, logits = routing.expert_ids[valid], routing.logits[valid]  # (P,K), (P,E)
    p = replace(routing, logits=logits).probabilities
    experts = logits.shape[-1]
    counts = F.one_hot(ids + 1, experts + 1).sum((0, 1))
    scalars = [
        torch.full_like(logits.sum(), len(ids)),
        counts[0].to(logits.dtype),
        torch.special.entr(p).sum(),
        logits.logsumexp(-1).square().sum(),
        (1 / torch.linalg.vector_norm(p, dim=-1)).sum(),
    ]
    return torch.cat([torch.stack(scalars), counts[1:].to(logits.dtype), p.sum(0)])

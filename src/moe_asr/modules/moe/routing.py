"""What a router decided: plain values that losses, telemetry and analysis are pure functions of."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, order=True)
class MoESite:
    """The address of a feed-forward layer: "encoder", layer 3, "ffn_out" (or "ffn_in", the macaron half)."""

    stack: str
    layer: int
    slot: str

    def __str__(self) -> str:
        return f"{self.stack}.{self.layer:02d}.{self.slot}"


@dataclass(frozen=True)
class Routing:
    """logits (B,N,E), float32 or wider; expert_ids (B,N,K); weights (B,N,K).

    An id of -1 is an empty slot (padding, a skipped expert), which is neither computed nor counted; its weight is 0.
    """

    logits: Tensor
    expert_ids: Tensor
    weights: Tensor


@dataclass(frozen=True)
class SiteTrace:
    """What happened at one site; valid (B,N) is False on padding."""

    site: MoESite
    routing: Routing
    valid: Tensor


RoutingTrace = tuple[SiteTrace, ...]
"""All sites in network order: encoder sites on frames, decoder sites on tokens."""


def concatenate(traces: Iterable[RoutingTrace]) -> RoutingTrace:
    """Traces of consecutive stretches of the same utterances -> one trace over all their positions."""
    return tuple(
        SiteTrace(
            parts[0].site,
            Routing(
                torch.cat([part.routing.logits for part in parts], 1),
                torch.cat([part.routing.expert_ids for part in parts], 1),
                torch.cat([part.routing.weights for part in parts], 1),
            ),
            torch.cat([part.valid for part in parts], 1),
        )
        for parts in zip(*traces, strict=True)
    )

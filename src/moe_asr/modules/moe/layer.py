"""The Mixture-of-Experts feed-forward layer: ask the router, compute the chosen experts, return both."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from moe_asr.config.placement import MoESite
from moe_asr.modules.moe.experts import Experts
from moe_asr.modules.moe.routers import Router
from moe_asr.modules.moe.routing import NOTHING, Routing, Side


class MoEFeedForward(nn.Module):
    """Owns experts but no router: the caller hands in the router of the site.

    widths (E,): the hidden width of each expert, 0 for a null expert; equal ones form a bank, made by `make_experts`
    of their number and width. shared: a feed-forward layer that every position visits, beside the routed ones.
    """

    def __init__(
        self, widths: Sequence[int], make_experts: Callable[[int, int], Experts], shared: nn.Module | None = None
    ) -> None:
        super().__init__()
        kinds = sorted({width for width in widths if width > 0}, reverse=True)
        self.banks = nn.ModuleList(make_experts(widths.count(width), width) for width in kinds)
        self.shared = shared
        # For each bank the place of every expert in it, -1 if elsewhere; the last column serves the id -1.
        places = torch.full((len(kinds), len(widths) + 1), -1)
        for bank, width in enumerate(kinds):
            members = [expert for expert, own in enumerate(widths) if own == width]
            places[bank, members] = torch.arange(len(members))
        self.places: Tensor
        self.register_buffer("places", places, persistent=False)
        self.uniform = len(kinds) == 1 and 0 not in widths

    def forward(
        self, x: Tensor, valid: Tensor, site: MoESite, router: Router | None, side: Side = NOTHING
    ) -> tuple[Tensor, Routing | None]:
        """x (B,N,d), valid (B,N) -> (B,N,d) and the routing; padding gives 0. Raises ValueError without a router."""
        if router is None:
            raise ValueError(f"{site} is a Mixture-of-Experts layer and needs a router: pass the model's routers.")
        routing = router(x, valid, site, side)
        rows, ids, weights = x.flatten(0, 1), routing.expert_ids.flatten(0, 1), routing.weights.flatten(0, 1)
        if self.uniform:
            y = self.banks[0](rows, ids, weights).view_as(x)
        else:
            routed = (bank(rows, places[ids], weights) for bank, places in zip(self.banks, self.places, strict=True))
            y = reduce(torch.add, routed).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x, valid, site, None, side)[0].masked_fill(~valid.unsqueeze(-1), 0.0)
        return y, routing

"""The routers of a model: one for each entry of a sharing table, and the balance bias of each site."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from moe_asr.config.placement import MoESite
from moe_asr.modules.moe.routers import Biased, Router, TopKRouter
from moe_asr.modules.moe.statistics import RoutingSums


class Routers(Protocol):
    """Site -> its router; a RouterBank, or any dict by which a caller replaces routers."""

    def get(self, site: MoESite, /) -> Router | None: ...


class RouterBank(nn.Module):
    """All routers of a model, each held once; table: for each site the number of its router, counted from 0.

    bias (S,E): the balance bias of each site, where routers balance without a loss.
    """

    routers: Sequence[TopKRouter]
    bias: Tensor | None

    def __init__(self, make_router: Callable[[], nn.Module], sites: Sequence[MoESite], table: Sequence[int]) -> None:
        super().__init__()
        self.sites, self.table = tuple(sites), dict(zip(sites, table, strict=True))
        self.routers = nn.ModuleList(make_router() for _ in range(max(table, default=-1) + 1))  # type: ignore[assignment]
        balanced = bool(sites) and self.routers[0].config.balance_rate > 0
        self.register_buffer("bias", torch.zeros(len(sites), self.routers[0].num_experts) if balanced else None)

    def get(self, site: MoESite, /) -> Router | None:
        """None for a dense site."""
        if site not in self.table:
            return None
        router = self.routers[self.table[site]]
        return router if self.bias is None else Biased(router, self.bias[self.sites.index(site)])

    @torch.no_grad()
    def rebalance(self, sums: RoutingSums) -> None:
        """One step of auxiliary-loss-free balancing (arXiv 2408.15664, algorithm 1), after an optimiser step.

        The bias of an expert rises by `balance_rate` where its load is below the mean of its site, and falls above.
        """
        if self.bias is None:
            return
        rows = [self.sites.index(site) for site in sums.sites]
        error = sums.counts.mean(-1, keepdim=True) - sums.counts
        self.bias[rows] += self.routers[0].config.balance_rate * error.sign().to(self.bias)

"""Which router serves which site. A shared router is shared weights, applied to each layer's own input."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import nn

from moe_asr.config.model import Sharing
from moe_asr.modules.moe.routers import Router
from moe_asr.modules.moe.routing import MoESite


class Routers(Protocol):
    """Site -> its router; a RouterBank, or any dict by which a caller replaces routers."""

    def get(self, site: MoESite, /) -> Router | None: ...


def sharing_table(sites: Sequence[MoESite], sharing: Sharing) -> tuple[int, ...]:
    """The number of the router of each site: (0, 1, 2, 3) per layer, (0, 0, 0, 0) shared within a stack."""
    keys = [site.stack if sharing is Sharing.shared else str(site) for site in sites]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


class RouterBank(nn.Module):
    """All routers of a model, each held once; table: for each site the number of its router, counted from 0."""

    routers: Sequence[Router]

    def __init__(self, make_router: Callable[[], nn.Module], sites: Sequence[MoESite], table: Sequence[int]) -> None:
        super().__init__()
        self.table = dict(zip(sites, table, strict=True))
        self.routers = nn.ModuleList(make_router() for _ in range(max(table, default=-1) + 1))  # type: ignore[assignment]

    def get(self, site: MoESite, /) -> Router | None:
        """None for a dense site."""
        return self.routers[self.table[site]] if site in self.table else None

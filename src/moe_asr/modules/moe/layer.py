"""The Mixture-of-Experts feed-forward layer: ask the router, compute the chosen experts, return both."""

from torch import Tensor, nn

from moe_asr.modules.moe.experts import Experts
from moe_asr.modules.moe.routers import Router
from moe_asr.modules.moe.routing import MoESite, Routing


class MoEFeedForward(nn.Module):
    """Owns experts but no router: the caller hands in the router of the site."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor, valid: Tensor, site: MoESite, router: Router | None) -> tuple[Tensor, Routing | None]:
        """x (B,N,d), valid (B,N) -> (B,N,d) and the routing; padding gives 0. Raises ValueError without a router."""
        if router is None:
            raise ValueError(f"{site} is a Mixture-of-Experts layer and needs a router: pass the model's routers.")
        routing = router(x, valid, site)
        y = self.experts(x.flatten(0, 1), routing.expert_ids.flatten(0, 1), routing.weights.flatten(0, 1))
        return y.view_as(x), routing

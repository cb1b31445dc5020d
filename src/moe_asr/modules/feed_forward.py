"""The dense feed-forward layer, in the same contract as its Mixture-of-Experts counterpart."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.inference import InferencePrecision
from moe_asr.config.model import Activation
from moe_asr.config.placement import MoESite
from moe_asr.modules import fused
from moe_asr.modules.dropout import Dropout
from moe_asr.modules.moe.routers import Router
from moe_asr.modules.moe.routing import NOTHING, Routing, Side
from moe_asr.modules.packed import Identity, Linear, bias_of, give_up, identity_of

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.swish: F.silu,
    Activation.relu: F.relu,
    Activation.gelu: F.gelu,
}


class FeedForward(nn.Module):
    """Two linear maps with an activation and dropout between; it needs no router and decides nothing."""

    def __init__(self, width: int, hidden: int, activation: Activation, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.w_in = nn.Linear(width, hidden, bias)
        self.w_out = nn.Linear(hidden, width, bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, valid: Tensor, site: MoESite, router: Router | None, side: Side = NOTHING
    ) -> tuple[Tensor, Routing | None]:
        return self.w_out(self.dropout(self.activation(self.w_in(x)))), None


class FusedFeedForward(FeedForward):
    """What `fuse_feed_forward` makes of one in place: parameters are the same, and rule as in a `PackedLinear`."""

    packed: Linear
    packed_from: Identity

    def forward(
        self, x: Tensor, valid: Tensor, site: MoESite, router: Router | None, side: Side = NOTHING
    ) -> tuple[Tensor, Routing | None]:
        if torch.is_grad_enabled() or identity_of(self) != self.packed_from:
            return super().forward(x, valid, site, router, side)
        return self.packed(x.flatten(0, -2)).view_as(x), None


def fuse_feed_forward(module: FeedForward, precision: InferencePrecision, release: bool = False) -> None:
    """Raises InputError where the fused kernel is not supported."""
    linear_in, linear_out = module.w_in, module.w_out
    maps_in = fused.pack(linear_in.weight[None], bias_of(linear_in)[None], precision, module.activation)
    maps_out = fused.pack(
        linear_out.weight[None], bias_of(linear_out)[None], precision, negative_share=fused.AFTER_ACTIVATION
    )
    if release:
        give_up(linear_in.weight, linear_out.weight)

    module.__class__ = FusedFeedForward
    assert isinstance(module, FusedFeedForward)
    module.packed = lambda rows: fused.experts(maps_in, maps_out, rows)
    module.packed_from = identity_of(module)

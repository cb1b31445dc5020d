"""The dense feed-forward layer, in the same contract as its Mixture-of-Experts counterpart."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.model import Activation
from moe_asr.config.placement import MoESite
from moe_asr.modules.dropout import Dropout
from moe_asr.modules.moe.routers import Router
from moe_asr.modules.moe.routing import NOTHING, Routing, Side

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

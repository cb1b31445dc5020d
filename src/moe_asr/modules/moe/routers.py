"""Who decides: routers map positions to experts and their weights."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.model import MoEConfig, RouterConfig, RouterSoftmax
from moe_asr.modules.moe.routing import MoESite, Routing


class Router(Protocol):
    """causal: it decides about a position from that position and earlier ones alone, as streaming needs."""

    num_experts: int
    top_k: int
    causal: bool

    def __call__(self, x: Tensor, valid: Tensor, site: MoESite, side: Tensor | None = None) -> Routing:
        """x (B,N,d), valid (B,N) -> what to do at this site; side: further evidence, for routers that use it."""
        ...


class TopKRouter(nn.Module):
    """A linear map without bias and the k largest logits, in at least float32 whatever x and autocast say.

    softmax "after": over the chosen logits (U2++ MoE, arXiv 2404.16407); "before": over all of them, the chosen
    probabilities being the weights (Switch, arXiv 2101.03961, section 2.1).
    """

    causal = True

    def __init__(self, width: int, num_experts: int, top_k: int, softmax: RouterSoftmax) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.softmax = num_experts, top_k, softmax
        self.project = nn.Linear(width, num_experts, bias=False)

    def forward(self, x: Tensor, valid: Tensor, site: MoESite, side: Tensor | None = None) -> Routing:
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            logits = F.linear(x.to(wide), self.project.weight.to(wide))
        chosen, expert_ids = logits.topk(self.top_k, dim=-1)
        if self.softmax is RouterSoftmax.after:
            weights = chosen.softmax(-1)
        else:
            weights = logits.softmax(-1).gather(-1, expert_ids)
        padding = ~valid.unsqueeze(-1)
        return Routing(logits, expert_ids.masked_fill(padding, -1), weights.masked_fill(padding, 0.0))


def make_router(config: RouterConfig, moe: MoEConfig, width: int) -> TopKRouter:
    return TopKRouter(width, moe.num_experts, moe.top_k, config.softmax)

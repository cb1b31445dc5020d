"""Auxiliary router losses: pure functions of the trace."""

import torch
from torch import Tensor

from moe_asr.modules.moe.routing import RoutingTrace, SiteTrace


def site_balance_loss(trace: SiteTrace) -> Tensor:
    """``E * sum_e f_e * P_e`` (Switch, arXiv 2101.03961, equations 4-6) over the valid positions of one site.

    f_e: share of the assignments that expert e got; P_e: its mean router probability. 1 when uniform, for every E and
    K; E when one expert of K=1 takes all. The gradient flows through P alone.
    """
    logits, ids = trace.routing.logits, trace.routing.expert_ids
    experts = torch.arange(logits.shape[-1], device=ids.device)
    counts = (ids.unsqueeze(-1) == experts).sum((0, 1, 2)).to(logits.dtype)
    valid = trace.valid.unsqueeze(-1)
    probability = logits.softmax(-1).masked_fill(~valid, 0.0).sum((0, 1)) / valid.sum().clamp(min=1)
    return len(experts) * (counts / counts.sum().clamp(min=1) * probability).sum()


def load_balance_loss(trace: RoutingTrace) -> Tensor:
    """The mean over sites, so that its weight does not depend on depth; 0 for a dense model."""
    return torch.stack([site_balance_loss(site) for site in trace]).mean() if trace else torch.zeros(())

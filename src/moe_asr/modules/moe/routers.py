"""Who decides: routers map positions to experts and their weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.model import MoEConfig, RouterConfig, RouterLogits, RouterScore
from moe_asr.config.placement import MoESite
from moe_asr.errors import InputError
from moe_asr.modules import fused
from moe_asr.modules.moe.noise import gumbel, uniform
from moe_asr.modules.moe.routing import NOTHING, Routing, Side
from moe_asr.randomness import torch_rng


class Router(Protocol):
    """causal: it decides about a position from that position and earlier ones alone, as streaming needs."""

    @property
    def num_experts(self) -> int: ...

    @property
    def top_k(self) -> int: ...

    @property
    def causal(self) -> bool: ...

    def __call__(self, x: Tensor, valid: Tensor, site: MoESite, side: Side = NOTHING) -> Routing:
        """x (B,N,d), valid (B,N) -> what to do at this site."""
        ...


class TopKRouter(nn.Module):
    """A preference for every expert (`RouterLogits`) and the k largest, in at least float32 whatever autocast says.

    Softmax weights, normalised over the chosen (U2++ MoE, arXiv 2404.16407) or raw (Switch, arXiv 2101.03961, section
    2.1), or sigmoid weights (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    """

    causal = True

    def __init__(self, width: int, num_experts: int, top_k: int, config: RouterConfig) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.config = num_experts, top_k, config
        if config.logits is not RouterLogits.position:
            self.project = nn.Linear(width, num_experts, bias=False)
            self.project.weight.requires_grad_(config.logits is RouterLogits.linear)
        if config.side_width:
            self.side = nn.Linear(config.side_width, num_experts, bias=False)

    def forward(
        self, x: Tensor, valid: Tensor, site: MoESite, side: Side = NOTHING, bias: Tensor | None = None
    ) -> Routing:
        """bias (E,): added to the scores for the selection alone. Raises InputError where a side input is missing."""
        with torch.autocast(x.device.type, enabled=False):
            logits = self.logits(x, site, side)
            return self.decide(logits, valid, site, side, bias)

    def logits(self, x: Tensor, site: MoESite, side: Side) -> Tensor:
        """(B,N,d) -> (B,N,E), without noise."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.config.logits is RouterLogits.position:
            if side.positions is None:
                raise ValueError(f"the router of {site} needs positions: pass Side(positions=...).")
            place = side.positions.expand(x.shape[:2]).unsqueeze(-1)
            expert = torch.arange(self.num_experts, device=x.device)
            return torch.where((expert - place) % self.num_experts < self.top_k, 0.0, -1e4).to(wide)
        logits = F.linear(x.to(wide), self.project.weight.to(wide))
        if self.config.side_width:
            if side.embedding is None:
                raise InputError(
                    f"the router of {site} needs a side input, which Python callers pass as Side(embedding=...): "
                    "elsewhere write router.side_width=0."
                )
            given = F.linear(side.embedding.to(wide), self.side.weight.to(wide))
            logits = logits + (given if given.ndim == 3 else given.unsqueeze(1))
        return logits

    def decide(
        self, logits: Tensor, valid: Tensor, site: MoESite, side: Side = NOTHING, bias: Tensor | None = None
    ) -> Routing:
        """Noise if training, the selection, and the weights of the chosen."""
        config, experts = self.config, self.num_experts
        if self.training and config.jitter > 0:
            logits = logits * (1 + config.jitter * (2 * uniform("jitter", side, site, experts) - 1)).to(logits.dtype)
        sigmoid = config.score is RouterScore.sigmoid
        scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
        preference = logits
        if self.training and config.gumbel > 0:
            preference = preference + config.gumbel * gumbel(side, site, experts).to(preference.dtype)
        if bias is not None:
            preference = (preference.sigmoid() if sigmoid else preference.softmax(-1)) + bias.to(preference)
        expert_ids = preference.topk(self.top_k, dim=-1).indices
        if config.normalize and not sigmoid:
            weights = logits.gather(-1, expert_ids).softmax(-1)
        else:
            weights = scores.gather(-1, expert_ids)
            if config.normalize:
                weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        unused = ~valid.unsqueeze(-1)
        if self.training and config.capacity_factor is not None:
            unused = unused | _overflow(expert_ids, valid, experts, config.capacity_factor)
        return Routing(
            logits,
            expert_ids.masked_fill(unused, -1),
            (weights * config.scale).masked_fill(unused, 0.0),
            config.score,
        )


class FusedRouter(TopKRouter):
    """What `fuse_router` makes of one in place: the same, with fewer steps where nothing is special."""

    def forward(
        self, x: Tensor, valid: Tensor, site: MoESite, side: Side = NOTHING, bias: Tensor | None = None
    ) -> Routing:
        config, weight = self.config, self.project.weight
        if torch.is_grad_enabled() or self.training or bias is not None or not x.dtype == weight.dtype == torch.float32:
            return super().forward(x, valid, site, side, bias)
        decided = fused.route(x, weight, valid, self.top_k, config.normalize, config.scale)
        return Routing(*decided, config.score)


def fuse_router(router: TopKRouter) -> None:
    """Where logits are a linear map of the input alone, and scores their softmax; others stay as they are."""
    config = router.config
    if config.logits is not RouterLogits.position and config.score is RouterScore.softmax and not config.side_width:
        router.__class__ = FusedRouter


def _overflow(expert_ids: Tensor, valid: Tensor, num_experts: int, factor: float) -> Tensor:
    """(B,N,K): the assignments beyond each expert's capacity, ``factor * valid positions * K / E``, rounded up.

    First choices come before second ones, then earlier positions before later ones (Switch, arXiv 2101.03961, 2.2).
    """
    capacity = -int(-factor * int(valid.sum()) * expert_ids.shape[-1] // num_experts)
    one_hot = F.one_hot(expert_ids.masked_fill(~valid.unsqueeze(-1), num_experts), num_experts + 1)[..., :-1]
    in_order = one_hot.permute(2, 0, 1, 3).flatten(0, 2)
    place = (in_order.cumsum(0) * in_order).sum(-1).view(expert_ids.shape[-1], *valid.shape).permute(1, 2, 0)
    return place > capacity


@dataclass(frozen=True)
class Around:
    """What is built around another router is a router of the same shape."""

    router: Router

    @property
    def num_experts(self) -> int:
        return self.router.num_experts

    @property
    def top_k(self) -> int:
        return self.router.top_k

    @property
    def causal(self) -> bool:
        return self.router.causal


@dataclass(frozen=True)
class Biased(Around):
    """A router with the balance bias (E,) of one site, which belongs to the site even where the router is shared."""

    router: TopKRouter
    bias: Tensor

    def __call__(self, x: Tensor, valid: Tensor, site: MoESite, side: Side = NOTHING) -> Routing:
        return self.router(x, valid, site, side, self.bias)


@dataclass(frozen=True)
class Forced(Around):
    """A router whose chosen experts others replace: `choose` maps its routing to expert ids (B,N,K).

    Empty slots stay empty, and the weights are the router's own, so that only who computes is changed.
    """

    choose: Callable[[Routing, MoESite, Side], Tensor]

    def __call__(self, x: Tensor, valid: Tensor, site: MoESite, side: Side = NOTHING) -> Routing:
        routing = self.router(x, valid, site, side)
        return replace(routing, expert_ids=self.choose(routing, site, side).where(routing.expert_ids >= 0, -1))


def random_experts(routing: Routing, site: MoESite, side: Side) -> Tensor:
    """Different experts, uniformly drawn for each position."""
    return uniform("forced", side, site, routing.logits.shape[-1]).topk(routing.expert_ids.shape[-1]).indices


def fixed_expert(expert: int) -> Callable[[Routing, MoESite, Side], Tensor]:
    """This expert first, and with K > 1 those that follow it in number."""

    def choose(routing: Routing, site: MoESite, side: Side) -> Tensor:
        slots = torch.arange(routing.expert_ids.shape[-1], device=routing.expert_ids.device)
        return ((expert + slots) % routing.logits.shape[-1]).expand_as(routing.expert_ids)

    return choose


def permuted(seed: int) -> Callable[[Routing, MoESite, Side], Tensor]:
    """At each site every expert does the work of another one, by a permutation that depends on seed and site."""

    def choose(routing: Routing, site: MoESite, side: Side) -> Tensor:
        order = torch.randperm(routing.logits.shape[-1], generator=torch_rng("permutation", seed, str(site)))
        return order.to(routing.expert_ids.device)[routing.expert_ids]

    return choose


def without(router: Router, expert: int) -> Biased:
    """A top-k router that chooses the next best instead of this expert; normalised weights sum to 1 as ever.

    Raises ValueError for a router of another kind.
    """
    own = router.router if isinstance(router, Biased) else router
    if not isinstance(own, TopKRouter):
        raise ValueError(f"no expert can be forbidden to a {type(own).__name__}.")
    bias = router.bias.clone() if isinstance(router, Biased) else torch.zeros(own.num_experts)
    bias[expert] = -torch.inf
    return Biased(own, bias)


def make_router(config: RouterConfig, moe: MoEConfig, width: int) -> TopKRouter:
    return TopKRouter(width, moe.num_experts, moe.top_k, config)

"""Auxiliary router losses: pure functions of the sums over a trace, a value for each site."""

from collections.abc import Callable, Mapping

from torch import Tensor

from moe_asr.config.model import LossConfig
from moe_asr.modules.moe.statistics import RoutingSums


def balance(sums: RoutingSums) -> Tensor:
    """``E * sum_e f_e * P_e`` (Switch, arXiv 2101.03961, equations 4-6), (S,).

    f_e: share of the assignments that expert e got; P_e: its mean router probability. 1 when uniform, for every E and
    K; E when one expert of K=1 takes all. The gradient flows through P alone.
    """
    return sums.counts.shape[-1] * (sums.load * sums.mean_probability).sum(-1)


def importance(sums: RoutingSums) -> Tensor:
    """``E * sum_e P_e ** 2`` (SpeechMoE, arXiv 2105.03036), (S,): 1 when uniform, E when collapsed.

    One more than the squared coefficient of variation of the experts' importance (arXiv 1701.06538, equation 7).
    """
    return sums.counts.shape[-1] * sums.mean_probability.square().sum(-1)


def z(sums: RoutingSums) -> Tensor:
    """Mean of ``logsumexp(logits) ** 2`` (ST-MoE, arXiv 2202.08906, equation 5), (S,): keeps logits small."""
    return sums.squared_log_norm / sums.per_position[:, 0]


def entropy(sums: RoutingSums) -> Tensor:
    """Mean entropy of a position's probabilities in nats, (S,): log E when unsure, 0 when certain."""
    return sums.entropy / sums.per_position[:, 0]


def sparsity(sums: RoutingSums) -> Tensor:
    """Mean of ``|p|_1 / |p|_2`` (SpeechMoE, arXiv 2105.03036), (S,): sqrt E when unsure, 1 when certain."""
    return sums.unit_l1 / sums.per_position[:, 0]


def compute(sums: RoutingSums, costs: Tensor, budget: float) -> Tensor:
    """``max(0, sum_e P_e c_e - budget)``, (S,): the expected cost of a position beyond its budget.

    costs (E,): of each expert, relative to the widest.
    """
    return ((sums.mean_probability * costs.to(sums.values)).sum(-1) - budget).clamp(min=0)


def auxiliary_losses(sums: RoutingSums | None, config: LossConfig, costs: Tensor) -> Mapping[str, Tensor]:
    """Those with a weight, unweighted, each the mean over sites, so that its weight does not depend on depth.

    A dense model has none.
    """
    losses: dict[str, Callable[[RoutingSums], Tensor]] = {
        "balance": balance,
        "importance": importance,
        "z": z,
        "entropy": entropy,
        "sparsity": sparsity,
        "compute": lambda sums: compute(sums, costs, config.compute_budget),
    }
    if sums is None:
        return {}
    return {name: loss(sums).mean() for name, loss in losses.items() if getattr(config, name) != 0}

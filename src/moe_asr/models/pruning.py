"""Fewer experts from more: the little used ones are left out, or merged into those that are kept."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moe_asr.config.prune import Method
from moe_asr.models.u2pp import AsrModel, module_name


def composition(load: Tensor, rows: Tensor, num_experts: int, method: Method) -> Tensor:
    """(N,E) float64: the share of every old expert in each new one; rows sum to 1.

    load (E,): by which the N most used are kept, in their order; rows (E,d): of their router, the cosine of which
    says into which kept expert another one is merged, weighted by load (cf. M-SMoE, arXiv 2310.01334).
    """
    load, experts = load.double(), torch.arange(len(load))
    kept = load.argsort(descending=True, stable=True)[:num_experts].sort().values
    alone = F.one_hot(kept, len(load)).double()
    if method is Method.drop:
        return alone
    into = F.cosine_similarity(rows.unsqueeze(1), rows[kept], dim=-1).argmax(-1)
    into[kept] = torch.arange(num_experts)
    shares = torch.zeros_like(alone)
    shares[into, experts] = load
    total = shares.sum(-1, keepdim=True)
    return torch.where(total > 0, shares / total.clamp(min=torch.finfo(total.dtype).tiny), alone)


def pruned(model: AsrModel, compositions: Sequence[Tensor]) -> dict[str, Tensor]:
    """The weights of `model` with fewer experts, of which those of router r are composed as ``compositions[r]`` says.

    Experts of one width, on the CPU. What is composed of one expert alone is that expert, bit by bit.
    """
    weights = model.state_dict()
    for name in [name for name in weights if name.startswith("routers.routers.")]:
        weights[name] = _composed(compositions[int(name.split(".")[2])], weights[name])
    for site, router in model.routers.table.items():
        names = [f"{module_name(site)}.banks.0.{part}" for part in ("w_in", "b_in", "w_out", "b_out")]
        stacks = _aligned([weights[name] for name in names], compositions[router])
        weights |= {n: _composed(compositions[router], stack) for n, stack in zip(names, stacks, strict=True)}
    if model.routers.bias is not None:
        biases = zip(model.routers.table.values(), model.routers.bias, strict=True)
        weights["routers.bias"] = torch.stack([_composed(compositions[router], bias) for router, bias in biases])
    return weights


def _composed(shares: Tensor, stack: Tensor) -> Tensor:
    return torch.tensordot(shares, stack.double(), 1).to(stack.dtype)


def _aligned(stacks: Sequence[Tensor], shares: Tensor) -> list[Tensor]:
    """Experts with their hidden units in the order in which they are the most like those that they are merged with.

    The order changes nothing of what an expert computes, but all of what a mean of two of them does.
    """
    w_in, b_in, w_out, b_out = (stack.clone() for stack in stacks)
    units = torch.cat([w_in, b_in.unsqueeze(-1), w_out.transpose(1, 2)], -1).double()
    for row in shares:
        first = int(row.argmax())
        for expert in row.nonzero().flatten().tolist():
            if expert != first:
                order = linear_sum_assignment((units[first] @ units[expert].T).numpy(), maximize=True)[1]
                w_in[expert], b_in[expert] = w_in[expert][order], b_in[expert][order]
                w_out[expert] = w_out[expert][:, order]
    return [w_in, b_in, w_out, b_out]

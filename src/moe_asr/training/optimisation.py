"""Optimiser, learning rate, frozen parameters and gradient norms."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from moe_asr.config.compose import closest
from moe_asr.config.placement import MoESite
from moe_asr.config.program import OptimConfig, OptimizerName, Schedule
from moe_asr.errors import InputError
from moe_asr.modules.moe.layer import MoEFeedForward
from moe_asr.modules.moe.sharing import RouterBank


def check_prefixes(option: str, prefixes: Iterable[str], names: Sequence[str]) -> None:
    """Refuses a parameter prefix that matches nothing."""
    modules = sorted({".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)})
    for prefix in prefixes:
        if not any(matches(name, prefix) for name in names):
            raise InputError(f"{option} names {prefix}, which no parameter starts with{closest(prefix, modules)}")


def matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    check_prefixes("freeze", prefixes, [name for name, _ in model.named_parameters()])
    for name, parameter in model.named_parameters():
        if any(matches(name, prefix) for prefix in prefixes):
            parameter.requires_grad_(False)


def scale_of(name: str, scales: Mapping[str, float]) -> float:
    """The learning-rate factor of a parameter: that of the longest matching prefix, else 1."""
    fitting = [prefix for prefix in scales if matches(name, prefix)]
    return scales[max(fitting, key=len)] if fitting else 1.0


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW; vectors and scalars (norms, biases) are not decayed. Each group keeps its `scale`."""
    check_prefixes("optim.lr_scale", config.lr_scale, [name for name, _ in model.named_parameters()])
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            leaf = name.rpartition(".")[2]
            bias = parameter.ndim == 1 or "bias" in leaf or leaf.startswith("b_")  # those of experts are (E,f)
            decay = 0.0 if bias else config.weight_decay
            grouped.setdefault((scale_of(name, config.lr_scale), decay), []).append(parameter)
    if not grouped:
        raise InputError("Nothing is left to train: freeze covers every parameter.")
    groups = [{"params": p, "scale": scale, "weight_decay": decay} for (scale, decay), p in sorted(grouped.items())]
    kind = torch.optim.AdamW if config.name is OptimizerName.adamw else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]))


def schedule_factor(step: int, config: OptimConfig, total_steps: int) -> float:
    """The share of the peak rate at optimiser step `step` (from 1); a linear warm-up, then what the schedule says."""
    if step < config.warmup_steps:
        return step / config.warmup_steps
    if config.schedule is Schedule.linear:
        return (total_steps - step + 1) / max(total_steps - config.warmup_steps + 1, 1)
    return (max(config.warmup_steps, 1) / step) ** 0.5


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int, total_steps: int) -> float:
    """Sets the rate of optimiser step `step` (from 1) in every group; a function of the step, so there is no state."""
    lr = config.lr * schedule_factor(step, config, total_steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    return lr


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """L2 norm of the gradient of each top-level part of the model ("encoder", "ctc", ...)."""
    return {
        name: torch.nn.utils.get_total_norm([p.grad for p in part.parameters() if p.grad is not None])
        for name, part in model.named_children()
        if any(p.grad is not None for p in part.parameters())
    }


def router_gradients(routers: RouterBank, sites: Iterable[MoESite]) -> dict[str, float]:
    """L2 norm of the gradient of each learned router that served one of these sites, by its number; 0 where it has
    none. A router of a single expert has nothing to learn and is left out."""
    serving = sorted({routers.table[site] for site in sites})
    found = {}
    for number, router in ((n, routers.routers[n]) for n in serving):
        learned = [p for p in router.parameters() if p.requires_grad]
        if learned and router.num_experts > 1:
            found[str(number)] = float(torch.nn.utils.get_total_norm([p.grad for p in learned if p.grad is not None]))
    return found


def expert_gradients(model: nn.Module) -> dict[str, float]:
    """L2 norm of the gradient of each expert, as "SITE/grad_norm/EXPERT"; null and frozen experts have none."""
    found: dict[str, float] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, MoEFeedForward):
            continue
        stack, _, depth, slot = name.split(".")[-4:]
        for bank, places in zip(layer.banks, layer.places.tolist(), strict=True):
            squares = [p.grad.flatten(1).square().sum(1) for p in bank.parameters() if p.grad is not None]
            if squares:
                norms = torch.stack(squares).sum(0).sqrt().tolist()
                mine = ((expert, place) for expert, place in enumerate(places[:-1]) if place >= 0)
                found |= {f"{MoESite(stack, int(depth), slot)}/grad_norm/{e}": norms[place] for e, place in mine}
    return found

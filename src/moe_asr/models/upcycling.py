"""Upcycling: the feed-forward layers of a dense model become experts that compute the same (arXiv 2212.05055)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_asr.config.model import MoEConfig, RouterConfig, RouterLogits, RouterScore, require
from moe_asr.config.placement import MoESite
from moe_asr.config.program import TrainConfig, UpcycleConfig
from moe_asr.models.u2pp import AsrModel, module_name
from moe_asr.randomness import torch_rng

NAMES = {"w_in": "w_in.weight", "b_in": "w_in.bias", "w_out": "w_out.weight", "b_out": "w_out.bias"}
"""Tensor of a bank of experts, stacked -> that of a dense layer."""


def upcycled(
    model: AsrModel, config: TrainConfig, source: TrainConfig, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of the experts of `model`, built from `config`, at every site where `source`, with `weights`, is dense.

    Each expert is a copy of the dense layer, varied by `config.upcycle`; shared experts begin with no say: their output
    is 0. So the model computes what `source` does, unless the experts vary. Empty where nothing is dense.

    Raises InputError where that is impossible, naming options with which it is not.
    """
    sites = [site for site in model.routers.sites if f"{module_name(site)}.w_in.weight" in weights]
    if not sites:
        return {}
    share = _sum_of_weights(config.moe, config.router)
    state = model.state_dict()
    made: dict[str, Tensor] = {}
    for site in sites:
        name = module_name(site)
        dense = {ours: weights[f"{name}.{theirs}"] for ours, theirs in NAMES.items()}
        _check_shape(site, dense["w_in"], config, source)
        dense |= {output: dense[output] / share for output in ("w_out", "b_out")}
        copies = [_varied(dense, config.upcycle, config.seed, str(site), e) for e in range(config.moe.num_experts)]
        made |= {f"{name}.banks.0.{ours}": torch.stack([copy[ours] for copy in copies]) for ours in NAMES}
        if config.moe.shared_experts:
            silent = [f"{name}.shared.{NAMES[output]}" for output in ("w_out", "b_out")]
            made |= {output: torch.zeros_like(state[output]) for output in silent}
    return made


def _sum_of_weights(moe: MoEConfig, router: RouterConfig) -> float:
    """What the weights of a position sum to, which must be the same for all positions, in training too."""
    require(
        router.capacity_factor is None,
        f"router.capacity_factor={router.capacity_factor} drops what the dense model computed: "
        "write router.capacity_factor=null.",
    )
    certain = router.logits is RouterLogits.position  # every chosen expert has the same score
    if router.normalize or (router.score is RouterScore.softmax and (certain or moe.top_k == moe.num_experts)):
        return router.scale
    require(
        certain,
        "router.normalize=false weighs experts by numbers that vary from frame to frame, so no copies compute what the "
        f"dense model did: write router.normalize=true{' moe.top_k=2' if moe.top_k == 1 else ''}.",
    )
    return router.scale * moe.top_k / 2  # sigmoid(0) each


def _check_shape(site: MoESite, w_in: Tensor, config: TrainConfig, source: TrainConfig) -> None:
    stack = "encoder" if site.stack == "encoder" else "decoder"
    old, new = getattr(source.model, stack), getattr(config.model, stack)
    (hidden, width), moe = w_in.shape, config.moe
    require(
        config.model.encoder.width == width,
        f"the dense model to upcycle has another width: write model.encoder.width={width}.",
    )
    require(moe.bias, "moe.bias=false has no place for the biases of the dense model: write moe.bias=true.")
    require(
        set(moe.expert_widths or [moe.expert_width or new.ffn_width]) == {hidden},
        f"copies of the dense {site} all have its {hidden} hidden units: "
        f"write moe.expert_widths=[] moe.expert_width=null model.{stack}.ffn_width={hidden}.",
    )
    require(
        (moe.activation or new.activation) is old.activation,
        f"the activation of the dense {site} is another: write moe.activation={old.activation}.",
    )


def _varied(dense: Mapping[str, Tensor], options: UpcycleConfig, *key: int | str) -> dict[str, Tensor]:
    """A copy of (w_in (f,d), b_in (f), w_out (d,f), b_out (d)) that depends on the key alone.

    Units that are drawn anew have the mean and variance of those they replace (Drop-Upcycling, section 3).
    """
    copy = {name: tensor.clone() for name, tensor in dense.items()}
    rng = torch_rng("upcycle_drop", *key)
    units = torch.randperm(len(copy["b_in"]), generator=rng)[: round(options.drop * len(copy["b_in"]))]
    for name, dim in (("w_in", 0), ("b_in", 0), ("w_out", 1)) if len(units) else ():
        old = copy[name].index_select(dim, units)
        new = old.mean() + old.std(correction=0) * torch.randn(old.shape, generator=rng, dtype=old.dtype)
        copy[name].index_copy_(dim, units, new)
    rng = torch_rng("upcycle_noise", *key)
    for tensor in copy.values() if options.noise else ():
        size = options.noise * tensor.square().mean().sqrt()
        tensor += size * torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype)
    return copy

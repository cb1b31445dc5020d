"""Pruning by measured use: which experts a model needs on a set of utterances, and the model without the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from lhotse.cut import Cut
from torch import Tensor

from moe_asr.analysis.load import measured
from moe_asr.config.model import RouterLogits, require
from moe_asr.config.prune import Method
from moe_asr.data.batches import read_all, similar
from moe_asr.data.manifest import describe
from moe_asr.data.selection import target_text
from moe_asr.errors import InputError
from moe_asr.models.pruning import composition, pruned
from moe_asr.modules.moe.statistics import RoutingSums
from moe_asr.runs.checkpoint import Checkpoint
from moe_asr.runs.recognizer import Recognizer
from moe_asr.tensors import Chunking


@dataclass(frozen=True)
class Removed:
    """An expert that is no more, its load, and the number, as it was, of the one that it was merged into, if any."""

    site: str
    expert: int
    load: float
    into: int | None


@torch.inference_mode()
def measure_use(recognizer: Recognizer, cuts: Sequence[Cut]) -> RoutingSums:
    """Over all sites, under the decode context of the run; decoders read the references.

    Raises InputError where nothing can be read.
    """
    decode, model, tokenizer = recognizer.config.decode, recognizer.model, recognizer.tokenizer
    routed: RoutingSums | None = None
    for group in similar(cuts, decode.batch, decode.batch_seconds):
        samples, _ = read_all(group, recognizer.config.features.sample_rate)
        if samples:
            encoded = recognizer.encode(list(samples.values()), Chunking(decode.chunk, decode.left))
            said = [tokenizer.encode(target_text(describe(group[i]), tokenizer.unit)) for i in samples]
            routed = measured(encoded.routing + model.decoder_routing(encoded, said), routed)
    if routed is None:
        raise InputError(f"None of the {len(cuts)} utterances to measure on can be read; choose other sets=[...].")
    return RoutingSums(routed.sites, routed.values.cpu())


def prune(
    recognizer: Recognizer, cuts: Sequence[Cut], num_experts: int, method: Method
) -> tuple[Checkpoint, list[Removed]]:
    """The model with the experts of every router that these utterances use most, and what it lost, by site.

    Experts of equal number at the sites of one router stay together: their loads are added up. Raises InputError for
    a model whose experts cannot be pruned, and a number that is too small or too large.
    """
    config, model, moe = recognizer.config, recognizer.model, recognizer.config.moe
    routers = model.routers
    require(bool(routers.sites), "this model is dense: it has no expert to prune.")
    require(
        moe.top_k <= num_experts < moe.num_experts,
        f"num_experts={num_experts} must be less than the {moe.num_experts} experts of this model, and at least its "
        f"moe.top_k={moe.top_k}.",
    )
    require(len(set(moe.expert_widths)) <= 1, "the experts of this model differ in width, which prune cannot take.")
    require(
        config.router.logits is not RouterLogits.position,
        "router.logits=position counts experts instead of choosing them, so that none can be spared.",
    )
    use = measure_use(recognizer, cuts)
    load = dict(zip(use.sites, use.load, strict=True))
    model.cpu()
    compositions = [
        composition(
            torch.stack([load[site] for site in routers.sites if routers.table[site] == number]).sum(0),
            router.project.weight.detach(),
            num_experts,
            method,
        )
        for number, router in enumerate(routers.routers)
    ]
    weights = pruned(model, compositions)
    smaller = replace(moe, num_experts=num_experts, expert_widths=moe.expert_widths[:num_experts])
    removed = [
        gone for site in routers.sites for gone in _gone(str(site), load[site], compositions[routers.table[site]])
    ]
    return Checkpoint(replace(config, moe=smaller), recognizer.tokenizer, weights), removed


def _gone(site: str, load: Tensor, shares: Tensor) -> Iterator[Removed]:
    kept = shares.argmax(1).tolist()
    for expert, part in enumerate(shares.T):
        if expert not in kept:
            into = kept[int(part.argmax())] if part.any() else None
            yield Removed(site, expert, float(load[expert]), into)

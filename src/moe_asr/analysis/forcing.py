"""Forced routing: a trained model whose experts somebody else chooses, to learn what its routers are worth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_asr.analysis.trace import Trace, load_trace
from moe_asr.config.model import require
from moe_asr.config.placement import MoESite, moe_sites
from moe_asr.config.routing import RoutingConfig
from moe_asr.errors import InputError
from moe_asr.modules.moe.routers import Around, Forced, Router, fixed_expert, permuted, random_experts, without
from moe_asr.modules.moe.routing import NOTHING, Routing, Side
from moe_asr.runs.recognizer import Recognizer, utterance_key


def forced(recognizer: Recognizer, config: RoutingConfig) -> Recognizer:
    """The recognizer with other routers at the sites asked for; itself where nothing is asked.

    Raises InputError for a dense model, for sites or experts that it lacks, and for a trace of another model.
    """
    if config.choose is None:
        return recognizer
    bank, experts, top_k = recognizer.model.routers, recognizer.config.moe.num_experts, recognizer.config.moe.top_k
    asked, replayed = f"routing.choose={config.choose}", config.trace is not None
    require(bool(bank.sites), f"{asked}: this model is dense and has no routing; leave it out.")
    within = moe_sites(recognizer.config.model, config.sites, "routing.sites")
    chosen = [site for site in bank.sites if site in within and (site.stack == "encoder" or not replayed)]
    require(
        bool(chosen),
        f"routing.sites={config.sites} names no {'encoder' if replayed else 'MoE'} site of this model, "
        f"which has {', '.join(map(str, bank.sites))}.",
    )
    kind, _, number = config.choose.partition("_")
    expert = int(number or 0)
    require(expert < experts or kind == "permuted", f"{asked}: this model's experts are 0 to {experts - 1}.")
    require(kind != "without" or top_k < experts, f"{asked}: all {experts} experts are needed, as moe.top_k={top_k}.")
    trace = replayable(config.trace, chosen, experts, top_k) if config.trace is not None else None
    numbers = {utterance_key(u["id"]): number for number, u in enumerate(trace.utterances)} if trace else {}

    def force(router: Router, site: MoESite) -> Router:
        if trace is not None:
            return Replay(router, trace, numbers)
        match kind:
            case "random":
                return Forced(router, random_experts)
            case "expert":
                return Forced(router, fixed_expert(expert))
            case "permuted":
                return Forced(router, permuted(expert))
            case _:
                return without(router, expert)

    routers = {site: router for site in bank.sites if (router := bank.get(site)) is not None}
    return replace(recognizer, routers=routers | {site: force(routers[site], site) for site in chosen})


def replayable(folder: str, sites: list[MoESite], num_experts: int, top_k: int) -> Trace:
    """The trace; raises InputError unless it has these sites, and as many experts."""
    trace = load_trace(folder)
    shape = trace.card["top_k"], trace.card["num_experts"]
    require(
        {str(site) for site in sites} <= set(trace.sites) and shape == (top_k, num_experts),
        f"routing.trace={folder} is of another model (top {shape[0]} of {shape[1]} experts at "
        f"{', '.join(trace.sites)}): trace this one, or say with routing.sites where to replay it.",
    )
    return trace


@dataclass(frozen=True)
class Replay(Around):
    """The ids and weights of a trace, looked up by utterance key and position; the logits are the router's own.

    numbers: of the utterances in the trace, by key. Raises InputError for an utterance, or frames, that it lacks.
    """

    trace: Trace
    numbers: Mapping[int, int]

    def __call__(self, x: Tensor, valid: Tensor, site: MoESite, side: Side = NOTHING) -> Routing:
        own, rows, stored = self.router(x, valid, site, side), self.rows(valid, side), self.trace.sites[str(site)]
        ids, weights = (torch.from_numpy(array[rows.numpy()]).to(x.device) for array in (stored.ids, stored.weights))
        empty = ~valid.unsqueeze(-1)
        return replace(
            own,
            expert_ids=ids.to(own.expert_ids.dtype).masked_fill(empty, -1),
            weights=weights.to(own.weights.dtype).masked_fill(empty, 0.0),
        )

    def rows(self, valid: Tensor, side: Side) -> Tensor:
        """(B,N) the rows of these positions; any for padding."""
        if side.keys is None or side.positions is None:
            raise ValueError("a replay needs the key of each utterance: pass Side(keys=...).")
        numbers = [self.numbers.get(key, -1) for key in side.keys.tolist()]
        offsets = torch.from_numpy(self.trace.offsets["encoder"])
        first, end = offsets[:-1][numbers], offsets[1:][numbers]
        rows = first.unsqueeze(1) + side.positions.cpu()
        if bool((valid.cpu() & ((rows >= end.unsqueeze(1)) | (torch.tensor(numbers) < 0).unsqueeze(1))).any()):
            names = [u["id"] for u in self.trace.utterances]
            raise InputError(
                f"routing.trace has not all frames of what is recognised here: it is of {len(names)} utterances from "
                f"{names[0]} to {names[-1]}; trace the same audio."
            )
        return rows.clamp(0, int(offsets[-1]) - 1)

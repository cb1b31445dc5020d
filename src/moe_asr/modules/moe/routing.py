"""What a router decided: plain values that losses, telemetry and analysis are pure functions of."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_asr.config.model import RouterScore
from moe_asr.config.placement import MoESite


@dataclass(frozen=True)
class Routing:
    """logits (B,N,E), float32 or wider; expert_ids (B,N,K); weights (B,N,K).

    An id of -1 is an empty slot (padding, a dropped position, a skipped expert), which is neither computed nor
    counted; its weight is 0. score: what makes probabilities of logits.
    """

    logits: Tensor
    expert_ids: Tensor
    weights: Tensor
    score: RouterScore = RouterScore.softmax

    @property
    def probabilities(self) -> Tensor:
        """(B,N,E), summing to 1: the softmax, or each sigmoid's share of their sum (DeepSeek-V3, arXiv 2412.19437)."""
        if self.score is RouterScore.softmax:
            return self.logits.softmax(-1)
        scores = self.logits.sigmoid()
        return scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


@dataclass(frozen=True)
class Side:
    """What a router may know about its positions beside their input.

    keys (B,): int64, a seed for each utterance, which all routing noise depends on; embedding (B,S) or (B,N,S): of the
    utterance, speaker or language; positions (N,) or (B,N): counted from the beginning of the utterance, filled in by
    the encoder and the decoders.
    """

    keys: Tensor | None = None
    embedding: Tensor | None = None
    positions: Tensor | None = None

    def at(self, positions: Tensor, repeats: int = 1) -> "Side":
        """The same at these positions, every utterance `repeats` times in a row (its hypotheses)."""
        rows = (self.keys, self.embedding)
        keys, embedding = (t if t is None or repeats == 1 else t.repeat_interleave(repeats, 0) for t in rows)
        return Side(keys, embedding, positions)

    def select(self, rows: Tensor) -> "Side":
        keys, embedding = (t if t is None else t[rows] for t in (self.keys, self.embedding))
        return replace(self, keys=keys, embedding=embedding)


NOTHING = Side()


@dataclass(frozen=True)
class SiteTrace:
    """What happened at one site; valid (B,N) is False on padding."""

    site: MoESite
    routing: Routing
    valid: Tensor


RoutingTrace = tuple[SiteTrace, ...]
"""All sites in network order: encoder sites on frames, decoder sites on tokens."""


def concatenate(traces: Iterable[RoutingTrace]) -> RoutingTrace:
    """Traces of consecutive stretches of the same utterances -> one trace over all their positions."""
    return tuple(
        SiteTrace(
            parts[0].site,
            replace(
                parts[0].routing,
                logits=torch.cat([part.routing.logits for part in parts], 1),
                expert_ids=torch.cat([part.routing.expert_ids for part in parts], 1),
                weights=torch.cat([part.routing.weights for part in parts], 1),
            ),
            torch.cat([part.valid for part in parts], 1),
        )
        for parts in zip(*traces, strict=True)
    )

"""CTC prefix beam search: the most probable texts, each summed over all its alignments (arXiv 1408.2873, section 2)."""

from dataclasses import dataclass
from math import exp, log1p
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from moe_asr.decoding.context import Context
from moe_asr.decoding.hypotheses import Hypothesis

NEVER = -float("inf")

Emissions = tuple[int, float, Any] | None
"""The newest token of a prefix: the last frame of its run, its peak log probability, and the tokens before it.

Prefixes share their beginnings.
"""


class Prefix(NamedTuple):
    """A text that the frames so far may have said; what its tokens are is told by `last` and the chain of `before`.

    key, parent: hashes of the tokens, and of all but the last. blank, label: log probability of its alignments that
    end in blank, and in its last token; total: of both. path_blank, path_label: of the best single alignment of each,
    and when that one emitted the tokens. bonus: what the context added so far.
    """

    key: int
    parent: int
    last: int
    before: "Prefix | None"
    blank: float
    label: float
    total: float
    path_blank: float
    path_label: float
    when_blank: Emissions
    when_label: Emissions
    bonus: float
    context: Any

    def source(self, token: int) -> tuple[float, float, Emissions]:
        """What a new `token` goes on from: all alignments, but after the same token only those that end in blank."""
        if token == self.last or self.path_blank > self.path_label:
            return (self.blank if token == self.last else self.total), self.path_blank, self.when_blank
        return self.total, self.path_label, self.when_label


@dataclass(frozen=True)
class BeamState:
    """Where a search stands: the frames heard, and the prefixes, best first."""

    frames: int
    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True)
class CtcPrefixBeam:
    """Keeps `beam` prefixes, and extends them by the `beam` most probable classes of a frame, of which blank is one.

    Exact but for these two cuts. A context adds to the score of a text, in the ranking of prefixes too.
    """

    beam: int
    blank: int = 0
    context: Context | None = None

    def start(self) -> BeamState:
        context = None if self.context is None else self.context.start
        return BeamState(0, (Prefix(0, 0, -1, None, 0.0, NEVER, 0.0, 0.0, NEVER, None, None, 0.0, context),))

    def advance(self, state: BeamState, log_probs: Tensor) -> BeamState:
        """The state after more frames, log_probs (N,V)."""
        best, classes = log_probs.topk(min(self.beam, log_probs.shape[-1]))
        prefixes = state.prefixes
        for frame, (ids, scores) in enumerate(zip(classes.tolist(), best.tolist(), strict=True), state.frames):
            prefixes = self._step(prefixes, frame, dict(zip(ids, scores, strict=True)))
        return BeamState(state.frames + len(log_probs), prefixes)

    def partial(self, state: BeamState) -> list[Hypothesis]:
        """The n-best so far, best first."""
        return [_hypothesis(prefix, prefix.bonus) for prefix in state.prefixes]

    def finish(self, state: BeamState) -> list[Hypothesis]:
        """The n-best, best first, once no frame follows and the context has had its last word."""
        if self.context is None:
            return self.partial(state)
        found = [_hypothesis(p, p.bonus + self.context.finish(p.context)) for p in state.prefixes]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)

    def __call__(self, log_probs: Tensor, frame_lengths: Tensor) -> list[list[Hypothesis]]:
        """log_probs (B,N,V), frame_lengths (B,) -> the n-best of each utterance.

        Scores are sums over alignments; frames are where a token's run ends in the best single one.
        """
        rows = zip(log_probs, frame_lengths.tolist(), strict=True)
        return [self.finish(self.advance(self.start(), row[:length])) for row, length in rows]

    def _step(self, prefixes: tuple[Prefix, ...], frame: int, classes: dict[int, float]) -> tuple[Prefix, ...]:
        """The best prefixes after a frame, in which only `classes`, with their log probabilities, may occur."""
        silence = classes.pop(self.blank, NEVER)
        known = {prefix.key: prefix for prefix in prefixes}
        children: dict[int, set[int]] = {}  # by the parent's key: tokens whose extension is a known prefix
        ranked: list[tuple[float, Prefix, int, float]] = []  # score; a known prefix, its new token or -1, its bonus
        for prefix in prefixes:
            p = classes.get(prefix.last, NEVER)
            label, path, when = prefix.label + p, prefix.path_label + p, prefix.when_label
            if when is not None:
                when = (frame, max(p, when[1]), when[2])
            parent = known.get(prefix.parent) if p > NEVER and prefix.before is not None else None
            if parent is not None:
                children.setdefault(parent.key, set()).add(prefix.last)
                total, new_path, new_when = parent.source(prefix.last)
                label = _log_add(label, total + p)
                if new_path + p > path:
                    path, when = new_path + p, (frame, p, new_when)
            on_blank = prefix.path_blank > prefix.path_label
            blank, total = prefix.total + silence, _log_add(prefix.total + silence, label)
            if total > NEVER:
                kept = Prefix(
                    prefix.key,
                    prefix.parent,
                    prefix.last,
                    prefix.before,
                    blank,
                    label,
                    total,
                    (prefix.path_blank if on_blank else prefix.path_label) + silence,
                    path,
                    prefix.when_blank if on_blank else prefix.when_label,
                    when,
                    prefix.bonus,
                    prefix.context,
                )
                ranked.append((total + prefix.bonus, kept, -1, 0.0))
        # Known prefixes only gain; so once the beam is full of them, nothing worse than the last can enter.
        floor = min(score for score, *_ in ranked) if len(ranked) >= self.beam else NEVER
        extend = None if self.context is None else self.context.extend
        for prefix in prefixes:
            taken, last, base, bonus = children.get(prefix.key, ()), prefix.last, prefix.total, prefix.bonus
            for token, p in classes.items():
                score = (base if token != last else prefix.blank) + p + bonus
                if extend is not None:
                    gain = extend(prefix.context, token)[1]
                    score += gain
                else:
                    gain = 0.0
                if score > floor and token not in taken:
                    ranked.append((score, prefix, token, gain))
        ranked.sort(key=itemgetter(0), reverse=True)
        return tuple(
            prefix if token < 0 else self._extended(prefix, token, frame, classes[token], prefix.bonus + gain)
            for _, prefix, token, gain in ranked[: self.beam]
        )

    def _extended(self, prefix: Prefix, token: int, frame: int, p: float, bonus: float) -> Prefix:
        total, path, when = prefix.source(token)
        context = None if self.context is None else self.context.extend(prefix.context, token)[0]
        label, key = total + p, hash((prefix.key, token))
        emitted = (frame, p, when)
        return Prefix(
            key, prefix.key, token, prefix, NEVER, label, label, NEVER, path + p, None, emitted, bonus, context
        )


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + log1p(exp(b - a))


def _hypothesis(prefix: Prefix, bonus: float) -> Hypothesis:
    tokens, frames, confidences = [], [], []
    emissions = prefix.when_blank if prefix.path_blank > prefix.path_label else prefix.when_label
    while emissions is not None:
        frames.append(emissions[0])
        confidences.append(exp(emissions[1]))
        emissions = emissions[2]
    node: Prefix | None = prefix
    while node is not None and node.before is not None:
        tokens.append(node.last)
        node = node.before
    return Hypothesis(
        tuple(reversed(tokens)),
        prefix.total + bonus,
        tuple(reversed(frames)),
        exp(prefix.total / (len(tokens) + 1)),
        tuple(reversed(confidences)),
    )

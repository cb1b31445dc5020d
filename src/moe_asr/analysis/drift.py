"""Which decisions change between two routing traces of the same positions.

Streaming and offline, fp32 and int8, one checkpoint and a later one; clean and noisy speech by `trace.select`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy

from moe_asr.analysis.association import contingency, cramers_v
from moe_asr.analysis.trace import SiteRows, Trace, stack_of
from moe_asr.errors import InputError
from moe_asr.measure.errors import EditCounts
from moe_asr.measure.intervals import Interval, error_interval


@dataclass(frozen=True)
class Drift:
    """From one trace to another, at one site."""

    first: float
    """Share of positions whose first choice is another one."""
    interval: Interval
    """Of `first`, over speakers."""
    any: float
    """Share of positions whose set of experts is another one."""
    v: float
    """Cramér's V between the first choices: near 1 if experts only changed their numbers."""
    divergence: float | None
    """Mean ``KL(p || q)`` of the router's probabilities, nats; None unless both traces have them."""


def drift(
    before: Trace,
    after: Trace,
    stack: str = "encoder",
    same: Callable[[Mapping[str, Any]], str] = lambda utterance: utterance["id"],
) -> dict[str, Drift]:
    """By site that both have; the order of utterances does not matter. same: what two utterances have in common.

    Raises InputError for traces of different utterances, lengths, numbers of experts, or without a common site, and
    for decoders that did not read the same.
    """
    order = {same(u): i for i, u in enumerate(after.utterances)}
    names = [same(u) for u in before.utterances]
    if len(order) != len(after.utterances) or set(names) != set(order) or len(set(names)) != len(names):
        odd = sorted(set(names) ^ set(order))
        raise InputError(
            f"these traces are not of the same utterances ({len(names)} and {len(after.utterances)}"
            f"{', not in both: ' + odd[0] if odd else ''}): trace the same sets of the same corpus."
        )
    sites = [site for site in before.sites if site in after.sites and stack_of(site) == stack]
    experts = before.card["num_experts"]
    if not sites or experts != after.card["num_experts"]:
        raise InputError(f"these traces have no site in {stack!r} in common with equally many experts.")
    places = [order[name] for name in names]
    counts = numpy.diff(before.offsets[stack])
    others = [after.utterances[i] for i in places]
    read = [u["tokens"] == v["tokens"] for u, v in zip(before.utterances, others, strict=True)]
    if (counts != numpy.diff(after.offsets[stack])[places]).any() or not (stack == "encoder" or all(read)):
        raise InputError(f"the positions of these traces differ in {stack!r}: they can only be compared one by one.")
    starts = after.offsets[stack][:-1][places]
    rows = numpy.concatenate([numpy.arange(start, start + n) for start, n in zip(starts, counts, strict=True)])
    return {site: _drift(before, before.sites[site], after.sites[site], rows, counts, experts) for site in sites}


def _drift(trace: Trace, p: SiteRows, q: SiteRows, rows: numpy.ndarray, counts: numpy.ndarray, experts: int) -> Drift:
    """rows (P,): of q, in the order of p."""
    ids, others = p.ids.astype(numpy.int64), q.ids[rows].astype(numpy.int64)
    changed = ids[:, 0] != others[:, 0]
    by_utterance = numpy.add.reduceat(numpy.append(changed, False), numpy.cumsum([0, *counts])[:-1]) * (counts > 0)
    pairs = zip(counts.tolist(), by_utterance.tolist(), strict=True)
    interval = error_interval(
        [EditCounts(n - flips, flips) for n, flips in pairs], [u.get("speaker") for u in trace.utterances]
    )
    divergence = None
    if p.probabilities is not None and q.probabilities is not None:
        tiny = numpy.finfo(numpy.float32).tiny
        a, b = (numpy.maximum(x, tiny) for x in (p.probabilities, q.probabilities[rows]))
        divergence = float((a * numpy.log(a / b)).sum(1).mean())
    return Drift(
        float(changed.mean()),
        interval,
        float((numpy.sort(ids, 1) != numpy.sort(others, 1)).any(1).mean())
        if ids.shape == others.shape
        else float("nan"),
        cramers_v(contingency(ids[:, 0], others[:, 0], experts, experts)),
        divergence,
    )

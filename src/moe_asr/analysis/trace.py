"""Routing traces on disk: what the routers decided about every valid position of a corpus.

00000.npz, ...     the rows of consecutive utterances, see `Trace`
utterances.jsonl   a line per utterance, in the order of the rows
trace.json         the card; written last, hence a folder without it holds no whole trace
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy

from moe_asr.errors import InputError

KINDS = ("phone", "word")
"""What a frame is labelled with, where the corpus knows the times."""


@dataclass(frozen=True)
class SiteRows:
    """ids (P,K), integers, best first; weights (P,K), float32; entropy (P,) of the router's probabilities, in nats.

    probabilities (P,E): float32, where the trace was asked for them.
    """

    ids: numpy.ndarray
    weights: numpy.ndarray
    entropy: numpy.ndarray
    probabilities: numpy.ndarray | None = None


@dataclass(frozen=True)
class Trace:
    """The P valid positions of U utterances, one after the other.

    Positions are frames (40 ms) at encoder sites, and at decoder sites tokens: the start token, then those of the best
    hypothesis, in the order in which that decoder reads them.
    """

    card: Mapping[str, Any]
    """num_experts, top_k, decode, routing (null = the routers' own), data, unreadable, commit, ..."""
    utterances: tuple[Mapping[str, Any], ...]
    """Each with id, split, speaker, language, text, hypothesis, tokens and positions (their number in each stack)."""
    offsets: Mapping[str, numpy.ndarray]
    """By stack ("encoder", "left_to_right", ...) (U+1,): utterance u has the rows offsets[u] to offsets[u + 1]."""
    sites: Mapping[str, SiteRows]
    """By name ("encoder.03.ffn_out"), in network order."""
    labels: Mapping[str, numpy.ndarray]
    """"phone" and "word" (P,): each frame's index in `symbols`; -1 where nothing is said, or when is not known."""
    symbols: Mapping[str, tuple[str, ...]]


def load_trace(folder: str | Path) -> Trace:
    """Reads all that `record_trace` wrote. Raises InputError where there is none, or not all of it."""
    folder = Path(folder)
    if not (folder / "trace.json").is_file():
        raise InputError(f"{folder} holds no whole trace; write one with `moe-asr trace RUN out={folder}`.")
    try:
        card = json.loads((folder / "trace.json").read_text(encoding="utf8"))
        with (folder / "utterances.jsonl").open(encoding="utf8") as listed:
            utterances = tuple(map(json.loads, listed))
        parts: dict[str, list[numpy.ndarray]] = {}
        for shard in range(card["shards"]):
            with (folder / f"{shard:05}.npz").open("rb") as file, numpy.load(file, allow_pickle=False) as arrays:
                for name in arrays.files:
                    parts.setdefault(name, []).append(arrays[name])
        rows = {name: numpy.concatenate(found) for name, found in parts.items()}
        offsets = {
            stack: numpy.cumsum([0, *(u["positions"][stack] for u in utterances)])
            for stack in utterances[0]["positions"]
        }
        sites = {
            site: SiteRows(
                rows[f"{site}/ids"],
                rows[f"{site}/weights"],
                rows[f"{site}/entropy"],
                rows.get(f"{site}/probabilities"),
            )
            for site in card["sites"]
        }
        labels = {kind: rows[kind] for kind in KINDS}
        symbols = {kind: tuple(card["symbols"][kind]) for kind in KINDS}
        held = [(site.partition(".")[0], of.entropy) for site, of in sites.items()]
        held += [("encoder", of) for of in labels.values()]
        if any(len(array) != offsets[stack][-1] for stack, array in held):
            raise ValueError("the numbers of rows differ")
    except (OSError, ValueError, KeyError, IndexError, BadZipFile) as error:
        raise InputError(f"the trace {folder} is damaged ({error}); write it again.") from error
    return Trace(card, utterances, offsets, sites, labels, symbols)


def stack_of(site: str) -> str:
    return site.partition(".")[0]


def loads(trace: Trace, stack: str | None = None) -> dict[str, list[float]]:
    """By site (of a stack), the share of the assignments that each expert got."""
    experts = int(trace.card["num_experts"])
    counts = {
        site: numpy.bincount(rows.ids[rows.ids >= 0], minlength=experts)
        for site, rows in trace.sites.items()
        if stack in (None, stack_of(site))
    }
    return {site: (count / max(count.sum(), 1)).tolist() for site, count in counts.items()}


def select(trace: Trace, keep: Callable[[Mapping[str, Any]], bool]) -> Trace:
    """The trace of the utterances of which `keep` says so. Raises InputError if there are none."""
    kept = [u for u, facts in enumerate(trace.utterances) if keep(facts)]
    if not kept:
        raise InputError(f"none of the {len(trace.utterances)} utterances of the trace is kept.")
    rows = {stack: _rows_of(offsets, kept) for stack, offsets in trace.offsets.items()}
    return Trace(
        trace.card,
        tuple(trace.utterances[u] for u in kept),
        {stack: numpy.cumsum([0, *numpy.diff(offsets)[kept]]) for stack, offsets in trace.offsets.items()},
        {
            site: replace(of, **{k: a[rows[stack_of(site)]] for k, a in vars(of).items() if a is not None})
            for site, of in trace.sites.items()
        },
        {kind: labels[rows["encoder"]] for kind, labels in trace.labels.items()},
        trace.symbols,
    )


def _rows_of(offsets: numpy.ndarray, utterances: Sequence[int]) -> numpy.ndarray:
    return numpy.concatenate([numpy.arange(offsets[u], offsets[u + 1]) for u in utterances])


def said(trace: Trace, utterance: int, kind: str = "word") -> list[tuple[str, float, float]]:
    """What an utterance says and when (s, counted in frames of 40 ms), as far as it is known."""
    begin, end = trace.offsets["encoder"][utterance : utterance + 2]
    labels = trace.labels[kind][begin:end]
    edges = numpy.flatnonzero(numpy.diff(labels, prepend=-2, append=-2))
    return [
        (trace.symbols[kind][labels[first]], 0.04 * first, 0.04 * last)
        for first, last in pairwise(edges.tolist())
        if labels[first] >= 0
    ]

"""Routing traces on disk: what the routers decided about every valid position of a corpus.

00000.npz, ...     the rows of consecutive utterances, see `Trace`
utterances.jsonl   a line per utterance, in the order of the rows
trace.json         the card; written last, hence a folder without it holds no whole trace
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy

from moe_asr.errors import InputError

KINDS = ("phone", "word")
"""What a frame is labelled with, where the corpus knows the times."""


@dataclass(frozen=True)
class SiteRows:
    """ids (P,K), integers, best first; weights (P,K), float32; entropy (P,) of the router's probabilities, in nats."""

    ids: numpy.ndarray
    weights: numpy.ndarray
    entropy: numpy.ndarray


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
            site: SiteRows(rows[f"{site}/ids"], rows[f"{site}/weights"], rows[f"{site}/entropy"])
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

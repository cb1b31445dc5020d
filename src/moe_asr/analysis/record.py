"""Writing routing traces while a model decodes a corpus, in constant memory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
from lhotse.cut import Cut
from torch import Tensor

from moe_asr.analysis.trace import KINDS
from moe_asr.config.compose import to_plain
from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig
from moe_asr.data.batches import read_all, similar
from moe_asr.data.manifest import Problem, describe
from moe_asr.data.selection import target_text
from moe_asr.decoding.search import search
from moe_asr.errors import InputError
from moe_asr.modules.moe.routing import RoutingTrace
from moe_asr.modules.subsampling import FACTOR
from moe_asr.runs.directory import write_atomically, write_json
from moe_asr.runs.recognizer import Recognizer
from moe_asr.runs.transcripts import FRAME_SECONDS
from moe_asr.tensors import Chunking


def record_trace(
    recognizer: Recognizer,
    sets: Mapping[str, Sequence[Cut]],
    decode: DecodeConfig,
    folder: Path,
    shard_frames: int,
    about: Mapping[str, Any],
    probabilities: bool = False,
    align: bool = False,
) -> dict[str, Any]:
    """Decodes the utterances of all sets as `evaluate` does and writes the trace; returns its card, `about` included.

    probabilities: of every expert, too. align: what nobody knows the times of is labelled by forced alignment. No more
    is held than a batch and the rows of `shard_frames` frames. Raises InputError for a dense model, for a folder that
    holds a trace, and where no utterance can be read.
    """
    model, config = recognizer.model, recognizer.config
    if not model.routers.sites:
        raise InputError("this model is dense: it has no routing to trace.")
    if (folder / "trace.json").exists():
        raise InputError(f"{folder} holds a trace already; choose another folder with out=FOLDER.")
    folder.mkdir(parents=True, exist_ok=True)
    symbols: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    problems: list[Problem] = []
    shard: dict[str, list[numpy.ndarray]] = {}
    shards = utterances = waiting = 0

    def flush() -> None:
        nonlocal shard, shards, waiting
        whole = {name: numpy.concatenate(parts) for name, parts in shard.items()}
        write_atomically(folder / f"{shards:05}.npz", lambda file: numpy.savez(file, **whole), "wb")  # type: ignore[arg-type]
        shard, shards, waiting = {}, shards + 1, 0

    with (folder / "utterances.jsonl").open("w", encoding="utf8") as listed:
        for split, cuts in sets.items():
            for group in similar(cuts, decode.batch, decode.batch_seconds):
                samples, unreadable = read_all(group, recognizer.log_mel.sample_rate)
                problems += unreadable
                if not samples:
                    continue
                found = [group[i] for i in samples]
                lines, trace = _traced(recognizer, found, list(samples.values()), decode)
                for cut, line, waveform in zip(found, lines, samples.values(), strict=True):
                    listed.write(json.dumps({"split": split, **line}, ensure_ascii=False) + "\n")
                    for kind in KINDS:
                        said = known_times(cut, kind) or (aligned(recognizer, cut, waveform, kind) if align else [])
                        labels = _labels(said, line["positions"]["encoder"], recognizer, symbols[kind])
                        shard.setdefault(kind, []).append(labels)
                    waiting += line["positions"]["encoder"]
                for name, rows in _rows(trace, probabilities):
                    shard.setdefault(name, []).append(rows)
                utterances += len(found)
                if waiting >= shard_frames:
                    flush()
    if not utterances:
        raise InputError(f"None of the utterances can be read: {problems[0].detail if problems else 'there are none'}")
    if shard:
        flush()
    card = {
        "sites": [str(site) for site in model.routers.sites],
        "routers": [model.routers.table[site] for site in model.routers.sites],
        "num_experts": config.moe.num_experts,
        "top_k": config.moe.top_k,
        "decode": to_plain(decode),
        "utterances": utterances,
        "shards": shards,
        "unreadable": [asdict(problem) for problem in problems],
        "symbols": {kind: list(known) for kind, known in symbols.items()},
        **about,
    }
    write_json(folder / "trace.json", card)
    return card


@torch.inference_mode()
def _traced(
    recognizer: Recognizer, cuts: Sequence[Cut], samples: Sequence[Tensor], decode: DecodeConfig
) -> tuple[list[dict[str, Any]], RoutingTrace]:
    """The facts of each utterance of a batch, and its trace, for which decoders are told the best hypotheses."""
    model, tokenizer = recognizer.model, recognizer.tokenizer
    side = recognizer.side(cut.id for cut in cuts)
    encoded = recognizer.encode(samples, Chunking(decode.chunk, decode.left), side)
    best = [nbest[0] for nbest in search(model, encoded, decode, tokenizer, recognizer.routers, side)]
    read = model.decoder_routing(encoded, [h.tokens for h in best], recognizer.routers, side)
    trace = encoded.routing + read
    stacks = {"encoder": encoded.frame_lengths.tolist()}
    stacks |= {part.site.stack: part.valid.sum(1).tolist() for part in trace}
    lines = []
    for i, (cut, hypothesis) in enumerate(zip(cuts, best, strict=True)):
        said = describe(cut)
        facts = {name: getattr(said, name) for name in ("id", "speaker", "language", "text")}
        tokens = [tokenizer.symbols[token] for token in hypothesis.tokens]
        positions = {stack: counts[i] for stack, counts in stacks.items()}
        lines.append(
            {**facts, "hypothesis": tokenizer.decode(hypothesis.tokens), "tokens": tokens, "positions": positions}
        )
    return lines, trace


def _rows(trace: RoutingTrace, probabilities: bool) -> Iterator[tuple[str, numpy.ndarray]]:
    """The arrays of a shard that a batch adds to: valid positions only, utterance by utterance."""
    for part in trace:
        routing, valid = part.routing, part.valid
        small = numpy.int8 if routing.logits.shape[-1] <= 128 else numpy.int16
        entropy = torch.special.entr(routing.probabilities).sum(-1)
        yield f"{part.site}/ids", routing.expert_ids[valid].cpu().numpy().astype(small)
        yield f"{part.site}/weights", routing.weights[valid].float().cpu().numpy()
        yield f"{part.site}/entropy", entropy[valid].float().cpu().numpy()
        if probabilities:
            yield f"{part.site}/probabilities", routing.probabilities[valid].float().cpu().numpy()


Said = list[tuple[str, float, float]]
"""Symbols with begin and end (s), in order."""


def known_times(cut: Cut, kind: str) -> Said:
    """What the corpus knows of an utterance."""
    items = [item for part in cut.supervisions for item in (part.alignment or {}).get(kind, ())]
    return sorted(((item.symbol, item.start, item.end) for item in items), key=lambda item: item[1])


def aligned(recognizer: Recognizer, cut: Cut, samples: Tensor, kind: str) -> Said:
    """By forced alignment of the reference: its words, or phones if the model writes such; nothing if that fails."""
    phones = recognizer.tokenizer.unit is TokenUnit.phone
    if (kind == "phone") != phones:
        return []
    try:
        found = recognizer.align(samples, target_text(describe(cut), recognizer.tokenizer.unit))
    except InputError:
        return []
    middle = _middle(recognizer) - FRAME_SECONDS / 2  # an aligned frame is labelled by what is said in it
    said = found.tokens if phones else found.words
    return [(item.text, item.start + middle, item.end + middle) for item in said]


def _middle(recognizer: Recognizer) -> float:
    """Of the samples (s) that the subsampling makes the first frame of."""
    log_mel = recognizer.log_mel
    return log_mel.samples_needed(FACTOR + recognizer.model.encoder.overlap) / 2 / log_mel.sample_rate


def _labels(said: Said, frames: int, recognizer: Recognizer, known: dict[str, int]) -> numpy.ndarray:
    """(frames,) what is said in the middle of the samples that the subsampling makes each frame of."""
    times = (
        _middle(recognizer) + numpy.arange(frames) * FACTOR * recognizer.log_mel.shift / recognizer.log_mel.sample_rate
    )
    # Before the first item and within pauses nothing is said.
    place = numpy.searchsorted([start for _, start, _ in said], times, side="right") - 1
    ids = numpy.array([known.setdefault(symbol, len(known)) for symbol, _, _ in said] + [-1], dtype=numpy.int32)
    ends = numpy.array([end for _, _, end in said] + [-1.0])
    return numpy.where(times < ends[place], ids[place], -1).astype(numpy.int32)

"""A trained model on its dev and test sets: error rates with intervals, RTF, expert use, a file of hypotheses each."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lhotse.cut import Cut
from rich.console import Console
from rich.progress import track

from moe_asr.analysis.latency import BLOCK_SECONDS, watch
from moe_asr.analysis.load import entropies, loads, measured
from moe_asr.config.compose import to_plain
from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.program import TrainConfig
from moe_asr.config.score import Unit
from moe_asr.data.batches import read_all, similar
from moe_asr.data.manifest import Problem, describe, read_split, word_ends
from moe_asr.data.selection import target_text
from moe_asr.errors import InputError
from moe_asr.measure.latency import Latencies, latencies, latency_result
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.results import Scored, test_set_result
from moe_asr.measure.rtf import TimedBatch, speed_receipt, timed
from moe_asr.modules.moe.statistics import RoutingSums
from moe_asr.runs.directory import write_atomically
from moe_asr.runs.recognizer import Recognizer


def error_units(config: TrainConfig) -> tuple[Unit, ...]:
    """The error rates that are reported, first the one that selects: of phones for phone targets, else of words and
    characters."""
    if config.tokenizer.unit is TokenUnit.phone:
        return (Unit.phone,)
    return tuple(dict.fromkeys((config.data.error_unit, Unit.word, Unit.char)))


def evaluate_run(recognizer: Recognizer, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Dev and every test set of a configuration, each once: {"dev": {...}, "test": {set: {...}}}."""
    return {
        part: evaluate_splits(recognizer, config, splits, config.decode, folder)
        for part, splits in (("dev", config.data.dev), ("test", config.data.test))
    }


def evaluate_splits(
    recognizer: Recognizer,
    config: TrainConfig,
    splits: Sequence[str],
    decode: DecodeConfig,
    folder: Path,
    modes: Sequence[DecodeMode] = (),
    lefts: Sequence[int | None] = (),
    streams: int = 0,
) -> dict[str, Any]:
    """The result of each split by its name, of each further chunk size as ``<name>_c<size>``, and of each point of
    `grid` in general. A name is without its fold where that leaves no two alike.

    streams: so many recordings of a split are also streamed, to say when words are shown. The hypotheses go to
    `folder`/hypotheses.
    """
    (folder / "hypotheses").mkdir(parents=True, exist_ok=True)
    variants = grid(decode, modes, lefts)
    results = {}
    short = [split.rpartition("/")[2] for split in splits]
    for split, name in zip(splits, short if len(set(short)) == len(set(splits)) else splits, strict=True):
        cuts = read_split(config.data.path, split)
        if not cuts:
            raise InputError(f"The split {split} has no utterance; choose another one.")
        for suffix, variant in variants.items():
            file = folder / "hypotheses" / f"{split.replace('/', '-')}{suffix}.jsonl"
            results[name + suffix] = evaluate_set(recognizer, cuts, config, variant, file, streams) | {"split": split}
    return results


def grid(decode: DecodeConfig, modes: Sequence[DecodeMode], lefts: Sequence[int | None]) -> dict[str, DecodeConfig]:
    """Every mode (none: `decode.mode`) at `decode.chunk` and at each of `decode.chunks`, there with every left context
    (none: `decode.left`), by the suffix of its results, such as ``_attention_c16_l2``."""
    points = {}
    for suffix, mode in ({f"_{mode}": mode for mode in modes} or {"": decode.mode}).items():
        for context, size in {"": decode.chunk, **{f"_c{size}": size for size in decode.chunks}}.items():
            around = {f"_l{'all' if left is None else left}": left for left in lefts if size is not None}
            for beside, left in (around or {"": decode.left}).items():
                points[suffix + context + beside] = replace(decode, mode=mode, chunk=size, left=left)
    return points


def evaluate_set(
    recognizer: Recognizer,
    cuts: Sequence[Cut],
    config: TrainConfig,
    decode: DecodeConfig,
    file: Path,
    streams: int = 0,
) -> dict[str, Any]:
    """Recognises every utterance once and scores the very transcripts that were timed.

    Timed: features, encoder, search and text; not reading and resampling the audio. What cannot be read is recognised
    as nothing, counted and listed. The first batch is run once before, as a warm-up. streams: the first so many are
    then streamed; raises InputError for a corpus that does not know when each of their words ends.
    """
    ends = word_times(recognizer, cuts[:streams]) if streams else {}
    seen: list[Latencies] = []
    streamed: list[TimedBatch] = []
    rate = config.features.sample_rate
    texts: dict[str, str] = {}
    times: list[TimedBatch] = []
    problems: list[Problem] = []
    routed: RoutingSums | None = None
    groups, screen = similar(cuts, decode.batch, decode.batch_seconds), Console(stderr=True)
    for group in track(groups, file.stem, console=screen, transient=True, disable=not screen.is_terminal):
        samples, unreadable = read_all(group, rate)
        problems += unreadable
        if not samples:
            continue
        waveforms, names = list(samples.values()), [group[i].id for i in samples]
        if not times:
            recognizer.decode(waveforms, decode, names)
        seconds = sum(map(len, waveforms)) / rate
        (found, routing), time = timed(partial(recognizer.decode, waveforms, decode, names), seconds, recognizer.device)
        times.append(time)
        routed = measured(routing + recognizer.decoder_routing(waveforms, found, decode, names), routed)
        texts |= {name: transcript.text for name, transcript in zip(names, found, strict=True)}
        for name, waveform in [pair for pair in zip(names, waveforms, strict=True) if pair[0] in ends]:
            streaming = partial(watch, recognizer, waveform, decode, name)
            shown, time = timed(streaming, len(waveform) / rate, recognizer.device)
            seen.append(latencies(ends[name], shown))
            streamed.append(time)
    if not times:
        raise InputError(f"None of {len(cuts)} utterances can be read: {problems[0].detail}")
    described = [describe(cut) for cut in cuts]
    scored = [
        Scored(u.id, target_text(u, recognizer.tokenizer.unit), texts.get(u.id, ""), u.speaker, u.sources)
        for u in described
    ]
    lines = [asdict(s) for s in scored]
    write_atomically(file, lambda f: f.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    receipt = speed_receipt(times, batch=decode.batch, warm_up=1, device=recognizer.device)
    result = test_set_result(scored, normalizer(config.data.normalizer), error_units(config), receipt)
    if seen:
        speed = speed_receipt(streamed, batch=1, warm_up=0, device=recognizer.device)
        heard = {"streams": len(seen), "block_seconds": BLOCK_SECONDS, "stream_rtf": speed.rtf}
        result["latency"] = latency_result(seen) | heard
    return {
        **result,
        "decode": to_plain(decode),
        "unreadable": [asdict(problem) for problem in problems],
        "outside_tokenizer": sum(bool(recognizer.tokenizer.unknown(s.reference)) for s in scored),
        "experts": {site: [round(share, 4) for share in load] for site, load in loads(routed).items()},
        "router_entropy": {site: round(nats, 4) for site, nats in entropies(routed).items()},
    }


def word_times(recognizer: Recognizer, cuts: Sequence[Cut]) -> dict[str, list[tuple[str, float | None]]]:
    """The words of each utterance and when they end (s). Raises InputError where a corpus does not know, or a model
    does not write, words."""
    if recognizer.tokenizer.unit is TokenUnit.phone:
        raise InputError("latency=true times words, but this model writes phones.")
    known = {cut.id: word_ends(cut) for cut in cuts}
    for name, ends in known.items():
        if ends is None:
            raise InputError(
                f"when the words of {name} end is not known, which latency=true needs: the corpora of "
                "`moe-asr prepare synthetic` and what `moe-asr prepare compose` makes of them know it."
            )
    return {name: ends for name, ends in known.items() if ends is not None}

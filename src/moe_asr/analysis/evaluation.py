"""A trained model on its dev and test sets: error rates with intervals, RTF, expert use, a file of hypotheses each."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lhotse.cut import Cut

from moe_asr.analysis.load import SiteLoad, expert_load, merge
from moe_asr.config.compose import to_plain
from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.program import TrainConfig
from moe_asr.config.score import Unit
from moe_asr.data.batches import read_all, similar
from moe_asr.data.manifest import Problem, describe, read_split
from moe_asr.data.selection import target_text
from moe_asr.errors import InputError
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.results import Scored, test_set_result
from moe_asr.measure.rtf import TimedBatch, speed_receipt, timed
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
) -> dict[str, Any]:
    """The result of each split by its name, and of each further chunk size as ``<name>_c<size>``.

    modes: several ways to decode instead of `decode.mode`, as ``<name>_<mode>`` and ``<name>_<mode>_c<size>``.
    A name is without its fold where that leaves no two alike. The hypotheses go to `folder`/hypotheses.
    """
    (folder / "hypotheses").mkdir(parents=True, exist_ok=True)
    by_mode = {f"_{mode}": replace(decode, mode=mode) for mode in modes} or {"": decode}
    variants = {
        f"{suffix}{context}": replace(one, chunk=size)
        for suffix, one in by_mode.items()
        for context, size in {"": decode.chunk, **{f"_c{size}": size for size in decode.chunks}}.items()
    }
    results = {}
    short = [split.rpartition("/")[2] for split in splits]
    for split, name in zip(splits, short if len(set(short)) == len(set(splits)) else splits, strict=True):
        cuts = read_split(config.data.path, split)
        if not cuts:
            raise InputError(f"The split {split} has no utterance; choose another one.")
        for suffix, variant in variants.items():
            file = folder / "hypotheses" / f"{split.replace('/', '-')}{suffix}.jsonl"
            results[name + suffix] = evaluate_set(recognizer, cuts, config, variant, file)
    return results


def evaluate_set(
    recognizer: Recognizer, cuts: Sequence[Cut], config: TrainConfig, decode: DecodeConfig, file: Path
) -> dict[str, Any]:
    """Recognises every utterance once and scores the very transcripts that were timed.

    Timed: features, encoder, search and text; not reading and resampling the audio. What cannot be read is recognised
    as nothing, counted and listed. The first batch is run once before, as a warm-up.
    """
    rate = config.features.sample_rate
    texts: dict[str, str] = {}
    times: list[TimedBatch] = []
    problems: list[Problem] = []
    load: dict[str, SiteLoad] = {}
    for group in similar(cuts, decode.batch, decode.batch_seconds):
        samples, unreadable = read_all(group, rate)
        problems += unreadable
        if not samples:
            continue
        waveforms = list(samples.values())
        if not times:
            recognizer.decode(waveforms, decode)
        seconds = sum(map(len, waveforms)) / rate
        (found, routing), time = timed(partial(recognizer.decode, waveforms, decode), seconds, recognizer.device)
        times.append(time)
        load = merge(load, expert_load(routing))
        texts |= {group[i].id: transcript.text for i, transcript in zip(samples, found, strict=True)}
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
    return {
        **result,
        "decode": to_plain(decode),
        "unreadable": [asdict(problem) for problem in problems],
        "outside_tokenizer": sum(bool(recognizer.tokenizer.unknown(s.reference)) for s in scored),
        "experts": {site: [round(share, 4) for share in of.shares.tolist()] for site, of in load.items()},
    }

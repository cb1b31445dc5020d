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
from moe_asr.config.program import DecodeConfig, TrainConfig
from moe_asr.config.score import Unit
from moe_asr.data.batches import read_all
from moe_asr.data.manifest import Problem, describe, read_split
from moe_asr.data.selection import target_text
from moe_asr.errors import InputError
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.results import Scored, test_set_result
from moe_asr.measure.rtf import TimedBatch, speed_receipt, timed
from moe_asr.runs.directory import write_atomically
from moe_asr.runs.recognizer import Recognizer


def error_units(config: TrainConfig) -> tuple[Unit, ...]:
    """The error rates that are reported: of phones for phone targets, else of words and characters; first the one
    that selects."""
    usual = (Unit.phone,) if config.tokenizer.unit is TokenUnit.phone else (Unit.word, Unit.char)
    return tuple(dict.fromkeys((config.data.error_unit, *usual)))


def evaluate_run(recognizer: Recognizer, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Dev and every test set of a configuration, each once: {"dev": {...}, "test": {set: {...}}}."""
    return {
        part: evaluate_splits(recognizer, config, splits, config.decode, folder)
        for part, splits in (("dev", config.data.dev), ("test", config.data.test))
    }


def evaluate_splits(
    recognizer: Recognizer, config: TrainConfig, splits: Sequence[str], decode: DecodeConfig, folder: Path
) -> dict[str, Any]:
    """The result of each split by its name, and of each further chunk size as ``<name>_c<size>``.

    A name is without its fold where that leaves no two alike. The hypotheses go to `folder`/hypotheses.
    """
    (folder / "hypotheses").mkdir(parents=True, exist_ok=True)
    variants = {"": decode} | {f"_c{size}": replace(decode, chunk=size) for size in decode.chunks}
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
    by_duration = sorted(cuts, key=lambda cut: (-cut.duration, cut.id))
    groups = [by_duration[i : i + decode.batch] for i in range(0, len(by_duration), decode.batch)]
    texts: dict[str, str] = {}
    times: list[TimedBatch] = []
    problems: list[Problem] = []
    load: dict[str, SiteLoad] = {}
    for group in groups:
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


def results_table(results: dict[str, Any]) -> str:
    """What a run's results say, for the terminal."""
    lines = []
    for part in ("dev", "test"):
        for name, result in results.get(part, {}).items():
            unit = Unit(result["unit"])
            interval = result[f"{unit.rate}_ci95"]
            between = f"[{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]" if interval else "no interval"
            others = [k for k in ("wer", "cer", "per") if k in result and k != unit.rate]
            also = "".join(f"  {k.upper()} {100 * result[k]:.2f} %" for k in others)
            lines.append(
                f"{part}/{name:<10} {unit.rate.upper()} {100 * result[unit.rate]:.2f} % {between}{also}  "
                f"RTF {result['rtf']:.4f}  ({result['num_utterances']} utterances, "
                f"{result['num_tokens']} {unit.value}s, {result['interval']['method']})"
            )
            for speaker, own in result.get("per_speaker", {}).items():
                lines.append(f"  {speaker}: {100 * own[unit.rate]:.2f} % of {own['num_tokens']} {unit.value}s")
            if result["unreadable"]:
                lines.append(f"  {len(result['unreadable'])} utterances could not be read and count as deleted")
            if result["outside_tokenizer"]:
                lines.append(f"  {result['outside_tokenizer']} references hold text outside the tokenizer")
    if speed := next((r["speed"] for p in ("test", "dev") for r in results.get(p, {}).values()), None):
        lines.append(
            f"RTF on {speed['machine']}: {speed['threads']} threads, batches of {speed['batch']}, "
            f"{speed['warm_up']} warm-up, quartiles {', '.join(f'{q:.4f}' for q in speed['rtf_quartiles'])}"
        )
    if test := results.get("test", {}):
        name = list(test)[-1]
        for site, shares in test[name]["experts"].items():
            lines.append(f"expert use on {name}, {site}: " + " ".join(f"{100 * share:3.0f}" for share in shares) + " %")
    if "params_total" in results:
        lines.append(
            f"{results['params_total'] / 1e6:.2f} M parameters, {results['params_active'] / 1e6:.2f} M active; "
            f"trained in {results['train_seconds']:.0f} s"
        )
    return "\n".join(lines)

"""What a report is about: the runs of a sweep, or of folders, their points in the grid and what each has found."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from moe_asr.config.compose import config_folder, to_typed
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.program import TrainConfig
from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.measure.domains import decoding_suffix
from moe_asr.measure.errors import EditCounts, edit_counts
from moe_asr.measure.expert_use import Alarm, dead, variation
from moe_asr.measure.flops import recognition
from moe_asr.measure.normalize import normalizer
from moe_asr.runs.directory import RunDirectory, Status, read_metrics, read_results, status
from moe_asr.runs.sweep import FILE, read_sweep

Point = tuple[str, ...]
"""The value of each axis of a study."""
Leaves = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One run of a study."""

    run: RunDirectory
    point: Point
    seed: str
    command: str = ""
    note: str = ""

    @cached_property
    def status(self) -> Status:
        return status(self.run)

    @cached_property
    def results(self) -> Mapping[str, Any] | None:
        return read_results(self.run)

    @property
    def sets(self) -> Mapping[str, Any]:
        """The result of each test set, by name; of dev sets where there is no test set; none until the run is done."""
        found = self.results or {}
        return found.get("test") or {f"dev/{name}": result for name, result in found.get("dev", {}).items()}

    @cached_property
    def alarms(self) -> list[str]:
        return [str(Alarm(**alarm)) for alarm in (self.results or {}).get("alarms", ())]

    @cached_property
    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values of each metric."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        if (self.run.path / "metrics.csv").exists():
            for step, metric, value in read_metrics(self.run.path / "metrics.csv"):
                if metric.startswith(("train/loss", "val/")):
                    steps, values = found.setdefault(metric, ([], []))
                    steps.append(step)
                    values.append(value)
        return found

    @cached_property
    def _shape(self) -> tuple[TrainConfig, int] | None:
        """The configuration and the size of the vocabulary; None where an older program wrote them, or no model is."""
        try:
            plain = OmegaConf.to_container(OmegaConf.load(self.run.path / "config.yaml"))
            stored = torch.load(self.run.model, map_location="cpu", weights_only=True, mmap=True)
            return to_typed(TrainConfig, plain), len(stored["tokenizer"]["symbols"])  # type: ignore[arg-type]
        except (OSError, InputError, RuntimeError, KeyError):
            return None

    def flops(self, decode: Mapping[str, Any]) -> float | None:
        """Per second of audio, recognised like this."""
        if self._shape is None:
            return None
        (config, vocab_size), mode = self._shape, DecodeMode(decode["mode"])
        known = DecodeConfig(mode=mode, chunk=decode["chunk"], left=decode["left"], beam=decode["beam"])
        parts = recognition(config.model, config.moe, known, config.features.mel_bins, vocab_size)
        return parts["encoder and CTC" if mode in (DecodeMode.ctc_greedy, DecodeMode.ctc_prefix_beam) else "in total"]

    def counts(self, name: str) -> tuple[list[str], list[str | None], list[EditCounts]] | None:
        """Of each utterance of a set its id, speaker and edits; None without hypotheses."""
        result = self.sets[name]
        short = name.removeprefix("dev/")
        stem = result["split"].replace("/", "-") + decoding_suffix(short, result) if "split" in result else short
        file = self.run.path / "hypotheses" / f"{stem}.jsonl"
        if not file.exists():
            return None
        with file.open(encoding="utf8") as listed:
            lines = [json.loads(line) for line in listed]
        clean = normalizer(result["normalizer"]["name"])
        references, hypotheses = ([clean(line[side]) for line in lines] for side in ("reference", "hypothesis"))
        counts = edit_counts(references, hypotheses, Unit(result["unit"]))
        return [line["id"] for line in lines], [line.get("speaker") for line in lines], counts


@dataclass(frozen=True)
class Study:
    title: str
    axes: Mapping[str, Sequence[str]]
    """The values of each option that differs, the seed apart, in order."""
    entries: Sequence[Entry]
    question: str = ""
    """What the experiment file asks, in its comment."""
    command: str = ""
    commit: str | None = None
    notes: Sequence[str] = field(default=())

    @cached_property
    def points(self) -> dict[Point, list[Entry]]:
        """The runs of each point, a seed each, in the order of the grid."""
        found: dict[Point, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.point, []).append(entry)
        return found

    @cached_property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(name for entry in self.entries for name in entry.sets))

    def label(self, point: Point) -> str:
        """By the last word of each axis, where no two end alike."""
        last = [axis.rpartition(".")[2] for axis in self.axes]
        names = last if len(set(last)) == len(last) else self.axes
        return " ".join(f"{name}={value}" for name, value in zip(names, point, strict=True)) or self.title


def read_study(paths: Sequence[str]) -> Study:
    """Of a single sweep, or of all runs among the paths and directly below them, each once.

    Raises InputError where there is no run.
    """
    if len(paths) == 1 and (Path(paths[0]) / FILE).is_file():
        return _of_sweep(Path(paths[0]))
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        inside = sorted(path.iterdir()) if path.is_dir() and not _is_run(path) else [path]
        named = [folder for folder in inside if _is_run(folder)]
        if not named:
            raise InputError(f"{path} holds no sweep and no run; give a folder of runs, or one of runs/sweeps.")
        for folder in named:
            if folder.resolve() not in found or folder.is_symlink():  # its name says more than its hash
                found[folder.resolve()] = folder
    one = len(paths) == 1 or len(found) == 1
    return _of_runs(list(found.values()), Path(paths[0]).absolute().name if one else f"{len(found)} runs")


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _of_sweep(path: Path) -> Study:
    sweep = read_sweep(path)
    axes = {axis: values for axis, values in sweep.axes.items() if axis != "seed"}
    entries, said = [], dict[str, str]()
    for job in sweep.jobs:
        said = dict(override.lstrip("+").partition("=")[::2] for override in job.overrides)
        seed = job.point.get("seed") or said.get("seed") or str(TrainConfig.seed)
        entries.append(Entry(job.run, tuple(job.point[axis] for axis in axes), seed, job.command, job.note))
    asked = question(said.get("experiment", ""))
    return Study(path.absolute().name, axes, entries, asked, sweep.command, sweep.commit)


def _of_runs(folders: Sequence[Path], title: str) -> Study:
    """Axes are the options that differ; of those that differ alike, the first, which a note says."""
    configs = [dict(_leaves(OmegaConf.to_container(OmegaConf.load(f / "config.yaml")))) for f in folders]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if not _told_apart_by(key)]
    alike: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        values = [_text(config.get(key)) for config in configs]
        places = list(dict.fromkeys(values))
        if len(places) > 1:
            alike.setdefault(tuple(places.index(value) for value in values), []).append(key)
    chosen = [names[0] for names in alike.values()]
    notes = [f"{names[0]} differs together with {', '.join(names[1:])}." for names in alike.values() if names[1:]]
    points = [tuple(_text(config.get(key)) for key in chosen) for config in configs]
    order = sorted(range(len(folders)), key=lambda i: ([_rank(v) for v in points[i]], _rank(str(configs[i]["seed"]))))
    entries = [Entry(RunDirectory(folders[i]), points[i], str(configs[i]["seed"])) for i in order]
    axes = {key: sorted({p[i] for p in points}, key=_rank) for i, key in enumerate(chosen)}
    commits = {(e.results or {}).get("commit") for e in entries}
    return Study(title, axes, entries, commit=commits.pop() if len(commits) == 1 else None, notes=notes)


def _told_apart_by(key: str) -> bool:
    """Whether an option changes nothing about a model that is worth an axis."""
    return key in ("seed", "name", "runs", "dry_run", "trainer.progress") or key.startswith(("logger.", "launcher."))


def _leaves(plain: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rank(value: str) -> tuple[int, float, str]:
    """Numbers by size, before words; what stands for nothing comes first."""
    if value in ("null", "none", "false"):
        return (0, 0.0, value)
    try:
        return (1, float(value), "")
    except ValueError:
        return (2, 0.0, value)


def question(experiment: str) -> str:
    """The comment at the head of an experiment file; "" where there is none."""
    file = config_folder() / "experiment" / f"{experiment}.yaml"
    if not experiment or not file.is_file():
        return ""
    lines = [line[1:].strip() for line in file.read_text(encoding="utf8").splitlines() if line.startswith("#")]
    return " ".join(line for line in lines if not line.startswith("@"))


def rows(study: Study) -> list[dict[str, Any]]:
    """A line for each run and test set, for CSV and W&B; one for a run that has found nothing yet."""
    found = []
    for entry in study.entries:
        results = entry.results or {}
        about = {
            **dict(zip(study.axes, entry.point, strict=True)),
            "seed": entry.seed or results.get("seed"),
            "run": entry.run.path.name,
            "status": entry.status.value,
        }
        costs = ("params_total", "params_active", "train_hours", "train_flops", "train_seconds", "commit")
        found += [
            about | measured(entry, name) | {key: results.get(key) for key in costs} | {"alarms": len(entry.alarms)}
            for name in entry.sets
        ] or [about]
    return found


def measured(entry: Entry, name: str) -> dict[str, Any]:
    """What a run has found on a test set, as a flat line."""
    result = entry.sets[name]
    unit, decode, experts = Unit(result["unit"]), result["decode"], result.get("experts", {})
    low, high = result[f"{unit.rate}_ci95"] or (None, None)
    speed = result.get("speed") or {}
    return {
        "set": name,
        "unit": unit.value,
        "rate": result[unit.rate],
        "rate_low": low,
        "rate_high": high,
        "interval": result["interval"]["method"],
        "utterances": result["num_utterances"],
        "tokens": result["num_tokens"],
        "speakers": result["num_speakers"],
        "mode": decode["mode"],
        "chunk": decode["chunk"],
        "left": decode["left"],
        "rtf": result.get("rtf"),
        "rtf_threads": speed.get("threads"),
        "rtf_machine": speed.get("machine"),
        "flops_per_second": entry.flops(decode),
        "load_cv": max(map(variation, experts.values()), default=None),
        "dead_experts": sum(len(dead(load)) for load in experts.values()) if experts else None,
    }

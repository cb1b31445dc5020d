"""The sweep directory `runs/sweeps/<name or hash>`: what a grid asked, and where the answer of each point lies.

sweep.json
    command   what was typed
    commit    of the program that planned it (each run names its own, too)
    axes      {"moe.placement": ["none", "encoder"], "seed": ["1", "2"]}: what differs, in order, as typed
    jobs      one a point, in order: `point` (its value of each axis), `overrides` (all that was said), `command`
              (which trains this run alone), `run` (name of its run directory, beside `sweeps`), `note`

Nothing here says how far a job is: its run directory does. Points of equal configuration share a run.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_asr.errors import InputError
from moe_asr.runs.directory import RunDirectory, Status, read_results, status, write_json

FILE = "sweep.json"


@dataclass(frozen=True)
class Job:
    """A point of a sweep."""

    run: RunDirectory
    point: dict[str, str]
    overrides: list[str]
    command: str
    note: str = ""
    """How well a solved width fits; "" where nothing was matched."""

    @property
    def status(self) -> Status:
        return status(self.run)

    @property
    def results(self) -> dict[str, Any] | None:
        """What results.json of the run holds; None until it is done."""
        return read_results(self.run)

    @property
    def label(self) -> str:
        return " ".join(f"{axis}={value}" for axis, value in self.point.items()) or "the only point"


@dataclass(frozen=True)
class Sweep:
    path: Path
    command: str
    commit: str | None
    axes: dict[str, list[str]]
    jobs: tuple[Job, ...]


def write_sweep(sweep: Sweep) -> None:
    sweep.path.mkdir(parents=True, exist_ok=True)
    jobs = [{**asdict(job), "run": job.run.path.name} for job in sweep.jobs]
    plain = {"command": sweep.command, "commit": sweep.commit, "axes": sweep.axes, "jobs": jobs}
    write_json(sweep.path / FILE, plain)


def read_sweep(path: str | Path) -> Sweep:
    """The sweep in a directory; raises InputError where there is none."""
    folder = Path(path)
    if not (folder / FILE).is_file():
        raise InputError(f"{folder} is not a sweep: it has no {FILE}; `moe-asr train -m` makes one in runs/sweeps.")
    plain = json.loads((folder / FILE).read_text(encoding="utf8"))
    root = folder.absolute().parents[1]
    jobs = tuple(Job(**{**job, "run": RunDirectory(root / job["run"])}) for job in plain.pop("jobs"))
    return Sweep(folder, jobs=jobs, **plain)

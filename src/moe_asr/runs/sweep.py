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
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_asr.columns import aligned
from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.runs.directory import (
    SUPERVISOR,
    RunDirectory,
    Status,
    only_process,
    read_results,
    status,
    write_json,
)

FILE = "sweep.json"
KILLED = (130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL)
"""Exit codes of a job that somebody ended: it goes on where it was, and has not failed."""


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


def supervise(folder: str | Path, name: str) -> None:
    """Trains the job of a sweep whose run directory has this name, in a process of its own that prints into its log.

    Does nothing if the run is done, or if another process is at it. A failure is left in the run directory.
    """
    sweep = read_sweep(folder)
    job = next(job for job in sweep.jobs if job.run.path.name == name)
    job.run.path.mkdir(parents=True, exist_ok=True)
    with suppress(InputError), only_process(job.run, SUPERVISOR):
        if job.results is not None:
            return
        job.run.failure.unlink(missing_ok=True)
        with job.run.log.open("ab") as log:
            log.write(f"$ {job.command}\n".encode())
            log.flush()
            code = _train(words_of(sweep, job), log)
        if code != 0 and code not in KILLED:
            write_json(job.run.failure, {"exit_code": code, "command": job.command})


def words_of(sweep: Sweep, job: Job) -> list[str]:
    """The options of a job, and those by which W&B groups the sweep, unless they are given."""
    tags = [f"{axis}={value}"[:LONGEST_TAG].replace("\\", "").replace("'", "") for axis, value in job.point.items()]
    added = {
        "logger.group": f"'{sweep.path.name}'",
        "logger.tags": "[" + ",".join(f"'{tag}'" for tag in tags) + "]",
    }
    given = {override.lstrip("+").partition("=")[0] for override in job.overrides}
    return [*job.overrides, *(f"{key}={value}" for key, value in added.items() if key not in given)]


LONGEST_TAG = 64
"""Characters that W&B allows."""


def _train(words: list[str], log: Any) -> int:
    """The exit code; an interruption ends the training too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moe_asr.cli.main", "train", *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        finally:  # of a second interruption, too
            process.kill()  # which loses nothing
            process.wait()
        raise


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def table(sweep: Sweep) -> str:
    """Every job with its status and its first error rate on each test set."""
    rows = [[*sweep.axes, "status", "", "run"]]
    for job in sweep.jobs:
        rates = []
        for name, result in (job.results or {}).get("test", {}).items():
            unit = Unit(result["unit"])
            rates.append(f"{name} {unit.rate.upper()} {100 * result[unit.rate]:.2f} %")
        rows.append([*job.point.values(), job.status.value, ", ".join(rates), str(job.run.path)])
    return aligned(rows)

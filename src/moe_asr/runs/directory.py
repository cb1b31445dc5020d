"""The run directory: named by the hash of its configuration, so the same command finds the same run again.

config.yaml        the resolved configuration
environment.json   commit, versions, machine
problems.jsonl     utterances left out, with the reason
metrics.csv        step, metric, value
ledger.jsonl       the utterances, features (checksum) and chunk of every batch, in order
checkpoints/       weights at validations; recovery.pt to go on from; model.pt is the final, averaged model
results.json       what was measured, once the run is done
hypotheses/        per test set, a line per utterance
tuned/             decode weights chosen on dev, a file per mode
wandb/             the W&B run
log.txt            of a job of a sweep: all that it printed
failure.json       of a job of a sweep that failed: its exit code; gone when it is tried again
"""

import csv
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from moe_asr.errors import InputError

NOT_PART_OF_THE_RUN = ("name", "runs", "logger", "launcher", "dry_run")
"""Options that change nothing about the trained model, and hence not the run's directory."""


def config_hash(config: dict[str, Any]) -> str:
    """Ten hex digits of the plain configuration, without what does not affect the model or its results."""
    kept = {key: value for key, value in config.items() if key not in NOT_PART_OF_THE_RUN}
    kept["trainer"] = {k: v for k, v in config["trainer"].items() if k not in ("progress",)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def write_atomically(path: Path, write: Any, mode: str = "w") -> None:
    """Calls `write(file)` on a temporary neighbour and renames it: a killed run leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open(mode, encoding=None if "b" in mode else "utf8") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


@dataclass(frozen=True)
class RunDirectory:
    path: Path

    @property
    def recovery(self) -> Path:
        return self.path / "checkpoints" / "recovery.pt"

    @property
    def model(self) -> Path:
        return self.path / "checkpoints" / "model.pt"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"


class Status(StrEnum):
    """How far a run is, as its directory tells."""

    pending = "pending"
    running = "running"
    killed = "killed"
    """Begun, and ended neither by success nor by failure: it goes on where it was."""
    failed = "failed"
    done = "done"


def status(run: RunDirectory) -> Status:
    if run.results.exists():
        return Status.done
    if any(map(held, (run.path / TRAINER, run.path / SUPERVISOR))):
        return Status.running
    if run.failure.exists():
        return Status.failed
    return Status.killed if run.log.exists() or (run.path / "config.yaml").exists() else Status.pending


def open_run(config: dict[str, Any]) -> RunDirectory:
    """Creates the directory of a configuration, or finds it again; a finished one gets its new `name` at once."""
    root = Path(config["runs"])
    try:
        run = RunDirectory(root / config_hash(config))
        (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The run directory cannot be written ({error}); choose another folder with runs=FOLDER."
        ) from error
    if config["name"] and run.results.exists():  # one in progress is named by the process that holds it
        link(root / config["name"], run.path)
    return run


def read_results(run: RunDirectory) -> dict[str, Any] | None:
    """The results of a finished run; None while it is not finished. Raises InputError for a file that is damaged."""
    try:
        return json.loads(run.results.read_text(encoding="utf8")) if run.results.exists() else None
    except ValueError as error:
        raise InputError(f"{run.results} is damaged: remove it, and the training command writes it anew.") from error


def read_metrics(file: Path) -> Iterator[tuple[int, str, float]]:
    """Step, metric and value of each row of a metrics.csv, but half a row, with which a run that is on may end."""
    with file.open(encoding="utf8", newline="") as lines:
        for step, metric, value in (row for row in csv.reader(lines) if len(row) == 3 and row[0] != "step"):
            yield int(step), metric, float(value)


TRAINER, SUPERVISOR = ".lock", ".job"
"""What a process that trains in a run directory holds, and one that sees to it that another does."""


def discard(run: RunDirectory) -> None:
    """Removes a run that was refused, but for what a sweep keeps of its job."""
    kept = {run.path / SUPERVISOR, run.log}
    for entry in set(run.path.iterdir()) - kept:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not any(run.path.iterdir()):
        run.path.rmdir()


@contextmanager
def only_process(run: RunDirectory, role: str = TRAINER) -> Iterator[None]:
    """Holds the run directory; raises InputError while another process does. A killed process holds nothing."""
    with (run.path / role).open("w") as file:
        for attempt in range(ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if attempt == ATTEMPTS - 1:
                    raise InputError(
                        f"{run.path} is being trained by another process; wait for it or stop it."
                    ) from error
                time.sleep(0.01)
        yield


ATTEMPTS = 5
"""To hold a file that `held` may be looking at, which it does for some microseconds."""


def held(lock: Path) -> bool:
    """Whether a process, this one included, holds the file."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def link(name: Path, target: Path) -> None:
    """Makes `name` a link to a run directory, in place of an older link."""
    if name.exists() and not name.is_symlink():
        raise InputError(f"{name} exists and is not a link to a run; choose another name=.")
    temporary = name.with_name(f".{name.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, name.parent))
    temporary.replace(name)


def git_commit() -> str | None:
    """The commit of the program's checkout, with "-dirty" when it has changes; None outside a checkout."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    packages = ("moe-asr", "torch", "torchaudio", "pytorch-lightning", "lhotse", "numpy", "jiwer")
    return {
        "commit": git_commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


class AppendLog:
    """A text file that only grows, and that can be cut back to where a recovery checkpoint knew it."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        path.touch()
        if path.stat().st_size < offset:
            raise InputError(f"{path} is shorter than it was at the last recovery checkpoint; start the run over.")
        os.truncate(path, offset)
        self.file: TextIO = path.open("a", newline="", encoding="utf8")

    def offset(self) -> int:
        """Bytes safely on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def write_rows(self, rows: Iterable[Iterable[object]]) -> None:
        csv.writer(self.file, lineterminator="\n").writerows(rows)

    def write_json(self, value: Any) -> None:
        self.file.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")

    def close(self) -> None:
        self.file.close()

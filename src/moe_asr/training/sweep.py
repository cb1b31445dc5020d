"""A sweep as a whole: planned and checked before the first job, then worked off whoever runs it and however often.

Which job is how far is read from the run directories alone, so nothing is lost with the process that is here.
"""

import hashlib
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from moe_asr.config.compose import compose_config, to_plain
from moe_asr.config.program import LauncherConfig, LauncherName, TrainConfig
from moe_asr.data.manifest import split_size
from moe_asr.errors import InputError, JobError
from moe_asr.measure.matching import matched
from moe_asr.runs.checkpoint import load_checkpoint
from moe_asr.runs.directory import RunDirectory, Status, config_hash, git_commit
from moe_asr.runs.sweep import Job, Sweep, clock, table, write_sweep
from moe_asr.training.train import check_accelerator

OF_THE_SWEEP = ("name", "dry_run", "launcher")
"""Options that a sweep does not hand to its jobs."""
POLL = 1.0
"""Seconds between two looks at the run directories."""
TAIL = 15
"""Lines of a failed job's log that are shown."""


def plan(
    points: Sequence[Sequence[str]], arguments: Sequence[str], name: str | None, launcher: LauncherConfig
) -> tuple[Sweep, list[TrainConfig]]:
    """Composes and checks every point; returns the sweep, which nothing is written of yet, and the configurations.

    Raises InputError with what is wrong at every point that cannot be run.
    """
    axes = _axes(points)
    jobs, configs, wrong = [], [], []
    for overrides in points:
        said = dict(override.lstrip("+").split("=", 1) for override in overrides)
        point = {axis: said[axis] for axis in axes}
        try:
            composed = compose_config("train", TrainConfig, list(overrides))
            config, note = matched(composed, composed.tokenizer.vocab_size)
            check(config, launcher)
        except InputError as error:
            at = " ".join(f"{axis}={value}" for axis, value in point.items())
            wrong.append(f"{at}: {error}" if at else str(error))
            continue
        command = shlex.join(["moe-asr", "train", *overrides])
        jobs.append(Job(run_of(config), point, list(overrides), command, note))
        configs.append(config)
    if wrong:
        text = "\n  ".join([f"{len(wrong)} of {len(points)} jobs cannot be run, so none is:", *wrong])
        raise InputError(text if len(points) > 1 else wrong[0])
    TrainConfig(name=name)  # checks it
    runs = sorted({job.run.path.name for job in jobs})
    digest = hashlib.sha256(" ".join(runs).encode()).hexdigest()[:10]
    folder = Path(configs[0].runs) / "sweeps" / (name or f"{configs[0].logger.group}-{digest}")
    sweep = Sweep(folder, shlex.join(["moe-asr", "train", "-m", *arguments]), git_commit(), axes, tuple(jobs))
    return sweep, configs


def _axes(points: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The options that differ between points, and their values."""
    values: dict[str, dict[str, None]] = {}
    for overrides in points:
        for key, _, value in (override.lstrip("+").partition("=") for override in overrides):
            values.setdefault(key, {})[value] = None
    return {key: list(seen) for key, seen in values.items() if len(seen) > 1}


def run_of(config: TrainConfig) -> RunDirectory:
    return RunDirectory(Path(config.runs) / config_hash(to_plain(config)))


def check(config: TrainConfig, launcher: LauncherConfig) -> None:
    """Raises InputError for what a job would be refused for only after it has started."""
    if launcher.name is not LauncherName.submitit_slurm:  # whose machines are others
        check_accelerator(config)
    for split in (*config.data.train, *config.data.dev, *config.data.test):
        split_size(Path(config.data.path), split)
    if config.data.hours is not None and config.data.hours > (hours := corpus_hours(config)) * 1.001:
        raise InputError(f"data.hours={config.data.hours:g} is more than the {hours:.3f} h there are.")
    for source in (config.init_from, config.tokenizer.file):
        if source is not None and not source.endswith(".model"):
            _loadable(source)


@cache
def _loadable(source: str) -> None:
    load_checkpoint(source)


def corpus_hours(config: TrainConfig) -> float:
    return sum(split_size(Path(config.data.path), split).hours for split in config.data.train)


def environment_of(launcher: LauncherConfig) -> dict[str, str]:
    """Environment variables that share the cores of this machine among the jobs on it."""
    if launcher.name not in (LauncherName.joblib, LauncherName.submitit_local):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // launcher.jobs))}


def finish(sweep: Sweep, launch: Callable[[list[Job]], None], launcher: LauncherConfig) -> None:
    """Brings every job to its end: done ones are left alone, killed ones go on, failed ones are tried again once.

    launch: starts jobs as Hydra's launcher does, and returns when they have ended. Jobs that another process is at
    are waited for. Prints a table at the end, and raises JobError unless all are done.
    """
    write_sweep(sweep)
    jobs = list({job.run.path: job for job in sweep.jobs}.values())
    at_once = launcher.jobs if launcher.name is LauncherName.submitit_local else len(jobs)
    tried: set[Path] = set()
    for job in jobs:
        if job.status is Status.failed:
            job.run.failure.unlink()
    with progress(sweep, jobs):
        while True:
            left = [job for job in jobs if job.run.path not in tried and job.status is not Status.done]
            ready = [job for job in left if job.status is not Status.running]
            if not left:
                break
            if ready:
                launch(ready[:at_once])
                tried |= {job.run.path for job in ready[:at_once] if job.status is not Status.running}
            else:
                time.sleep(POLL)
    print(table(sweep))
    open_jobs = [job for job in jobs if job.status is not Status.done]
    print(f"sweep directory: {sweep.path}")
    if open_jobs:
        raise JobError(f"{len(open_jobs)} of {len(jobs)} jobs are not done; the same command tries them again.")


@contextmanager
def progress(sweep: Sweep, jobs: Sequence[Job]) -> Iterator[None]:
    """Shows on stderr, until the block ends, how far the jobs are, and at once which have failed."""
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(sweep, jobs, ended), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _watch(sweep: Sweep, jobs: Sequence[Job], ended: threading.Event) -> None:
    live, started, before = sys.stderr.isatty(), time.monotonic(), None
    failed: set[Path] = set()
    shown = ""
    while True:
        last = ended.is_set()  # asked first, so that what ended with it is seen
        found = {job.run.path: job.status for job in jobs}
        for job in jobs:
            if found[job.run.path] is Status.failed and job.run.path not in failed:
                print(("\r\x1b[K" if live else "") + failure(job, with_log=not failed), file=sys.stderr)
                failed.add(job.run.path)
        counts = {kind: sum(status is kind for status in found.values()) for kind in Status}
        done, elapsed = counts[Status.done], time.monotonic() - started
        before = done if before is None else before
        parts = [f"{counts[kind]} {kind}" for kind in (Status.failed, Status.running) if counts[kind]]
        text = f"{sweep.path.name}: {', '.join([f'{done} of {len(jobs)} done', *parts])}"
        if live or text != shown:
            left = len(jobs) - done - counts[Status.failed]
            rest = f", about {clock(elapsed / (done - before) * left)} left" if done > before and left else ""
            line, end = f"{text}, {clock(elapsed)} so far{rest}", "\n" if last or not live else ""
            print(("\r\x1b[K" if live else "") + line, end=end, file=sys.stderr, flush=True)
            shown = text
        if last:
            return
        ended.wait(POLL)


def failure(job: Job, with_log: bool) -> str:
    """What is said about a job that failed."""
    text = f"failed: {job.label}; its log: {job.run.log}"
    if with_log and job.run.log.exists():
        text += "\n" + "\n".join(f"  | {line}" for line in job.run.log.read_text(errors="replace").splitlines()[-TAIL:])
    return text

"""A sweep on disk: what it lists is read again, how far each job is comes from the run directories."""

import json
import os
import sys
from pathlib import Path

import pytest

from moe_asr.errors import InputError
from moe_asr.runs import sweep as sweeps
from moe_asr.runs.directory import SUPERVISOR, RunDirectory, Status, discard, only_process, status
from moe_asr.runs.sweep import Job, Sweep, read_sweep, supervise, table, words_of, write_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Two jobs of which nothing exists."""
    jobs = tuple(
        Job(RunDirectory(tmp_path / f"{seed}e5"), {"seed": seed}, [f"seed={seed}"], f"moe-asr train seed={seed}")
        for seed in ("1", "2")
    )
    made = Sweep(tmp_path / "sweeps" / "name", "moe-asr train -m seed=1,2", "abc", {"seed": ["1", "2"]}, jobs)
    write_sweep(made)
    return made


def test_a_sweep_is_read_as_it_was_written(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_sweep(sweep.path) == sweep
    (tmp_path / "moved").mkdir()
    for entry in ("sweeps",):
        (tmp_path / entry).rename(tmp_path / "moved" / entry)
    monkeypatch.chdir(tmp_path / "moved" / "sweeps")
    moved = read_sweep("name")
    assert [job.run.path for job in moved.jobs] == [tmp_path / "moved" / "1e5", tmp_path / "moved" / "2e5"]
    with pytest.raises(InputError, match=r"is not a sweep: it has no sweep.json; `moe-asr train -m` makes one"):
        read_sweep(tmp_path)


def test_how_far_a_run_is_can_be_read_from_its_directory(sweep: Sweep) -> None:
    run = sweep.jobs[0].run
    assert status(run) is Status.pending
    (run.path / "checkpoints").mkdir(parents=True)
    assert status(run) is Status.pending
    run.log.touch()
    assert status(run) is Status.killed
    run.failure.write_text("{}")
    assert status(run) is Status.failed
    for role in (".lock", SUPERVISOR):
        with only_process(run, role):
            assert status(run) is Status.running
        assert status(run) is Status.failed
    run.results.write_text("{}")
    assert status(run) is Status.done


def test_a_refused_run_leaves_the_log_of_its_job_alone(sweep: Sweep) -> None:
    job, alone = (job.run for job in sweep.jobs)
    for run in (job, alone):
        (run.path / "checkpoints").mkdir(parents=True)
        (run.path / ".lock").touch()
    job.log.write_text("why")
    discard(job)
    discard(alone)
    assert [entry.name for entry in job.path.iterdir()] == ["log.txt"]
    assert not alone.path.exists()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, Status.done),
        (1, Status.failed),
        (2, Status.failed),
        (-11, Status.failed),
        (130, Status.killed),
        (-9, Status.killed),
    ],
)
def test_what_becomes_of_a_job_is_left_in_its_directory(
    sweep: Sweep, code: int, expected: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweep.jobs[1].run
    run.path.mkdir()
    run.failure.write_text("{}")

    def train(words: list[str], log: object) -> int:
        assert status(run) is Status.running
        assert words[0] == "seed=2"
        if code == 0:
            run.results.write_text('{"test": {}}')
        return code

    monkeypatch.setattr(sweeps, "_train", train)
    supervise(sweep.path, "2e5")
    assert sweep.jobs[1].status is expected
    assert sweep.jobs[0].status is Status.pending
    assert run.log.read_text() == "$ moe-asr train seed=2\n"
    if expected is Status.failed:
        assert json.loads(run.failure.read_text()) == {"exit_code": code, "command": "moe-asr train seed=2"}


def test_a_job_that_is_done_or_in_other_hands_is_left_alone(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "_train", lambda words, log: pytest.fail("was trained"))
    run = sweep.jobs[0].run
    run.path.mkdir()
    with only_process(run, SUPERVISOR):
        supervise(sweep.path, "1e5")
    assert not run.log.exists()
    run.results.write_text("{}")
    supervise(sweep.path, "1e5")
    assert not run.log.exists()


@pytest.mark.parametrize("times", [1, 2])
def test_an_interruption_ends_the_training_and_is_passed_on(
    times: int, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is started instead of Python waits for ever; the interruption comes while it is waited for, or again."""
    deaf = "trap '' INT\n" if times == 2 else ""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{deaf}echo $$ > {tmp_path}/pid\nexec sleep 1000\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    wait = sweeps.subprocess.Popen.wait

    def interrupted(process: "sweeps.subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        if timeout is None and process.returncode is None and not (tmp_path / "interrupted").exists():
            (tmp_path / "interrupted").touch()
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                os.sched_yield()
            raise KeyboardInterrupt
        if timeout is not None and times == 2:
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(sweeps.subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        supervise(sweep.path, "1e5")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert sweep.jobs[0].status is Status.killed


def test_w_and_b_learns_the_sweep_as_a_group_and_the_axes_as_tags(sweep: Sweep) -> None:
    assert words_of(sweep, sweep.jobs[0]) == ["seed=1", "logger.group='name'", "logger.tags=['seed=1']"]
    own = Job(RunDirectory(Path("x")), {"it's": "a\\b" * 40}, ["logger.group=mine"], "")
    tag = words_of(sweep, own)[1]
    assert words_of(sweep, own)[0] == "logger.group=mine"
    assert tag.startswith("logger.tags=['its=aba")
    assert len(tag) <= len("logger.tags=['']") + 64


def test_the_table_shows_every_job(sweep: Sweep) -> None:
    run = sweep.jobs[0].run
    run.path.mkdir()
    run.results.write_text('{"test": {"seen": {"unit": "word", "wer": 0.125}}}')
    lines = table(sweep).splitlines()
    assert lines[0].split() == ["seed", "status", "run"]
    assert lines[1].split() == ["1", "done", "seen", "WER", "12.50", "%", str(run.path)]
    assert lines[2].split() == ["2", "pending", str(sweep.jobs[1].run.path)]

"""Working a sweep off: nothing is trained twice, nothing is lost, and failures are told at once."""

from pathlib import Path

import pytest

from moe_asr.config.program import LauncherConfig, LauncherName
from moe_asr.errors import JobError
from moe_asr.runs.directory import RunDirectory, Status, only_process
from moe_asr.runs.sweep import Job, Sweep
from moe_asr.training import sweep as sweeps
from moe_asr.training.sweep import environment_of, finish

BASIC = LauncherConfig()


def jobs(tmp_path: Path, count: int) -> Sweep:
    made = [Job(RunDirectory(tmp_path / f"run{i}"), {"seed": str(i)}, [f"seed={i}"], "") for i in range(count)]
    for job in made:
        job.run.path.mkdir()
    return Sweep(tmp_path / "sweeps" / "s", "", None, {"seed": [job.point["seed"] for job in made]}, tuple(made))


def test_done_is_skipped_killed_goes_on_and_failed_is_tried_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = jobs(tmp_path, 5)
    done, killed, failed, pending, dying = sweep.jobs
    done.run.results.write_text("{}")
    killed.run.log.touch()
    failed.run.failure.write_text("{}")
    launched = []

    def launch(batch: list[Job]) -> None:
        launched.append([job.label for job in batch])
        assert failed.status is not Status.failed, "what failed before is not told as new"
        killed.run.results.write_text("{}")
        pending.run.results.write_text("{}")
        failed.run.log.write_text("".join(f"line {i}\n" for i in range(99)))
        failed.run.failure.write_text("{}")
        dying.run.log.touch()

    with pytest.raises(JobError, match=r"2 of 5 jobs are not done; the same command tries them again\."):
        finish(sweep, launch, BASIC)
    assert launched == [["seed=1", "seed=2", "seed=3", "seed=4"]]
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()[1:6]] == ["done", "done", "failed", "done", "killed"]
    assert f"failed: seed=2; its log: {failed.run.log}\n  | line 84\n" in err
    assert "  | line 98\n" in err
    assert "s: 3 of 5 done, 1 failed" in err


def test_only_the_first_failure_shows_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = jobs(tmp_path, 2)

    def launch(batch: list[Job]) -> None:
        for job in batch:
            job.run.log.write_text(f"why {job.label}\n")
            job.run.failure.write_text("{}")

    with pytest.raises(JobError):
        finish(sweep, launch, BASIC)
    err = capsys.readouterr().err
    assert err.count("failed: seed=") == 2
    assert err.count("why seed=") == 1  # either, as both failed between two looks at them


def test_a_run_in_other_hands_is_waited_for_and_taken_over_if_they_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = jobs(tmp_path, 2)
    theirs, orphan = sweep.jobs
    held = [only_process(job.run) for job in sweep.jobs]
    for lock in held:
        lock.__enter__()

    def time_passes(seconds: float) -> None:
        theirs.run.results.write_text("{}")
        orphan.run.log.touch()
        while held:
            held.pop().__exit__(None, None, None)

    launched = []

    def launch(batch: list[Job]) -> None:
        launched.append([job.label for job in batch])
        orphan.run.results.write_text("{}")

    monkeypatch.setattr(sweeps.time, "sleep", time_passes)
    finish(sweep, launch, BASIC)
    assert launched == [["seed=1"]]


def test_engines_without_a_queue_get_so_many_jobs_at_a_time(tmp_path: Path) -> None:
    sweep, sizes = jobs(tmp_path, 5), []

    def launch(batch: list[Job]) -> None:
        sizes.append(len(batch))
        for job in batch:
            job.run.results.write_text("{}")

    finish(sweep, launch, LauncherConfig(LauncherName.submitit_local, jobs=2))
    assert sizes == [2, 2, 1]


def test_jobs_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.os, "sched_getaffinity", lambda process: set(range(6)))
    shared = {jobs: environment_of(LauncherConfig(LauncherName.joblib, jobs=jobs)) for jobs in (1, 2, 4, 9)}
    assert shared == {jobs: {"OMP_NUM_THREADS": str(threads)} for jobs, threads in ((1, 6), (2, 3), (4, 1), (9, 1))}
    assert environment_of(LauncherConfig(LauncherName.submitit_slurm)) == {}

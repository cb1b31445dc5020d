"""Jobs in a queue: submitted once, waited for until the queue has them no more, cancelled by an interruption."""

import getpass
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from moe_asr.errors import InputError
from moe_asr.runs import cluster
from moe_asr.runs.directory import RunDirectory
from moe_asr.runs.sweep import Job, Sweep, write_sweep

Queue = Callable[..., None]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    jobs = tuple(Job(RunDirectory(tmp_path / f"run{i}"), {"seed": str(i)}, [f"seed={i}"], "") for i in (1, 2, 3))
    made = Sweep(tmp_path / "sweeps" / "grid", "", None, {"seed": ["1", "2", "3"]}, jobs)
    write_sweep(made)
    return made


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Makes the commands of a cluster, whose jobs have the numbers 7_0 to 7_2, and which writes down its calls."""

    def made(sbatch: str = "cp $1 submitted; echo Submitted batch job 7", squeue: str = "") -> None:
        scripts = {"sbatch": sbatch, "squeue": f"echo $@ >> asked; {squeue}", "scancel": "echo $@ >> cancelled"}
        for name, script in {**scripts, "srun": "exit 1"}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "ASK", 1)
    return made


def test_what_the_queue_has_no_more_has_ended(
    sweep: Sweep, slurm: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first job is cancelled before it begins; the others train, while the queue once does not answer."""
    second = sweep.jobs[1]
    slurm(squeue="[ -e silent ] && exit 1; echo 99; [ -e running ] && echo 7_1 7_2; true")
    (tmp_path / "running").touch()
    looks = []
    killed = sweep.path / ".submitit" / "7_2" / "7_2_0_log.out"

    def time_passes(seconds: float) -> None:
        looks.append(capsys.readouterr().err)
        if len(looks) == 1:
            (tmp_path / "silent").touch()
        if len(looks) == 2:
            (tmp_path / "silent").unlink()
            (tmp_path / "running").unlink()
            second.run.path.mkdir()
            second.run.results.write_text("{}")
            killed.write_text("out of memory")

    monkeypatch.setattr(cluster.time, "sleep", time_passes)
    cluster.submit(sweep, sweep.jobs, "slurm", {"partition": "gpu", "timeout_min": 90, "array_parallelism": 1}, {})
    assert looks == ["ended before its time: seed=1; it had not begun\n", ""]
    assert capsys.readouterr().err == f"ended before its time: seed=3; see {killed}\n", "the second has its results"
    script = (tmp_path / "submitted").read_text()
    for flag in ("array=0-2%1", "job-name=grid", "partition=gpu", "time=90"):
        assert f"#SBATCH --{flag}\n" in script
    assert (tmp_path / "asked").read_text().count(f"--user={getpass.getuser()}") == 3
    assert not (tmp_path / "cancelled").exists()


def test_an_interruption_takes_the_jobs_out_of_the_queue(
    sweep: Sweep, slurm: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    slurm(squeue="echo 7_0 7_1 7_2")
    monkeypatch.setattr(cluster.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cluster.submit(sweep, sweep.jobs, "slurm", {}, {})
    assert (tmp_path / "cancelled").read_text().split() == ["7_0", "7_1", "7_2"]


def test_what_is_refused_is_said(sweep: Sweep, slurm: Queue) -> None:
    slurm(sbatch="echo 'sbatch: error: no such partition' >&2; echo 'sbatch: error: Submission failed' >&2; exit 1")
    with pytest.raises(InputError, match=r"^The cluster refuses the jobs \(no such partition; Submission failed\)"):
        cluster.submit(sweep, sweep.jobs, "slurm", {"partition": "nope"}, {})
    for options, said in {
        "partion": "Unknown argument 'partion'",
        "timeout_min": '"timeout_min" expected type',
    }.items():
        with pytest.raises(InputError, match=rf"^launcher.options cannot be used: .*{said}"):
            cluster.submit(sweep, sweep.jobs, "slurm", {options: "gpu"}, {})


def test_processes_of_this_machine_are_waited_for(sweep: Sweep, capfd: pytest.CaptureFixture[str]) -> None:
    done = sweep.jobs[0]
    done.run.path.mkdir()
    done.run.results.write_text("{}")
    cluster.submit(sweep, [done], "local", {"timeout_min": 10, "stderr_to_stdout": True}, {"OMP_NUM_THREADS": "1"})
    (result,) = sweep.path.glob(".submitit/*/*_0_result.pkl")
    assert result.with_name(result.name.replace("_result.pkl", "_log.out")).exists()
    assert not done.run.log.exists(), "it was done already"
    assert capfd.readouterr().err == ""


def test_a_job_that_the_cluster_ends_has_not_failed(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM sends SIGTERM to all processes of a job at once, which its training may answer by an error."""

    def supervise(folder: str, name: str) -> None:
        assert (folder, name, os.environ["SAID"]) == ("sweeps/grid", "run1", "yes")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setenv("SAID", "no")
    monkeypatch.setattr(cluster, "supervise", supervise)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            cluster.Supervised()("sweeps/grid", "run1", {"SAID": "yes"})
    finally:
        signal.signal(signal.SIGTERM, before)

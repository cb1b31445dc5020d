"""`train -m`: all is checked before anything runs, and a killed sweep goes on where it was, under every launcher."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from moe_asr.config.program import LauncherConfig
from moe_asr.errors import InputError
from moe_asr.runs.directory import RunDirectory, Status
from moe_asr.runs.sweep import read_sweep
from moe_asr.training.sweep import plan

Cli = Callable[..., tuple[int, str, str]]
BASIC = LauncherConfig()
TINY = [
    "model.encoder={layers: 1, width: 16, heads: 2, ffn_width: 16, kernel: 3, subsampling_channels: 4}",
    "model.decoder={layers: 1, reverse_layers: 1, heads: 2, ffn_width: 16}",
    "data.test=[unseen]",
    "tokenizer.unit=word",
    "trainer.epochs=2",
    "trainer.recover_every=2",
    "logger.mode=disabled",
]


@pytest.fixture
def words(digits: Path, tmp_path: Path) -> list[str]:
    """Options of a tiny job."""
    return [*TINY, f"data.path={digits}", f"runs={tmp_path}/runs", "batch.seconds=20"]


def moe_asr(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "moe_asr.cli.main", "train", "-m", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_points_become_runs_in_order(words: list[str], tmp_path: Path) -> None:
    points = [[*words, f"seed={seed}", "++optim.lr_scale.ctc=2"] for seed in (2, 1, 2)]
    sweep, configs = plan(points, ["seed=2,1,2"], None, BASIC)
    assert sweep.axes == {"seed": ["2", "1"]}
    assert [job.point for job in sweep.jobs] == [{"seed": "2"}, {"seed": "1"}, {"seed": "2"}]
    assert sweep.jobs[0].run == sweep.jobs[2].run != sweep.jobs[1].run
    assert [config.seed for config in configs] == [2, 1, 2]
    assert sweep.jobs[1].command.endswith(" seed=1 ++optim.lr_scale.ctc=2")
    assert sweep.command == "moe-asr train -m seed=2,1,2"
    assert re.fullmatch("default-[0-9a-f]{10}", sweep.path.name)
    assert plan(points, [], "nice", BASIC)[0].path == tmp_path / "runs" / "sweeps" / "nice"
    assert not (tmp_path / "runs").exists(), "a plan leaves nothing behind"


def test_a_grid_of_one_point_is_refused_without_a_name_for_it(words: list[str]) -> None:
    with pytest.raises(InputError, match=r"^the corpus .* has no split 'unsen'"):
        plan([[*words, "data.dev=[unsen]"]], [], None, BASIC)


def test_a_matched_width_is_part_of_the_run_and_told(words: list[str]) -> None:
    options = ["model.encoder.ffn_width=64", "moe.num_experts=2", "match=total", "match_to=dense"]
    points = [[*words, *options, f"moe.placement={place}"] for place in ("none", "encoder")]
    sweep, configs = plan(points, [], None, BASIC)
    assert configs[0].model.encoder.ffn_width == 64, "a dense model equals itself"
    assert configs[1].moe.expert_width == 32
    assert "of dense (+0.00 %)" in sweep.jobs[0].note
    assert "moe.expert_width=32" in sweep.jobs[1].note


def test_nothing_starts_unless_all_jobs_can_run(cli: Cli, words: list[str], tmp_path: Path) -> None:
    sick = [
        (["moe.placement=encoder", "moe.top_k=1,2"], "moe.top_k=1: moe.top_k=1 with router.normalize=true gives every"),
        (["data.path=elsewhere", "seed=1,2"], "seed=1: elsewhere holds no prepared corpus; make it with"),
        (["data.train=[train],[tarin]"], "data.train=[tarin]: the corpus"),
        (["data.hours=0.01,9"], "data.hours=9: data.hours=9 is more than the 0.0"),
        (["init_from=null,elsewhere"], "init_from=elsewhere: "),
        (["name=a,b"], "name=a,b is about the sweep as a whole: give one value."),
    ]
    for more, sentence in sick:
        code, out, err = cli("train", "-m", *words, *more)
        assert (code, out) == (2, "")
        assert sentence in err
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_lists_the_jobs_and_trains_none(cli: Cli, words: list[str], tmp_path: Path) -> None:
    code, out, _ = cli("train", "-m", *words, "moe.placement=none,encoder", "seed=1,2", "dry_run=true")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[:3] for row in rows[1:5]] == [
        [f"moe.placement={place}", f"seed={seed}", "pending"] for place in ("none", "encoder") for seed in (1, 2)
    ]
    total = [float(row[3]) for row in rows[1:5]]
    assert total[0] == total[1] < total[2] == total[3]
    assert "of training left, at the speed of a step of the first job" in out
    assert not (tmp_path / "runs").exists()
    code, out, _ = cli("train", *words, "dry_run=true")
    assert (code, "the only point" in out) == (0, True)


def test_a_launcher_that_is_not_here_is_said(cli: Cli, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load = ConfigStore.load

    def absent(store: ConfigStore, config_path: str) -> object:
        return load(store, config_path.replace("joblib", "absent"))

    monkeypatch.setattr(ConfigStore, "load", absent)
    monkeypatch.setattr("shutil.which", lambda program: None)
    for launcher, sentence in {
        "joblib": "launcher=joblib is a plugin that is not installed: pip install 'moe-asr[launchers]'.",
        "submitit_slurm": "launcher=submitit_slurm finds no srun here: give the command on a cluster.",
    }.items():
        code, out, err = cli("train", "-m", *words, "seed=1,2", f"launcher={launcher}")
        assert (code, out) == (2, "")
        assert sentence in err


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=1200)
    return process.returncode, out, err


def starts(run: RunDirectory) -> int:
    """How often a job was started."""
    return run.log.read_text().count("$ moe-asr train")


@pytest.mark.slow
def test_a_sweep_killed_as_a_whole_loses_no_job_and_repeats_none(words: list[str], tmp_path: Path) -> None:
    words = [*words, "seed=1,2,3", "name=grid", "trainer.epochs=3"]
    process = moe_asr(*words)
    ledger = tmp_path / "runs" / "sweeps" / "grid"
    deadline = time.monotonic() + 1200
    while True:  # until the second job is in the middle
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        if (ledger / "sweep.json").exists():
            first, second, third = read_sweep(ledger).jobs
            if first.status is Status.done and second.run.recovery.exists():
                break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while second.status is Status.running:  # the killed processes are gone
        os.sched_yield()
    assert [job.status for job in (first, second, third)] == [Status.done, Status.killed, Status.pending]
    before = first.run.results.stat().st_mtime_ns
    code, out, err = ended(moe_asr(*words))
    assert code == 0, err
    assert [job.status for job in (first, second, third)] == [Status.done] * 3
    assert [starts(job.run) for job in (first, second, third)] == [1, 2, 1]
    assert first.run.results.stat().st_mtime_ns == before
    assert "Going on with" in second.run.log.read_text()
    for job in (first, second, third):
        lines = [json.loads(line) for line in (job.run.path / "ledger.jsonl").read_text().splitlines()]
        batches = [(line["epoch"], line["batch"]) for line in lines]
        assert batches == sorted(set(batches))
        assert {epoch for epoch, _ in batches} == {0, 1, 2}
    assert out.count(" done ") == 3


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_others_go_on_when_a_job_fails(launcher: str, words: list[str], tmp_path: Path) -> None:
    """Batches too short for any utterance are found only by the job itself."""
    if launcher != "basic":
        pytest.importorskip({"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit_local": "submitit"}[launcher])
    words = [*words, "batch.seconds=0.5,20", f"launcher={launcher}", "name=grid", "trainer.epochs=1"]
    code, out, err = ended(moe_asr(*words))
    assert code == 1, err
    assert [line.split()[1] for line in out.splitlines()[1:3]] == ["failed", "done"]
    assert "does not fit into a batch of 0.5 s" in err
    assert "1 of 2 jobs are not done" in err
    bad, good = read_sweep(tmp_path / "runs" / "sweeps" / "grid").jobs
    assert json.loads(bad.run.failure.read_text())["exit_code"] == 2
    assert [starts(bad.run), starts(good.run)] == [1, 1]

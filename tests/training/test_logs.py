"""What is written down: metrics.csv in long form, progress early and then ever less often, W&B by the run's hash."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe_asr.config.program import LoggerConfig, LoggerMode
from moe_asr.errors import InputError
from moe_asr.measure.expert_use import Alarm
from moe_asr.runs.directory import AppendLog, RunDirectory
from moe_asr.training import logs
from moe_asr.training.logs import MetricsCsv, ProgressDisplay, WandbRun, wandb_run


def test_metrics_are_rows_and_numbers_come_back_exactly(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "metrics.csv")
    logger = MetricsCsv(log)
    logger.log_metrics({"train/loss": 0.1 + 0.2, "train/lr": 1e-5}, step=10)
    offset = log.offset()
    logger.log_metrics({"val/wer": 1.0}, step=20)
    log.close()
    again = AppendLog(tmp_path / "metrics.csv", offset)
    MetricsCsv(again).log_metrics({"val/wer": float("inf")}, step=20)
    again.close()
    rows = list(csv.reader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row[0], row[1]) for row in rows] == [("10", "train/loss"), ("10", "train/lr"), ("20", "val/wer")]
    assert [float(row[2]) for row in rows] == [0.1 + 0.2, 1e-5, float("inf")]


def test_progress_lines_come_early_and_then_ever_less_often(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(1000, done=0, show=True)
    for step in range(1, 1001):
        display.step(step, 2.0 / step)
    display.line("epoch 1/1")
    display.close()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    steps = [int(re.match(r"step (\d+)/1000", line)[1]) for line in lines[:-1]]  # type: ignore[index]
    assert steps == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert re.fullmatch(r"step 2/1000  loss 1\.000  about \d+\.\d min left", lines[1])
    assert (lines[-1], out) == ("epoch 1/1", "")


def test_progress_of_a_resumed_run_counts_its_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(30, done=9, show=True)
    display.started -= 60.0  # as if the one step since then had taken a minute
    display.step(10, None)
    assert re.search(r"step 10/30 .*about 20\.\d min left", capsys.readouterr().err)
    assert ProgressDisplay(30, done=9, show=True).remaining(9) == ""


def test_progress_can_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(10, done=0, show=False)
    display.step(1, 1.0)
    display.line("epoch 1/1")
    display.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_that_cannot_be_reached_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def unreachable(**about: object) -> None:
        raise wandb.errors.CommError("no such host\nwhile retrying")

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key="0" * 40))
    with pytest.raises(InputError) as refused:
        wandb_run(LoggerMode.online, "wandb")
    assert str(refused.value) == (
        "W&B cannot be used (no such host while retrying): write wandb=offline, and `wandb sync` sends the run later."
    )
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key=None))
    with pytest.raises(InputError, match=r"^wandb=online needs a W&B account"):
        wandb_run(LoggerMode.online, "wandb")


def test_w_and_b_is_told_a_resumed_run_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline; online it knows what it was told."""
    told: list[tuple[dict[str, float], int]] = []
    fake = SimpleNamespace(log=lambda metrics, step: told.append((metrics, step)))
    monkeypatch.setattr(logs, "wandb_run", lambda *args, **about: fake)
    (tmp_path / "metrics.csv").write_text("step,metric,value\n10,train/loss,0.5\n10,val/wer,1.0\n20,train/loss,inf\n")
    part = tmp_path / "wandb" / "offline-run-20260101_000000-0123"
    (part / "files").mkdir(parents=True)
    for mode in (LoggerMode.online, LoggerMode.offline):
        assert part.exists()
        WandbRun(LoggerConfig(mode), RunDirectory(tmp_path), None, {}).catch_up(tmp_path / "metrics.csv")
        assert bool(told) == (mode is LoggerMode.offline)
    assert told == [({"train/loss": 0.5, "val/wer": 1.0}, 10), ({"train/loss": float("inf")}, 20)]
    assert not part.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_offline_wandb_run_is_silent_and_known_by_its_hash(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "0123456789").mkdir()
    config = LoggerConfig(group="demo", project="speech")
    logger = WandbRun(config, RunDirectory(tmp_path / "0123456789"), "nice", {"seed": 1})
    try:
        run = logger.run
        assert (run.id, run.group, run.name, run.project) == ("0123456789", "demo", "nice", "speech")
        assert dict(run.config) == {"seed": 1}
        assert run.settings.mode == "offline"
        logger.log_metrics({"train/loss": 1.0}, step=3)
        logger.log_loads({"encoder.00.ffn_in": [0.25, 0.75]}, step=3)
        logger.log_loads({}, step=4)
        logger.alert(Alarm(3, "0"))
        result = {"wer": 0.25, "rtf": 0.1, "unit": "word", "wer_ci95": [0.1, 0.4]}
        logger.summarize({"params_total": 7, "commit": "abc", "dev": {}, "test": {"seen": result}})
        summary = run.summary
        assert (summary["test/seen/wer"], summary["test/seen/rtf"], summary["params_total"]) == (0.25, 0.1, 7)
        assert "commit" not in dict(summary)
    finally:
        wandb.finish()
    assert list((tmp_path / "0123456789" / "wandb").glob("offline-run-*/run-0123456789.wandb"))
    (heat_map,) = (tmp_path / "0123456789" / "wandb").glob("offline-run-*/files/media/html/routing/heat_map_*.html")
    assert ">75</td>" in heat_map.read_text()
    assert capfd.readouterr() == ("", "")

"""The report: what it says of made-up runs is what was made up, its page is whole, sorts and opens."""

import csv
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from moe_asr.analysis.report import report
from moe_asr.analysis.report_effects import effects, pooled_interval, tables
from moe_asr.analysis.report_runs import read_study, rows
from moe_asr.cli.report import run
from moe_asr.config.compose import to_plain
from moe_asr.config.decode import DecodeConfig
from moe_asr.config.pages import ReportConfig
from moe_asr.config.program import LoggerMode, TrainConfig
from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.measure.expert_use import Alarm
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.results import Scored
from moe_asr.measure.results import test_set_result as set_result
from moe_asr.measure.rtf import SpeedReceipt
from moe_asr.runs.directory import RunDirectory, environment, write_json
from moe_asr.runs.sweep import Job, Sweep, write_sweep

HOSTILE = "<script>alert('&')</script>"
SPEED = SpeedReceipt(0.01, (0.009, 0.01, 0.011), 1.0, 1.0, 100.0, 4, 16, 1, 1, "cpu", "a machine", "2.13")


def make_run(folder: Path, config: TrainConfig, wrong: float, done: bool = True) -> RunDirectory:
    """A run directory with one word in every 1 / wrong recognised wrongly, on two test sets of 8 speakers."""
    (folder / "hypotheses").mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(to_plain(config)))
    metrics = [f"{s},{m},{v / s}" for s in (1, 2, 3) for m, v in (("train/loss", 9.0), ("val/wer", 0.9))]
    (folder / "metrics.csv").write_text("\n".join(["step,metric,value", *metrics]) + "\n")
    if not done:
        return RunDirectory(folder)
    results: dict[str, Any] = {"dev": {}, "test": {}}
    for name, noise in (("seen", 0.5), ("unseen", 1.0)):
        rng = random.Random(f"{name} {config.seed}")
        scored = [
            Scored(
                f"{name}-{u}",
                "a b c d",
                " ".join("x" if rng.random() < wrong * noise else w for w in "abcd"),
                f"s{u % 8}",
            )
            for u in range(80)
        ]
        lines = [json.dumps(asdict(line)) for line in scored]
        (folder / "hypotheses" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        loads = {"encoder.00.ffn_out": [0.998, 0.002] if config.moe.num_experts == 2 else [0.25] * 4}
        found = set_result(scored, normalizer("none"), [Unit.word], SPEED)
        results["test"][name] = found | {"split": name, "decode": to_plain(DecodeConfig()), "experts": loads}
    alarms = [asdict(Alarm(7, "encoder.00.ffn_out", [1], 1.3))] if config.moe.num_experts == 2 else []
    results |= {"params_total": 2_000_000, "params_active": 1_000_000, "train_seconds": 30.0, "alarms": alarms}
    write_json(folder / "results.json", results | environment() | {"seed": config.seed})
    return RunDirectory(folder)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """2 x 2 options x 3 seeds, of which one run failed and one never began; more experts help, the rate does not."""
    jobs, tiny = [], TrainConfig()
    for experts in (2, 4):
        for rate in (0.0, 0.1):
            for seed in (1, 2, 3):
                point = {"moe.num_experts": str(experts), "router.balance_rate": str(rate), "seed": str(seed)}
                config = replace(
                    tiny,
                    moe=replace(tiny.moe, placement="encoder", num_experts=experts, top_k=2),
                    router=replace(tiny.router, balance_rate=rate),
                    seed=seed,
                )
                run = RunDirectory(tmp_path / f"{experts}-{rate}-{seed}")
                if (experts, rate, seed) == (4, 0.1, 3):
                    make_run(run.path, config, 0, done=False)
                    run.log.write_text(f"step 1\nit broke: {HOSTILE}\n")
                    write_json(run.failure, {"exit_code": 1})
                elif (experts, rate, seed) != (4, 0.1, 2):
                    make_run(run.path, config, 0.4 if experts == 2 else 0.15)
                words = ["experiment=demo", *(f"{key}={value}" for key, value in point.items())]
                jobs.append(Job(run, point, words, f"moe-asr train {' '.join(words)}"))
    axes = {"moe.num_experts": ["2", "4"], "router.balance_rate": ["0.0", "0.1"], "seed": ["1", "2", "3"]}
    made = Sweep(tmp_path / "sweeps" / "experts", f"moe-asr train -m name={HOSTILE}", "abc123", axes, tuple(jobs))
    write_sweep(made)
    return made.path


def test_a_sweep_is_read_with_its_question_points_and_states(sweep: Path) -> None:
    study = read_study([str(sweep)])
    assert (study.title, study.commit, list(study.axes)) == (
        "experts",
        "abc123",
        ["moe.num_experts", "router.balance_rate"],
    )
    assert study.question.startswith("What `make demo` trains: connected digits")
    assert {p: [e.seed for e in entries] for p, entries in study.points.items()} == {
        (experts, rate): ["1", "2", "3"] for experts in "24" for rate in ("0.0", "0.1")
    }
    assert [e.status.value for e in study.points["4", "0.1"]] == ["done", "pending", "failed"]
    assert study.sets == ["seen", "unseen"]


def test_effects_pool_the_cells_that_share_seeds(sweep: Path) -> None:
    study = read_study([str(sweep)])
    counted = tables(study, "unseen")
    experts, rate = effects(study, counted)
    assert (experts.axis, experts.value, experts.against) == ("moe.num_experts", "4", "2")
    assert (experts.cells, experts.seeds, experts.verdict) == (1, 3, "better")  # the other cell has one seed
    assert (rate.axis, rate.cells, rate.seeds) == ("router.balance_rate", 1, 3)
    assert rate.verdict == "none: all errors are the same"
    assert experts.comparison is not None
    assert experts.comparison.relative == pytest.approx(-0.6, abs=0.15)
    runs = {name: counts for name, (_, _, counts) in counted.items()}
    pooled = [sum(c.errors for c in counts) for name, counts in runs.items() if name.startswith("2-0.0")]
    assert experts.rates is not None
    assert experts.rates[0] == pytest.approx(sum(pooled) / 3 / 320)
    low, high = pooled_interval(study.points["2", "0.0"], counted) or (0, 0)
    assert low < experts.rates[0] < high
    assert pooled_interval(study.points["4", "0.1"], counted) is None  # not of all its runs
    few = {name: counts for name, counts in counted.items() if name.endswith("-1")}
    pooled_effects = effects(study, few)
    assert [(e.cells, e.seeds, e.verdict, e.comparison) for e in pooled_effects] == [
        (2, 1, "one seed: no claim", None)
    ] * 2
    assert effects(study, {})[0].verdict == "nothing to compare"


def test_runs_without_a_sweep_tell_their_axes(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "baseline").symlink_to(tmp_path / "2-0.0-1")
    study = read_study([str(tmp_path)])
    assert {axis: list(values) for axis, values in study.axes.items()} == {
        "moe.num_experts": ["2", "4"],
        "router.balance_rate": ["0.0", "0.1"],
    }
    assert len(study.entries) == 11  # each once, the one that never began not at all
    assert [e.run.path.name for e in study.points["2", "0.0"]] == ["baseline", "2-0.0-2", "2-0.0-3"]
    assert study.title == tmp_path.name
    single = read_study([str(tmp_path / "2-0.0-1")])
    assert (single.axes, len(single.entries), single.entries[0].seed) == ({}, 1, "1")
    assert "Report: 2-0.0-1" in report(single)[0]
    with pytest.raises(InputError, match="holds no sweep and no run"):
        read_study([str(tmp_path / "baseline" / "hypotheses")])


def test_options_that_differ_together_are_one_axis(tmp_path: Path) -> None:
    tiny = TrainConfig()
    for lr, width in ((0.001, 16), (0.002, 32)):
        config = replace(
            tiny,
            optim=replace(tiny.optim, lr=lr),
            moe=replace(tiny.moe, placement="encoder", num_experts=4, top_k=2, expert_width=width),
        )
        make_run(tmp_path / str(lr), config, 0.1)
    study = read_study([str(tmp_path)])
    assert {axis: list(values) for axis, values in study.axes.items()} == {"moe.expert_width": ["16", "32"]}
    assert study.notes == ["moe.expert_width differs together with optim.lr."]


def test_the_page_says_all_and_escapes_it(structure: Callable[[str], Any], sweep: Path) -> None:
    study = read_study([str(sweep)])
    html, plain = report(study, "seen")
    found = structure(html)
    assert json.loads(json.dumps(plain))["set"] == "seen"
    assert found.text.count(HOSTILE) == 2  # in the log, and in the command
    assert len(found.all("tbody", **{"data-set": "seen"})) == 4
    assert len(found.all("tr", **{"class": "run"})) == 2 * 12
    assert [option["value"] for option in found.all("option")] == ["seen", "unseen"]
    assert all("hidden" in body for body in found.all("tbody", **{"data-set": "unseen"}))
    for said in (
        "10 of 12",
        "failed",
        "pending",
        "abc123",
        "a machine",
        "has collapsed",
        "2 of 12 runs have no results",
        "GFLOP / s needs the checkpoint of a run, which is not there, or of another version.",
        "versions: moe-asr ",
    ):
        assert said in found.text
    seen = [line["rate"] for line in plain["runs"] if line.get("set") == "seen" and line["run"].startswith("2-0.0")]
    assert len(seen) == 3
    assert f"{100 * sum(seen) / 3:.2f} ± " in found.text
    assert len(found.all("figure")) == 4  # RTF, two curves, test sets
    assert len(found.all("table", **{"class": "map"})) == 10
    sorts = found.all("button", type="button")
    assert [b["data-sort"] for b in sorts if "data-sort" in b][:4] == ["axis0", "axis1", "seeds", "rate"]
    for file in sweep.parents[1].glob("*/metrics.csv"):
        file.write_text("step,metric,value\n3,val/wer,0.3\n")
    once, _ = report(read_study([str(sweep)]), "seen")
    assert len(structure(once).all("figure")) == 2  # one value makes no curve
    with pytest.raises(InputError, match="set=other is no test set of these runs, which have seen, unseen"):
        report(study, "other")


def test_a_sweep_that_has_not_begun_has_a_page(structure: Callable[[str], Any], sweep: Path) -> None:
    study = read_study([str(sweep)])
    begun = replace(study, entries=[entry for entry in study.entries if entry.status.value == "pending"])
    html, plain = report(begun)
    assert "0 of 1" in structure(html).text
    assert (plain["set"], plain["effects"], len(plain["runs"])) == (None, [], 1)


def test_there_is_a_line_for_every_run_and_test_set(sweep: Path) -> None:
    lines = rows(read_study([str(sweep)]))
    assert len(lines) == 2 * 10 + 2
    first = lines[0]
    assert (first["moe.num_experts"], first["seed"], first["run"], first["status"]) == ("2", "1", "2-0.0-1", "done")
    assert (first["set"], first["rtf"], first["dead_experts"], first["alarms"]) == ("seen", 0.01, 1, 1)
    assert first["rate_low"] < first["rate"] < first["rate_high"]
    assert lines[-1]["status"] == "failed"


@pytest.mark.slow
def test_it_opens_and_sorts_as_its_address_says(browser: Callable[..., str], sweep: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report(read_study([str(sweep)]))[0], encoding="utf8")
    for order, direction in (("desc", "descending"), ("asc", "ascending")):
        dom = browser(file, f"#sort=rate:{order}&theme=light")
        assert f'aria-sort="{direction}"><button type="button" data-sort="rate"' in dom
        table = dom[dom.index('id="table"') :].partition("</table>")[0]
        shown = [body for body in re.findall(r"<tbody.*?</tbody>", table, re.DOTALL) if 'data-set="unseen"' in body]
        experts = [re.search(r'data-v="([^"]*)"', body)[1] for body in shown]  # type: ignore[index]
        assert experts == (["2", "2", "4", "4"] if order == "desc" else ["4", "4", "2", "2"])
        assert 'data-theme="light"' in dom


def test_the_command_writes_page_table_and_values(sweep: Path, tmp_path: Path) -> None:
    run(ReportConfig(paths=[str(sweep)], out=str(tmp_path / "out")))
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    assert len(lines) == 22
    assert {line["set"] for line in lines} == {"seen", "unseen", ""}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["title"] == "experts"
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    with pytest.raises(InputError, match="A report of what"):
        run(ReportConfig())


def test_the_table_goes_to_wandb_when_asked(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", lambda self, values: logged.append(values))
    run(ReportConfig(paths=[str(sweep)], out=str(tmp_path / "out"), wandb=LoggerMode.offline))
    (table,) = (values["report"] for values in logged)
    assert len(table.data) == 22
    assert table.columns[:4] == ["moe.num_experts", "router.balance_rate", "seed", "run"]
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*"))

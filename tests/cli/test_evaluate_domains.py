"""`moe-asr evaluate` on a suite of domains: all of them by default, their means, and those of two systems."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from moe_asr.cli.evaluate import run
from moe_asr.config.commands import EvaluateConfig
from moe_asr.data.manifest import read_card, write_card
from moe_asr.errors import InputError


@pytest.fixture
def suite(digits: Path, tmp_path: Path) -> Path:
    """The splits of the tiny corpus as if they were domains."""
    folder = tmp_path / "data" / "domains"
    shutil.copytree(digits, folder)
    write_card(folder, dataclasses.replace(read_card(folder), name="domains"))
    return folder


def test_means_of_domains_and_of_two_systems(
    suite: Path, untrained: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(EvaluateConfig(str(untrained), str(suite), out=str(first)))
    run(EvaluateConfig(str(trained), str(suite), out=str(second), against=str(first)))
    bad, good = (json.loads((folder / "results.json").read_text()) for folder in (first, second))
    assert list(bad["test"]) == list(read_card(suite).splits)
    rates = [result["wer"] for result in good["test"].values()]
    assert good["domains"][""]["mean"] == pytest.approx(sum(rates) / len(rates), abs=1e-2)
    ratio = good["domains"][""]["against"]["mean"]
    assert ratio == pytest.approx(good["domains"][""]["mean"] / bad["domains"][""]["mean"])
    assert ratio < 0.8
    shown = capsys.readouterr().out
    assert f"geometric mean {100 * good['domains']['']['geometric']:.2f} %" in shown
    assert "times that of the other results" in shown


def test_a_suite_is_found_by_the_name_of_its_configuration(
    suite: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(EvaluateConfig(str(untrained), "domains", sets=["unseen"], out="results"))
    results = json.loads(Path("results/results.json").read_text())
    assert (results["data"], list(results["test"])) == ("data/domains", ["unseen"])


def test_against_is_for_suites(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="against= compares suites of domains"):
        run(EvaluateConfig(str(untrained), out=str(tmp_path), against=str(tmp_path)))
    assert not list(tmp_path.iterdir())

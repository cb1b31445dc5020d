"""`moe-asr prune` from a run directory to one that `evaluate` reads."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_asr.config.model import MoEConfig, RouterConfig, RouterLogits
from moe_asr.runs.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("method", ["drop", "merge"])
def test_a_run_with_fewer_experts_that_evaluates(cli: Cli, untrained: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "small"
    code, shown, err = cli("prune", untrained, out, "num_experts=2", f"method={method}")
    assert (code, err) == (0, "")
    found, before = load_checkpoint(out), load_checkpoint(untrained)
    assert found.config.moe == dataclasses.replace(before.config.moe, num_experts=2)
    receipt = json.loads((out / "environment.json").read_text())["pruned"]
    assert (receipt["run"], receipt["sets"]) == (str(untrained), ["dev"])
    for site in ("encoder.00.ffn_in", "encoder.00.ffn_out"):
        line = next(line for line in shown.splitlines() if line.startswith(site))
        gone = [g for g in receipt["removed"] if g["site"] == site]
        assert len(gone) == 2
        for one in gone:
            merged = "" if one["into"] is None else f" into {one['into']}"
            assert f"{one['expert']}{merged} ({100 * one['load']:.1f} %)" in line
            assert 0 <= one["load"] < 0.5
            assert (one["into"] is None) == (method == "drop" or one["load"] == 0)
        name = site.replace("encoder.00", "encoder.layers.0") + ".banks.0.w_in"
        kept = [expert for expert in range(4) if expert not in [g["expert"] for g in gone]]
        assert before.weights[name][kept].equal(found.weights[name]) == all(g["into"] is None for g in gone)
    assert any(g["load"] > 0 for g in receipt["removed"])
    assert cli("evaluate", out, "sets=[dev]", f"out={tmp_path}/results")[0] == 0
    experts = json.loads((tmp_path / "results" / "results.json").read_text())["test"]["dev"]["experts"]
    assert [len(load) for load in experts.values()] == [2, 2]
    assert cli("prune", untrained, out, "num_experts=2")[2].endswith("holds a model already; choose another folder.\n")


def test_what_cannot_be_pruned_is_refused(cli: Cli, untrained: Path, tmp_path: Path) -> None:
    for number in (1, 4):
        code, out, err = cli("prune", untrained, tmp_path / "out", f"num_experts={number}")
        assert (code, out) == (2, "")
        assert (
            f"num_experts={number} must be less than the 4 experts of this model, and at least its moe.top_k=2" in err
        )
    given = load_checkpoint(untrained)
    others = {
        "dense": (MoEConfig(), RouterConfig(), "it has no expert to prune"),
        "width": (dataclasses.replace(given.config.moe, expert_widths=[8, 8, 8, 0]), RouterConfig(), "differ in width"),
        "position": (given.config.moe, RouterConfig(logits=RouterLogits.position), "none can be spared"),
    }
    for name, (moe, router, sentence) in others.items():
        config = dataclasses.replace(given.config, moe=moe, router=router)
        torch.manual_seed(1)
        weights = build(config, given.tokenizer).state_dict()
        save_checkpoint(tmp_path / f"{name}.pt", Checkpoint(config, given.tokenizer, weights))
        code, _, err = cli("prune", tmp_path / f"{name}.pt", tmp_path / "out", "num_experts=3")
        assert code == 2
        assert sentence in err
    assert not (tmp_path / "out").exists()

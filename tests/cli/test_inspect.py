"""The FLOPs that `inspect` prints, and the models that `match` solves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_asr.runs.recognizer import Recognizer

Cli = Callable[..., tuple[int, str, str]]


def flops_of(out: str) -> dict[str, float]:
    """GFLOP per second of audio of each part: the last lines of `inspect`."""
    rows = out.partition("2 per multiply-add):\n")[2].splitlines()
    return {row[:40].strip(): float(row.split()[-2]) for row in rows}


def test_flops_follow_the_options(cli: Cli) -> None:
    words = ("inspect", "model=u2pp_225m", "vocab_size=8404")
    dense = flops_of(cli(*words)[1])
    assert dense["encoder and CTC"] == pytest.approx(2 * 71 / 12, rel=0.01)  # the reference: 71 G multiply-adds in 12 s
    assert dense["encoder and CTC"] == pytest.approx(sum(list(dense.values())[:-3]), abs=0.01)
    assert flops_of(cli(*words, "decode.chunk=16")[1])["attention"] < dense["attention"]
    assert flops_of(cli(*words, "decode.beam=20")[1])["rescoring 20 hypotheses of 48 tokens"] > 4
    mixed = flops_of(cli(*words, "moe.placement=encoder", "moe.num_experts=4", "moe.top_k=2")[1])
    assert mixed["feed-forward"] == pytest.approx(2 * dense["feed-forward"], rel=1e-3)
    assert mixed["router"] > dense["router"] == 0
    small = flops_of(cli("inspect")[1])
    experts = ("moe.num_experts=2", "moe.top_k=1", "router=switch", "moe.expert_widths=[864,0]", "moe.shared_experts=1")
    varied = flops_of(cli("inspect", "moe.placement=encoder", *experts)[1])
    assert varied["feed-forward"] == pytest.approx(2 * small["feed-forward"], abs=2e-3)  # half of 864, and 432
    assert varied["in total"] == pytest.approx(varied["encoder and CTC"] + list(varied.values())[-2], abs=2e-3)


def test_a_matched_model_is_shown_with_its_solved_width(cli: Cli) -> None:
    words = ("moe.placement=both", "moe.top_k=1", "router=switch", "match=active", "match_to=dense")
    code, out, err = cli("inspect", *words)
    assert (code, err) == (0, "")
    assert out.startswith("match=active: moe.expert_width=")
    total = next(line for line in out.splitlines() if line.startswith("total"))
    assert f"{float(total.split()[3]):.3f} M parameters against" in out


def test_the_model_of_a_run(cli: Cli, untrained: Path) -> None:
    code, out, err = cli("inspect", untrained, "decode.chunk=16")
    assert (code, err) == (0, "")
    assert "chunks of 16" in out
    assert f"{len(Recognizer.load(untrained).tokenizer)} tokens" in out
    code, _, err = cli("inspect", untrained, "model=u2pp_225m")
    assert (code, err) == (2, "moe-asr: model=u2pp_225m cannot change the model of a run: leave out one of them.\n")

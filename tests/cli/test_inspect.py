"""The FLOPs that `inspect` prints."""

from collections.abc import Callable

import pytest

Cli = Callable[..., tuple[int, str, str]]


def flops_of(out: str) -> dict[str, float]:
    """GFLOP per second of audio of each part: the last lines of `inspect`."""
    rows = out.partition("2 per multiply-add):\n")[2].splitlines()
    return {row[:40].strip(): float(row.split()[-2]) for row in rows}


def test_flops_follow_the_options(cli: Cli) -> None:
    words = ("inspect", "model=u2pp_225m", "vocab_size=8404")
    dense = flops_of(cli(*words)[1])
    assert dense["encoder and CTC"] == pytest.approx(2 * 71 / 12, rel=0.01)  # the reference: 71 G multiply-adds in 12 s
    assert dense["encoder and CTC"] == pytest.approx(sum(list(dense.values())[:-2]), abs=0.01)
    assert flops_of(cli(*words, "decode.chunk=16")[1])["attention"] < dense["attention"]
    assert flops_of(cli(*words, "decode.beam=20")[1])["rescoring 20 hypotheses of 48 tokens"] > 4
    mixed = flops_of(cli(*words, "moe.placement=encoder", "moe.num_experts=4", "moe.top_k=2")[1])
    assert mixed["feed-forward"] == pytest.approx(2 * dense["feed-forward"], rel=1e-3)
    assert mixed["router"] > dense["router"] == 0

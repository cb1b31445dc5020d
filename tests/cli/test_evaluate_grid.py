"""One command for a study: modes x chunks x left contexts x sets, error rates and latencies, and their figure."""

import json
from collections.abc import Callable
from pathlib import Path

Cli = Callable[..., tuple[int, str, str]]


def test_evaluate_makes_a_grid_of_latencies_and_its_figure(cli: Cli, untrained: Path, tmp_path: Path) -> None:
    grid = ("modes=[ctc_greedy,attention]", "decode.chunks=[8]", "lefts=[2,null]", "sets=[seen]")
    words = ("evaluate", untrained, f"out={tmp_path}/out", *grid, f"figure={tmp_path}/trade-off.svg")
    code, _, err = cli(*words)
    assert (code, err) == (2, "moe-asr: figure= shows latencies: write latency=true too.\n")
    code, _, err = cli(*words[:-1], "latency=true", f"figure={tmp_path}/none/trade-off.svg")
    assert (code, err) == (2, f"moe-asr: {tmp_path}/none is no folder; choose another place with figure=FILE.\n")
    code, out, err = cli(*words, "latency=true")
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    cells = [f"seen_{mode}{context}" for mode in ("ctc_greedy", "attention") for context in ("", "_c8_l2", "_c8_lall")]
    assert list(results["test"]) == cells
    assert results["largest_trained_chunk"] == 25
    assert out.count("words settle") == len(cells)
    assert {result["latency"]["streams"] for result in results["test"].values()} == {8}
    assert "</svg>" in (tmp_path / "trade-off.svg").read_text()
    assert {file.stem for file in (tmp_path / "out" / "hypotheses").iterdir()} == set(cells)


def test_a_left_context_is_no_negative_number(cli: Cli, untrained: Path) -> None:
    code, _, err = cli("evaluate", untrained, "lefts=[-1]")
    assert (code, err) == (2, "moe-asr: lefts must be at least 0, or null for all.\n")

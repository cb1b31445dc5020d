"""`moe-asr benchmark`, in sizes that say nothing about speed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("kind", "option", "key", "head"),
    [
        ("profile", "moe.placement=both", "part", "efficiency"),
        ("profile", "model=omni_tiny", "part", "efficiency"),
        ("layer", "layer.correlation=0.9", "backend", "limit ms"),
    ],
)
def test_a_table_and_the_same_as_json(cli: Cli, tmp_path: Path, kind: str, option: str, key: str, head: str) -> None:
    file = tmp_path / "speed.json"
    code, out, err = cli("benchmark", kind, "quick=true", option, f"out={file}")
    assert (code, err) == (0, "")
    result = json.loads(file.read_text())
    assert (result["kind"], result["clock"], result["config"]["out"]) == (kind, "CPU", None)
    assert result["machine"] in out
    assert {"commit", "versions", "python"} <= set(result)
    assert min(result["peaks"].values()) > 0
    lines = out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if head in line) + 1 :]
    assert len(table) == len(result["rows"]) > 5
    for line, row in zip(table, result["rows"], strict=True):
        assert f" {row[key]} " in f" {line} "
        assert f"{1e3 * row['seconds']['median']:.2f}" in line


def test_models_against_each_other(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "rtf.json"
    models = ["u2pp_225m", "u2pp_moe_1b moe.placement=encoder"]
    options = ["quick=true", f"models={json.dumps(models)}", "modes=[ctc_greedy]", f"out={file}"]
    code, out, err = cli("benchmark", "rtf", *options)
    assert (code, err) == (0, "")
    result = json.loads(file.read_text())
    assert [(row["model"], row["chunk"]) for row in result["rows"]] == [(m, c) for c in (None, 16) for m in models]
    assert {"commit", "versions", "machine", "peaks"} <= set(result)
    lines = out.splitlines()
    sizes, costs, streams = (next(i for i, line in enumerate(lines) if key in line) for key in ("active", "RTF", "p99"))
    assert "choice=own; ratios are to u2pp_225m" in lines[sizes - 1]
    assert (costs - sizes, streams - costs, len(lines) - streams) == (3, 5, 3)
    for line, row in zip(lines[costs + 1 : streams], result["rows"], strict=True):
        assert line.startswith(row["model"])
        assert f" {row['rtf']['median']:.4f} " in line
        assert f" {row['ratio']:.2f} " in line
    assert lines[sizes + 2].split()[2] == "packed"


def test_wrong_input(cli: Cli, tmp_path: Path) -> None:
    cases = {
        (): "kind is missing; see --help.",
        ("speed",): "kind=speed is not known. It is one of profile, layer, rtf.",
        ("rtf", "models=[]"): "models is empty: write models=[u2pp_225m].",
        ("rtf", "chunks=[0]"): "chunks=[0] must be at least 1 frame, or null for whole utterances.",
        ("layer", f"out={tmp_path}/no/x"): f"{tmp_path}/no is no folder; choose another place with out=FILE.",
        ("profile", "nonblank=1"): "nonblank=1.0 is a share of frames: write 0.16.",
        ("layer", "layer.rows=[]"): "layer.rows=[] must be counts of frames, as [1,16].",
        ("layer", "layer.correlation=1"): "layer.correlation=1.0 must be from 0 to below 1.",
    }
    for words, sentence in cases.items():
        assert cli("benchmark", *words) == (2, "", f"moe-asr: {sentence}\n")

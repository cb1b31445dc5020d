"""`moe-asr benchmark`, in sizes that say nothing about speed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe_asr.data.manifest import read_split

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("kind", "option", "key", "head"),
    [
        ("profile", "moe.placement=both", "part", "efficiency"),
        ("profile", "model=omni_tiny", "part", "efficiency"),
        ("layer", "layer.correlation=0.9", "backend", "limit ms"),
        ("decode", "searches.beams=[2,3]", "search", "frames/s"),
        ("data", "augment.gain_db=3", "stage", "hours/s per core"),
    ],
)
def test_a_table_and_the_same_as_json(cli: Cli, tmp_path: Path, kind: str, option: str, key: str, head: str) -> None:
    file = tmp_path / "speed.json"
    code, out, err = cli("benchmark", kind, "quick=true", option, f"out={file}")
    assert (code, err) == (0, "")
    result = json.loads(file.read_text())
    assert (result["kind"], result["config"]["out"]) == (kind, None)
    assert "1 threads: CPU time" in out
    assert result["machine"] in out
    assert {"commit", "versions", "python"} <= set(result)
    assert min(result["peaks"]["1"].values()) > 0
    lines = out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if head in line) + 1 :]
    assert len(table) == len(result["rows"]) >= 5
    for line, row in zip(table, result["rows"], strict=True):
        assert f" {row[key]} " in f" {line} "
        assert f"{1e3 * row['seconds']['median']:.2f}" in line
    if kind == "decode":
        assert [(row["search"], row["beam"]) for row in result["rows"]] == [
            ("ctc_greedy", 1),
            *((f"{name}", beam) for beam in (2, 3) for name in ("ctc_prefix_beam", "attention", "attention_rescoring")),
        ]
        for row in result["rows"]:
            assert row["frames_per_second"] == pytest.approx(49 / row["seconds"]["median"])
            assert 0 < row["tokens"] < 49
    if kind == "data":
        whole = {row["stage"]: row for row in result["rows"]}
        assert whole["together"]["seconds"]["median"] > whole["reading"]["seconds"]["median"]
        for row in whole.values():
            assert row["hours_per_second"] == pytest.approx(result["audio_seconds"] / 3600 / row["seconds"]["median"])


def test_data_of_a_corpus(cli: Cli, digits: Path) -> None:
    code, out, err = cli("benchmark", "data", "quick=true", f"data={digits}", "sets=[dev]")
    assert (code, err) == (0, "")
    seconds = sum(cut.duration for cut in read_split(digits, "dev"))
    assert f"{seconds:.0f} s of audio" in out


def test_models_against_each_other(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "rtf.json"
    models = ["u2pp_225m", "u2pp_moe_1b moe.placement=encoder"]
    figure = tmp_path / "rtf.svg"
    options = ["quick=true", f"models={json.dumps(models)}", "modes=[ctc_greedy]", f"out={file}", f"figure={figure}"]
    code, out, err = cli("benchmark", "rtf", *options)
    assert (code, err) == (0, "")
    result = json.loads(file.read_text())
    assert [(row["model"], row["chunk"]) for row in result["rows"]] == [(m, c) for c in (None, 16) for m in models]
    assert {"commit", "versions", "machine", "peaks"} <= set(result)
    lines = out.splitlines()
    sizes, costs, streams = (next(i for i, line in enumerate(lines) if key in line) for key in ("active", "RTF", "p99"))
    assert "routing=own; ratios are to u2pp_225m" in lines[sizes - 1]
    assert (costs - sizes, streams - costs, len(lines) - streams) == (3, 5, 3)
    for line, row in zip(lines[costs + 1 : streams], result["rows"], strict=True):
        assert line.startswith(row["model"])
        assert f" {row['rtf']['median']:.4f} " in line
        assert f" {row['ratio']:.2f} " in line
    assert lines[sizes + 2].split()[2] == result["rows"][1]["backend"] != "-"
    drawn = figure.read_text()
    assert all(text in drawn for text in (*models, "chunk 16", "full", "real-time factor"))


def test_wrong_input(cli: Cli, tmp_path: Path) -> None:
    cases = {
        (): "kind is missing; write: moe-asr benchmark rtf|profile|layer|decode|data [key=value...].",
        ("speed",): "kind=speed is not known. It is one of profile, layer, rtf, decode, data.",
        ("rtf", "models=[]"): "models is empty: write models=[u2pp_225m].",
        ("rtf", "chunks=[0]"): "chunks=[0] must be at least 1 frame, or null for whole utterances.",
        (
            "layer",
            f"out={tmp_path}/no/x",
        ): f"{tmp_path}/no is no folder that can be written; choose another place with out=FILE.",
        (
            "rtf",
            f"figure={tmp_path}/no/x.svg",
        ): f"{tmp_path}/no is no folder that can be written; choose another place with figure=FILE.",
        ("layer", "figure=x.svg"): "figure=FILE is drawn by `benchmark rtf` only: leave it out.",
        ("rtf", "figure=x.jpeg"): "figure=x.jpeg must end in .svg, .png or .pdf.",
        ("layer", "threads=[2,1]"): "threads=[2, 1] are for `benchmark rtf`: write threads=[2].",
        ("rtf", "streams=[0]"): "streams=[0] must be at least 1 each: write streams=[1].",
        ("layer", "device=cuda"): "device=cuda is for `benchmark rtf`: leave it out.",
        ("rtf", "device=gpu"): "device=gpu is not known; write device=cpu or device=cuda.",
        ("rtf", "routing=replay"): "routing=replay and trace=FOLDER belong together; give both, or neither.",
        ("decode", "searches.beams=[]"): "searches.beams=[] must be at least 1.",
        ("decode", "searches.beams=[2,2]"): "searches.beams=[2, 2] names one twice.",
        ("profile", "nonblank=1"): "nonblank=1.0 is a share of frames: write 0.16.",
        ("layer", "layer.rows=[]"): "layer.rows=[] must be counts of frames, as [1,16].",
        ("layer", "layer.correlation=1"): "layer.correlation=1.0 must be from 0 to below 1.",
    }
    if not torch.cuda.is_available():
        missing = "torch sees no GPU here; write device=cpu, or install torch's build for a GPU."
        cases["rtf", "device=cuda"] = missing
    for words, sentence in cases.items():
        assert cli("benchmark", *words) == (2, "", f"moe-asr: {sentence}\n")
    code, out, error = cli("benchmark", "rtf", "models=[u2pp_225]")
    assert (code, out) == (2, "")  # before the machine is measured
    assert error.startswith("moe-asr: model=u2pp_225 does not exist; did you mean u2pp_225m?")

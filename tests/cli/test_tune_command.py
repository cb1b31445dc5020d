"""`moe-asr tune` writes weights beside the results, and `tuned=true` uses them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from moe_asr.data.manifest import load_samples, read_split

Cli = Callable[..., tuple[int, str, str]]
MODE = "decode.mode=attention_rescoring"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / "results.json").write_text("{}\n")
    return folder


def test_weights_are_tuned_kept_and_used(cli: Cli, run: Path, digits: Path, tmp_path: Path) -> None:
    code, out, err = cli("tune", run, MODE, "sets=[train]", "blank_penalty=[-1,0]")
    assert (code, err) == (0, "")
    tuned = json.loads((run / "tuned" / "attention_rescoring.json").read_text())
    assert (tuned["sets"], tuned["points"]) == (["train"], 11 * 11 * 2)
    assert tuned["result"]["wer"] < tuned["given"]["result"]["wer"]
    assert f"WER {100 * tuned['result']['wer']:.2f} %" in out.splitlines()[1]
    for weight, value in tuned["weights"].items():
        row = next(line for line in out.splitlines() if line.startswith(f"{weight} "))
        assert f" {value:g}: {100 * tuned['result']['wer']:.2f}" in row
    assert (run / "results.json").read_text() == "{}\n"

    results = {}
    for name, words in {"given": [], "tuned": ["tuned=true"]}.items():
        options = (MODE, "sets=[train]", f"out={tmp_path / name}")
        assert cli("evaluate", run, *options, *words)[0] == 0
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert results["tuned"]["test"]["train"]["wer"] == tuned["result"]["wer"]
    assert results["given"]["test"]["train"]["wer"] == tuned["given"]["result"]["wer"]
    assert tuned["weights"].items() <= results["tuned"]["test"]["train"]["decode"].items()
    assert results["tuned"]["tuned"] == {key: tuned[key] for key in ("weights", "data", "sets", "commit")}
    assert results["given"]["tuned"] is None

    soundfile.write(tmp_path / "a.wav", load_samples(read_split(digits, "seen")[0]), 16000, subtype="FLOAT")
    by_hand = [f"decode.{weight}={value}" for weight, value in tuned["weights"].items()]
    said = [cli("transcribe", run, tmp_path / "a.wav", MODE, "format=jsonl", *w)[1] for w in (["tuned=true"], by_hand)]
    assert said[0] == said[1] != cli("transcribe", run, tmp_path / "a.wav", MODE, "format=jsonl")[1]


def test_what_is_not_tuned_or_contradicts_is_said(cli: Cli, run: Path) -> None:
    assert (
        f"run `moe-asr tune {run} decode.mode=attention` first"
        in cli("evaluate", run, "tuned=true", "decode.mode=attention")[2]
    )
    (run / "tuned").mkdir()
    (run / "tuned" / "ctc_greedy.json").write_text('{"weights": {"blank_penalty": 1.0}}')
    err = cli("transcribe", run, "a.wav", "tuned=true", "decode.blank_penalty=2")[2]
    assert "tuned=true contradicts decode.blank_penalty=2.0: leave out one of them" in err
    assert "has the weights of one mode" in cli("evaluate", run, "tuned=true", "modes=[attention]")[2]
    assert "give the run directory" in cli("tune", run / "checkpoints" / "model.pt")[2]
    code, _, err = cli("tune", run, "sets=[seen]")
    assert code == 2
    assert "8 of 8 utterances belong to the run's test sets" in err

"""`moe-asr trace` writes what `evaluate` and `transcribe` replay; each result says who chose the experts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from moe_asr.analysis.trace import load_trace
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.randomness import key_seed
from moe_asr.runs.checkpoint import build, initial_weights, load_checkpoint

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trace(cli: Cli, untrained: Path, tmp_path: Path) -> Path:
    code, out, err = cli(
        "trace", untrained, "sets=[seen]", "decode.chunk=4", "decode.batch=3", f"out={tmp_path / 'trace'}"
    )
    assert (code, err) == (0, "")
    assert out.splitlines() == ["8 utterances, 2 sites", f"trace: {tmp_path / 'trace'}"]
    return tmp_path / "trace"


def test_a_trace_is_replayed_with_the_same_results(
    cli: Cli, untrained: Path, digits: Path, trace: Path, tmp_path: Path
) -> None:
    read = load_trace(trace)
    assert (read.card["sets"], read.card["data"], read.card["routing"]) == (["seen"], str(digits), None)
    assert read.card["decode"]["chunk"] == 4
    said, results = {}, {}
    for name, words in {
        "own": [],
        "replay": ["routing.choose=replay", f"routing.trace={trace}"],
        "random": ["routing.choose=random", "routing.sites=encoder.0.ffn_out"],
    }.items():
        options = ("sets=[seen]", "decode.chunk=4", "decode.batch=3", f"out={tmp_path / name}")
        code, out, err = cli("evaluate", untrained, *options, *words)
        assert (code, err) == (0, "")
        said[name] = (tmp_path / name / "hypotheses" / "seen.jsonl").read_text()
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
        assert (f"experts chosen by routing.choose={name}" in out) == (name != "own")
    assert said["own"] == said["replay"] != said["random"]
    assert results["own"]["test"]["seen"]["experts"] == results["replay"]["test"]["seen"]["experts"]
    assert {name: result["routing"] for name, result in results.items()} == {
        "own": None,
        "replay": {"choose": "replay", "trace": str(trace), "sites": "both"},
        "random": {"choose": "random", "trace": None, "sites": "encoder.0.ffn_out"},
    }
    hypotheses = {row["id"]: row["hypothesis"] for row in map(json.loads, said["own"].splitlines())}
    assert {u["id"]: u["hypothesis"] for u in read.utterances} == hypotheses


def test_a_file_is_known_by_its_name(cli: Cli, untrained: Path, digits: Path, trace: Path, tmp_path: Path) -> None:
    cut = read_split(digits, "seen")[0]
    for name in (cut.id, "other"):
        soundfile.write(tmp_path / f"{name}.wav", load_samples(cut), 16000, subtype="FLOAT")
    replay = ("decode.chunk=4", "routing.choose=replay", f"routing.trace={trace}")
    own = cli("transcribe", untrained, tmp_path / f"{cut.id}.wav", "decode.chunk=4")[1]
    for words in ([], ["stream=true"]):
        code, out, err = cli("transcribe", untrained, tmp_path / f"{cut.id}.wav", *replay, *words)
        assert (code, err, out.splitlines()[-1]) == (0, "", own.splitlines()[-1])
        code, _, err = cli("transcribe", untrained, tmp_path / "other.wav", *replay, *words)
        assert code == 2
        assert "routing.trace has not all frames of what is recognised here" in err
    code, _, err = cli("transcribe", untrained, tmp_path / f"{cut.id}.wav", *replay, "stream=true", "segments=true")
    assert (code, "a trace is replayed over whole recordings: write segments=false" in err) == (2, True)
    drawn = [
        cli("transcribe", untrained, tmp_path / f"{name}.wav", "routing.choose=random")[1] for name in (cut.id, "other")
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "routing.choose=rnadom",
            "routing.choose=rnadom is not known; write random, expert_3, without_3, permuted_1 or replay.",
        ),
        ("routing.choose=expert_-1", "is not known; write random"),
        ("routing.choose=replay", "routing.choose=replay and routing.trace=FOLDER belong together"),
        ("routing.trace=x", "routing.choose=replay and routing.trace=FOLDER belong together"),
        ("shard_frames=0", "shard_frames=0 must be at least 1."),
        ("threads=0", "threads=0 must be at least 1."),
    ],
)
def test_impossible_options_are_refused(cli: Cli, untrained: Path, word: str, sentence: str) -> None:
    code, _, err = cli("trace", untrained, word)
    assert (code, sentence in err) == (2, True)


def test_a_run_is_traced_as_it_was_before_training(cli: Cli, trained_moe: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained_moe)
    began = initial_weights(checkpoint)
    torch.manual_seed(key_seed("init", checkpoint.config.seed))
    drawn = build(checkpoint.config, checkpoint.tokenizer).state_dict()
    for name, value in began.items():
        source = checkpoint.weights if ".cmvn." in name else drawn
        torch.testing.assert_close(value, source[name], rtol=0, atol=0)
    traces = []
    for initial in ("false", "true"):
        folder = tmp_path / initial
        assert cli("trace", trained_moe, "sets=[seen]", f"initial={initial}", f"out={folder}")[0] == 0
        traces.append(load_trace(folder))
    assert [trace.card["initial"] for trace in traces] == [False, True]
    assert not numpy.array_equal(*(trace.sites["encoder.00.ffn_out"].entropy for trace in traces))
    tuned = replace(checkpoint, config=replace(checkpoint.config, init_from="runs/other"))
    with pytest.raises(InputError, match="began with the weights of runs/other: trace that one"):
        initial_weights(tuned)


def test_a_checkpoint_file_has_no_place_for_a_trace(cli: Cli, untrained: Path) -> None:
    code, _, err = cli("trace", untrained / "checkpoints" / "model.pt")
    assert (code, "say with out=FOLDER where the trace goes" in err) == (2, True)

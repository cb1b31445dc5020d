"""`transcribe`, `evaluate` and `inspect` on an untrained model: what good and bad input give."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import soundfile

import moe_asr
from moe_asr.config.decode import DecodeMode
from moe_asr.config.inference import InferencePrecision
from moe_asr.config.score import Unit
from moe_asr.data.manifest import describe, load_samples, read_split
from moe_asr.measure.errors import edit_counts, total
from moe_asr.models.inference import automatic

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def audio(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files: mono, stereo and 8 kHz speech, silence, and three that hold no audio."""
    folder = tmp_path_factory.mktemp("audio")
    speech = load_samples(read_split(digits, "seen")[0])
    soundfile.write(folder / "mono.flac", speech, 16000)
    soundfile.write(folder / "stereo.wav", numpy.stack([speech, speech], 1), 16000)
    soundfile.write(folder / "slow.wav", speech[::2], 8000)
    soundfile.write(folder / "silent.wav", numpy.zeros(16000), 16000)
    soundfile.write(folder / "click.wav", numpy.zeros(100), 16000)
    (folder / "empty.wav").touch()
    (folder / "corrupt.wav").write_bytes(b"RIFF" + bytes(range(200)))
    soundfile.write(folder / "nothing.wav", numpy.zeros(0), 16000)
    return folder


def test_transcribe_prints_the_text(cli: Cli, untrained: Path, audio: Path) -> None:
    code, out, err = cli("transcribe", untrained, audio / "mono.flac")
    text = moe_asr.load(str(untrained)).transcribe(audio / "mono.flac").text
    assert (code, out, err) == (0, f"{text}\n", "")
    assert len(text.split()) > 3


def test_transcribe_goes_on_after_a_bad_file(cli: Cli, untrained: Path, audio: Path) -> None:
    names = [
        "empty.wav",
        "stereo.wav",
        "corrupt.wav",
        "slow.wav",
        "missing.wav",
        "silent.wav",
        "nothing.wav",
        "click.wav",
    ]
    code, out, err = cli("transcribe", untrained, *(audio / name for name in names))
    assert code == 2
    rows = dict(line.split("\t") for line in out.splitlines())
    assert [Path(file).name for file in rows] == ["stereo.wav", "slow.wav", "silent.wav", "click.wav"]
    assert rows[str(audio / "click.wav")] == ""
    assert rows[str(audio / "stereo.wav")]
    notes, failures = err.splitlines()[:2], err.splitlines()[2:]
    assert notes == [
        f"{audio}/stereo.wav: 2 channels averaged to one",
        f"{audio}/slow.wav: resampled from 8000 to 16000 Hz",
    ]
    assert failures[0] == "moe-asr: 4 of 8 files could not be transcribed:"
    assert f"{audio}/empty.wav is not readable audio (it is empty)" in failures[1]
    assert f"{audio}/corrupt.wav is not readable audio" in failures[2]
    assert failures[3].strip() == f"there is no audio file {audio}/missing.wav; check the path."
    assert f"{audio}/nothing.wav holds no samples" in failures[4]
    assert len(failures) == 5


def test_transcribe_as_json_lines(cli: Cli, untrained: Path, audio: Path) -> None:
    code, out, _ = cli("transcribe", untrained, audio / "mono.flac", audio / "click.wav", "format=jsonl")
    speech, click = map(json.loads, out.splitlines())
    assert code == 0
    assert set(speech) == {"audio", "text", "score", "confidence", "tokens"}
    assert speech["audio"] == str(audio / "mono.flac")
    assert " ".join(token for token, *_ in speech["tokens"]) == speech["text"] != ""
    times = [seconds for _, seconds, _ in speech["tokens"]]
    assert all(0 < confidence <= 1 for *_, confidence in speech["tokens"])
    assert 0 < speech["confidence"] < 1
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] < soundfile.info(audio / "mono.flac").duration
    assert speech["score"] < 0
    assert (click["text"], click["tokens"]) == ("", [])


@pytest.mark.parametrize("mode", [mode for mode in DecodeMode if mode is not DecodeMode.ctc_greedy])
@pytest.mark.parametrize("words", [[], ["stream=true", "decode.chunk=16"]], ids=["whole", "stream"])
def test_the_nbest_comes_with_scores_times_and_confidences(
    cli: Cli, untrained: Path, audio: Path, mode: DecodeMode, words: list[str]
) -> None:
    options = (f"decode.mode={mode}", "decode.nbest=4", "format=json", *words)
    (row,) = json.loads(cli("transcribe", untrained, audio / "mono.flac", *options)[1])
    keys = ("text", "score", "confidence", "tokens")
    assert {key: row[key] for key in keys} == row["nbest"][0]
    assert len({hypothesis["text"] for hypothesis in row["nbest"]}) == 4
    scores = [hypothesis["score"] for hypothesis in row["nbest"]]
    assert scores == sorted(scores, reverse=True)
    for hypothesis in row["nbest"]:
        tokens = [token for token, *_ in hypothesis["tokens"] if token != "<blank>"]  # an untrained decoder's idea
        assert " ".join(tokens) == hypothesis["text"].replace("⁇", "<unk>")
        assert all(0 <= confidence <= 1 for *_, confidence in hypothesis["tokens"])
        times = [time for _, time, _ in hypothesis["tokens"]]
        assert times in ([None] * len(times), sorted(time or 0.0 for time in times))


def test_transcribe_in_chunks(cli: Cli, untrained: Path, audio: Path) -> None:
    full = cli("transcribe", untrained, audio / "mono.flac", "format=jsonl")[1]
    chunked = cli("transcribe", untrained, audio / "mono.flac", "format=jsonl", "decode.chunk=1", "decode.left=0")[1]
    assert json.loads(full)["score"] != json.loads(chunked)["score"]


def test_evaluate_writes_results_and_hypotheses(cli: Cli, untrained: Path, digits: Path, tmp_path: Path) -> None:
    code, out, err = cli("evaluate", untrained, f"out={tmp_path}/results", "decode.batch=5")
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert set(results["test"]) == {"seen", "unseen"}
    assert {"commit", "versions", "data"} <= set(results)
    for name, utterances in (("seen", 8), ("unseen", 12)):
        result = results["test"][name]
        assert {"wer", "wer_ci95", "cer", "rtf", "num_utterances", "num_tokens", "experts", "normalizer"} <= set(result)
        lines = (tmp_path / "results" / "hypotheses" / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        cuts = {cut.id: describe(cut) for cut in read_split(digits, name)}
        assert {row["id"]: row["reference"] for row in rows} == {i: cut.text for i, cut in cuts.items()}
        assert {row["id"]: row["speaker"] for row in rows} == {i: cut.speaker for i, cut in cuts.items()}
        counts = total(edit_counts([r["reference"] for r in rows], [r["hypothesis"] for r in rows], Unit.word))
        assert result["wer"] == pytest.approx(counts.rate)
        assert result["num_utterances"] == len(cuts) == utterances
        assert result["num_tokens"] == sum(len(cut.text.split()) for cut in cuts.values())
        assert result["wer_ci95"] is None  # fewer than 5 speakers: a table instead
        assert len(result["per_speaker"]) == len({cut.speaker for cut in cuts.values()})
        assert 0 < result["rtf"] < 5
        assert set(result["experts"]) == {"encoder.00.ffn_in", "encoder.00.ffn_out"}
        assert all(sum(shares) == pytest.approx(1, abs=1e-3) for shares in result["experts"].values())
        assert f"test/{name}" in out
    assert f"results: {tmp_path}/results" in out


def test_evaluate_by_default_writes_into_the_run_and_uses_what_was_asked(cli: Cli, untrained: Path) -> None:
    code, out, _ = cli("evaluate", untrained, "sets=[dev]", "normalizer=basic", "decode.chunk=4")
    assert code == 0
    folder = Path(out.rpartition("results: ")[2].strip())
    assert folder.parent == untrained / "evaluations"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["test"]) == ["dev"]
    assert results["test"]["dev"]["normalizer"]["name"] == "basic"
    assert results["test"]["dev"]["decode"]["chunk"] == 4


def test_evaluate_says_what_is_missing(cli: Cli, untrained: Path, tmp_path: Path) -> None:
    cases = {
        (f"data={tmp_path}/grammar",): "`moe-asr prepare synthetic recipe=grammar out=",
        ("sets=[seeen]",): "has no split 'seeen' (did you mean 'seen'?)",
    }
    for words, sentence in cases.items():
        code, out, err = cli("evaluate", untrained, f"out={tmp_path}/out", *words)
        assert (code, out) == (2, "")
        assert sentence in err
        assert err.count("\n") == 1
    code, _, err = cli("evaluate", untrained / "checkpoints" / "model.pt")
    assert code == 2
    assert "model.pt is a file; say with out=FOLDER where the results go." in err


def test_evaluate_needs_a_folder_it_may_write(cli: Cli, untrained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "sealed").mkdir(mode=0o500)
    places = [tmp_path / "file" / "results"]
    if os.geteuid() != 0:  # nothing is read-only for root
        places.append(tmp_path / "sealed" / "results")
    for place in places:
        code, out, err = cli("evaluate", untrained, f"out={place}")
        assert (code, out) == (2, "")
        assert "The results cannot be written (" in err
        assert "choose a folder with out=FOLDER." in err
        assert err.count("\n") == 1


def test_inspect_counts_parameters_without_a_corpus(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("inspect", "model=u2pp_225m", "vocab_size=8404")
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    assert "225.7" in " ".join(line for line in out.splitlines() if line.startswith("total"))
    assert "0 MoE sites" in out
    out = cli(
        *words, "moe.placement=both", "moe.sharing=per_stack", "moe.num_experts=4", "moe.top_k=1", "router=switch"
    )[1]
    assert "36 MoE sites, 4 experts, top 1" in out
    assert f"computed on this CPU by: {automatic(InferencePrecision.fp32)}\n" in out
    assert {line.split()[-1] for line in out.splitlines() if "router" in line and "." in line} >= {"0", "1", "2"}
    assert list(tmp_path.iterdir()) == []

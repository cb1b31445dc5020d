"""`transcribe` as it hears: partials, raw PCM from the standard input, long files, subtitles."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import soundfile

from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.runs.recognizer import Recognizer
from moe_asr.runs.transcripts import Cue, Segment, Transcript, cues, joined, subtitles

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def file(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 seconds of speech."""
    speech = numpy.concatenate([load_samples(cut) for cut in read_split(digits, "seen")])[:48_000]
    path = tmp_path_factory.mktemp("speech") / "a.wav"
    soundfile.write(path, speech, 16000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def recognizer(untrained: Path) -> Recognizer:
    return Recognizer.load(untrained)


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def raw(file: Path) -> bytes:
    return soundfile.read(file, dtype="int16")[0].tobytes()


def test_a_line_per_change_ends_with_the_text(cli: Cli, untrained: Path, file: Path, recognizer: Recognizer) -> None:
    code, out, err = cli("transcribe", untrained, file, "stream=true", "decode.chunk=8", "decode.left=2")
    lines, text = out.splitlines(), recognizer.transcribe(file, DecodeConfig(chunk=8, left=2)).text
    assert (code, err, lines[-1]) == (0, "", text)
    assert len(lines) > 4
    assert len(set(lines)) == len(lines)
    assert all(text.startswith(line) for line in lines)


def test_partials_as_json_lines(cli: Cli, untrained: Path, file: Path, recognizer: Recognizer) -> None:
    words = ("transcribe", untrained, file, file, "stream=true", "decode.chunk=8", "format=jsonl")
    *partials, last = map(json.loads, cli(*words)[1].splitlines())
    text = recognizer.transcribe(file, DecodeConfig(chunk=8)).text
    assert {row["audio"] for row in partials} == {str(file)}
    assert last["text"] == last["segments"][0]["text"] == text
    changes = [row["partial"] for row in partials if "partial" in row]
    assert len(changes) == len(partials) - 1 > 8  # of two files, the first of which has its own last row
    assert all(text.startswith(partial) for partial in changes)
    assert all(row["stable"] <= len(row["partial"].split()) for row in partials if "partial" in row)


def test_on_a_terminal_the_line_is_written_anew(
    untrained: Path, file: Path, monkeypatch: pytest.MonkeyPatch, recognizer: Recognizer
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys, "argv", ["moe-asr", "transcribe", str(untrained), str(file), "stream=true"])
    sys.argv.append("decode.chunk=8")
    from moe_asr.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    written = screen.getvalue()
    text = recognizer.transcribe(file, DecodeConfig(chunk=8)).text
    assert written.count("\n") == 1
    *partials, final = written.split("\r\x1b[K")[1:]
    assert final == f"{text}\n"
    assert len(partials) > 4
    assert max(map(len, partials)) == 29 < len(text)


@pytest.mark.parametrize("words", [[], ["stream=true", "decode.chunk=8"]])
def test_raw_pcm_is_the_same_audio(
    cli: Cli, untrained: Path, file: Path, monkeypatch: pytest.MonkeyPatch, recognizer: Recognizer, words: list[str]
) -> None:
    stdin(monkeypatch, raw(file))
    code, out, err = cli("transcribe", untrained, "-", *words)
    text = recognizer.transcribe(file, DecodeConfig(chunk=8 if words else None)).text
    assert (code, out.splitlines()[-1], err) == (0, text, "")


def test_raw_pcm_at_another_rate(
    cli: Cli, untrained: Path, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, recognizer: Recognizer
) -> None:
    slow = tmp_path / "slow.wav"
    soundfile.write(slow, soundfile.read(file)[0][::2], 8000, subtype="PCM_16")
    for words, chunk in ([], None), (["stream=true", "decode.chunk=4"], 4):
        stdin(monkeypatch, raw(slow))
        out = cli("transcribe", untrained, "-", "sample_rate=8000", *words)[1]
        assert out.splitlines()[-1] == recognizer.transcribe(slow, DecodeConfig(chunk=chunk)).text


def test_raw_pcm_may_be_nothing_but_not_half_a_sample(
    cli: Cli, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, b"")
    assert cli("transcribe", untrained, "-") == (0, "\n", "")
    stdin(monkeypatch, b"\0" * 4001)
    code, out, err = cli("transcribe", untrained, "-")
    assert (code, out) == (2, "")
    assert "the raw PCM ends within a sample: give 16-bit mono samples" in err


@pytest.mark.parametrize("source", ["file", "-"])
def test_long_audio_is_streamed_and_cut(
    cli: Cli, untrained: Path, file: Path, monkeypatch: pytest.MonkeyPatch, recognizer: Recognizer, source: str
) -> None:
    audio = str(file) if source == "file" else "-"
    stdin(monkeypatch, raw(file))
    code, out, err = cli("transcribe", untrained, audio, "long=2.5", "format=json", "endpoint.longest=1.2")
    assert code == 0
    assert err == f"{audio}: longer than 2.5 s, hence decoded in chunks of 16 frames\n"
    (row,) = json.loads(out)
    # The rules are judged after each 16 frames: the first chunk end beyond 1.2 s is at 1.28 s.
    assert [(s["start"], s["end"]) for s in row["segments"]] == [(0.0, 1.28), (1.28, 2.56), (2.56, 2.92)]
    assert row["text"] == " ".join(s["text"] for s in row["segments"])
    assert len(row["tokens"]) == len(row["text"].split())
    stdin(monkeypatch, raw(file))
    whole = cli("transcribe", untrained, audio, "long=2.5", "segments=false", "decode.chunk=4")
    assert whole[1] == f"{recognizer.transcribe(file, DecodeConfig(chunk=4)).text}\n"


def test_long_audio_is_held_in_pieces(
    cli: Cli, untrained: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recognizer: Recognizer
) -> None:
    from moe_asr.runs import streaming

    monkeypatch.setattr(streaming, "BLOCK_SECONDS", 1)
    stereo = tmp_path / "stereo.wav"
    speech = soundfile.read(file)[0]
    soundfile.write(stereo, numpy.stack([speech, speech], 1), 48_000)
    words = ("transcribe", untrained, stereo, "long=0.5", "segments=false", "decode.chunk=4")
    _, out, err = cli(*words)
    assert out == f"{recognizer.transcribe(stereo, DecodeConfig(chunk=4)).text}\n"
    assert [line.removeprefix(f"{stereo}: ") for line in err.splitlines()] == [
        "2 channels averaged to one",
        "resampled from 48000 to 16000 Hz",
        "longer than 0.5 s, hence decoded in chunks of 4 frames",
    ]


def test_segments_are_told_as_they_end(cli: Cli, untrained: Path, file: Path) -> None:
    words = ("transcribe", untrained, file, "stream=true", "decode.chunk=8", "segments=true", "endpoint.longest=0.64")
    lines = cli(*words)[1].splitlines()
    *told, last = map(json.loads, cli(*words, "format=jsonl")[1].splitlines())
    segments = [{key: row[key] for key in ("start", "end", "text", "confidence")} for row in told if "end" in row]
    assert segments == last["segments"][:-1]
    assert len(segments) == 4
    assert [s["text"] for s in last["segments"]] == [
        line for line in lines if line in {s["text"] for s in segments}
    ] + [lines[-1]]


@pytest.mark.parametrize("style", ["srt", "vtt"])
def test_subtitles_of_a_file(cli: Cli, untrained: Path, file: Path, recognizer: Recognizer, style: str) -> None:
    code, out, err = cli("transcribe", untrained, file, f"format={style}")
    assert (code, err) == (0, "")
    comma = "," if style == "srt" else "."
    clock = rf"00:00:0\d\{comma}\d{{3}}"
    assert out.startswith("1\n00:00:0" if style == "srt" else "WEBVTT\n\n1\n00:00:0")
    assert len(re.findall(f"^{clock} --> {clock}$", out, re.MULTILINE)) == out.count("-->") >= 1
    assert " ".join(re.findall(r"^[a-z ]+$", out, re.MULTILINE)) == recognizer.transcribe(file).text


def said(tokenizer: Tokenizer, symbols: list[str], seconds: list[float]) -> Transcript:
    ids = tuple(tokenizer.symbols.index(symbol) for symbol in symbols)
    return Transcript(tokenizer.decode(ids), Hypothesis(ids, 0.0, ()), tuple(seconds))


def test_subtitles_end_where_a_word_begins() -> None:
    words = Tokenizer(TokenUnit.word, (*SPECIALS, "a", "b"))
    heard = said(words, ["a", "b", "a", "b"], [1.0, 1.5, 2.4, 2.6])
    assert list(cues(heard, words)) == [Cue(1.0, 1.9, "a b"), Cue(2.4, 3.0, "a b")]
    steady = said(words, ["a"] * 30, [0.5 * i for i in range(30)])
    assert [(c.start, c.end) for c in cues(steady, words)] == [(0.0, 6.4), (6.5, 12.9), (13.0, 14.9)]
    assert list(cues(said(words, [], []), words)) == []
    characters = Tokenizer(TokenUnit.char, (*SPECIALS, "▁", "a", "b", "你", "好"))
    heard = said(characters, ["a", "b", "▁", "b", "你", "好"], [0.0, 2.0, 4.0, 6.0, 8.0, 10.0])
    assert [c.text for c in cues(heard, characters)] == ["ab", "b", "你", "好"]
    segments = [Segment(0.0, 2.0, said(words, ["a"], [1.0])), Segment(2.0, 4.0, said(words, ["b"], [2.1]))]
    assert [c.text for c in cues(joined(segments), words)] == ["a", "b"]


def test_segments_join_as_their_script_is_written() -> None:
    tokenizer = Tokenizer(TokenUnit.char, (*SPECIALS, "a", "b", "你", "好"))
    parts = [Segment(float(i), i + 1.0, said(tokenizer, [s], [i + 0.5])) for i, s in enumerate(["你", "好", "a", "b"])]
    whole = joined(parts)
    assert whole.text == "你好 a b"
    assert whole.seconds == (0.5, 1.5, 2.5, 3.5)
    assert whole.hypothesis.tokens == (5, 6, 3, 4)
    assert whole.segments == tuple(parts)


def test_segments_join_with_the_confidence_of_all_their_tokens() -> None:
    tokenizer = Tokenizer(TokenUnit.char, (*SPECIALS, "a", "b"))
    found = [
        Hypothesis((3, 4), -1.0, (2, 5), 0.9, (0.8, 0.7)),
        Hypothesis((4,), -2.0, (9,), 0.4, (0.6,)),
        Hypothesis((3,), -3.0, (), 0.5, (0.3,)),
    ]
    heard = [Transcript(tokenizer.decode(h.tokens), h, tuple(0.04 * f for f in h.frames)) for h in found]
    parts = [Segment(float(i), i + 1.0, transcript) for i, transcript in enumerate(heard)]
    whole = joined(parts[:2])
    assert (whole.hypothesis.tokens, whole.hypothesis.frames) == ((3, 4, 4), (2, 5, 9))
    assert whole.hypothesis.token_confidences == (0.8, 0.7, 0.6)
    assert whole.hypothesis.confidence == pytest.approx((0.9**3 * 0.4**2) ** (1 / 5))
    unaligned = joined(parts)
    assert (unaligned.hypothesis.frames, unaligned.seconds, unaligned.text) == ((), (), "ab b a")


def test_the_clock_of_subtitles_counts_hours() -> None:
    shown = [Cue(0.0, 59.9996, "a"), Cue(3661.25, 7325.0, "b")]
    assert subtitles(shown, web=False) == (
        "1\n00:00:00,000 --> 00:01:00,000\na\n\n2\n01:01:01,250 --> 02:02:05,000\nb\n"
    )
    assert subtitles(shown[1:], web=True) == "WEBVTT\n\n1\n01:01:01.250 --> 02:02:05.000\nb\n"


def test_a_list_of_audio_is_decoded_in_batches(recognizer: Recognizer, file: Path) -> None:
    samples = soundfile.read(file)[0]
    many = recognizer.transcribe([file, samples[:20_000], samples[:100]], DecodeConfig(batch=2))
    alone = [recognizer.transcribe(file), recognizer.transcribe(samples[:20_000])]
    assert [t.text for t in many] == [*(t.text for t in alone), ""]
    assert many[0].text != many[1].text

from pathlib import Path

import pytest

from moe_asr.errors import InputError
from moe_asr.measure.score_files import read_speakers, read_transcripts


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_kaldi_text(tmp_path: Path) -> None:
    path = write(tmp_path, "text", "\ufeffu1 one  two\r\n\nu2\nu3\t1 0 2 3\n")
    assert read_transcripts(path, "reference").texts == {"u1": "one two", "u2": "", "u3": "1 0 2 3"}


@pytest.mark.parametrize("name", ["hyp.ctm", "hyp"])
def test_ctm_words_are_joined_in_order_of_time(tmp_path: Path, name: str) -> None:
    text = "u1 A 0.50 0.20 two\nu2 A 0.00 0.10 x 0.9\nu1 A 0.10 0.20 one 0.8 lex\n"
    assert read_transcripts(write(tmp_path, name, ";; made by hand\n" + text), "hypothesis").texts == {
        "u1": "one two",
        "u2": "x",
    }


def test_jsonl_prefers_the_text_of_its_role(tmp_path: Path) -> None:
    lines = (
        '{"id": "a", "hypothesis": "x", "reference": "y", "speaker": "s", "sources": ["r1", "r2"]}\n'
        '{"id": "b", "text": "z"}\n'
    )
    hypotheses = read_transcripts(write(tmp_path, "a.jsonl", lines), "hypothesis")
    references = read_transcripts(write(tmp_path, "a", lines), "reference")
    assert hypotheses.texts == {"a": "x", "b": "z"}
    assert references.texts == {"a": "y", "b": "z"}
    assert references.speakers == {"a": "s"}
    assert references.sources == {"a": ("r1", "r2")}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("text", "a x\nb\na y\n", "line 3: the utterance a is there twice"),
        ("text", " \n", "is empty"),
        ("x.ctm", "a 1 0.0 0.1 w\na 1 zero 0.1 w\n", "line 2: 'a 1 zero 0.1 w' is not a CTM line"),
        ("x.ctm", "a 1 0.0\n", "line 1: .* is not a CTM line"),
        ("x.ctm", "a 1 0.0 0.1 w\na 2 0.0 0.1 w\n", "line 2: a has channels 1 and 2"),
        ("x.jsonl", '{"id": "a", "text": "x"}\n{"id": "a"', "line 2 is not JSON"),
        ("x.jsonl", '["a", "b"]\n', 'line 1 needs the strings "id" and "reference"'),
        ("x.jsonl", '{"id": 7, "text": "x"}\n', 'line 1 needs the strings "id"'),
        ("x.jsonl", '{"id": "a", "hypothesis": "x"}\n', '"reference"'),
        ("x.jsonl", '{"id": "a", "text": "x"}\n{"id": "a", "text": "x"}\n', "line 2: the utterance a is there twice"),
        ("x.jsonl", '{"id": "a", "text": "x", "speaker": 3}\n', '"speaker" must be a string'),
        ("x.jsonl", '{"id": "a", "text": "x", "sources": "r"}\n', '"sources" must be a list'),
    ],
)
def test_malformed_files_are_refused_by_line(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_transcripts(write(tmp_path, name, text), "reference")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_transcripts(tmp_path / "nothing", "reference")
    (tmp_path / "latin").write_bytes("u1 caf\u00e9".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        read_transcripts(tmp_path / "latin", "reference")


def test_speakers(tmp_path: Path) -> None:
    assert read_speakers(write(tmp_path, "utt2spk", "u1 007\nu2 s\n")) == {"u1": "007", "u2": "s"}
    with pytest.raises(InputError, match="line 1: 'u1' must be"):
        read_speakers(write(tmp_path, "bad", "u1\n"))
    with pytest.raises(InputError, match="line 2: u1 is there twice"):
        read_speakers(write(tmp_path, "twice", "u1 a\nu1 b\n"))

"""`moe-asr align`: texts beside files become CTM that `score` reads, or JSONL."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from moe_asr.data.manifest import load_samples, read_split
from moe_asr.measure.score_files import read_transcripts

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def files(digits: Path, tmp_path: Path) -> list[Path]:
    """Two files with their texts beside them."""
    made = []
    for cut, ending in zip(read_split(digits, "seen")[:2], (".txt", ".lab"), strict=True):
        made.append(tmp_path / f"{cut.id}.wav")
        soundfile.write(made[-1], load_samples(cut), 16000)
        made[-1].with_suffix(ending).write_text(cut.supervisions[0].text.replace(" ", "\n") + "\n")
    return made


def test_a_ctm_says_what_was_said_when(cli: Cli, trained: Path, files: list[Path], tmp_path: Path) -> None:
    code, out, err = cli("align", trained, *files)
    assert (code, err) == (0, "")
    (tmp_path / "words.ctm").write_text(out)
    texts = {f.stem: " ".join(f.read_text().split()) for f in tmp_path.iterdir() if f.suffix in (".txt", ".lab")}
    assert read_transcripts(tmp_path / "words.ctm", "hypothesis").texts == texts
    seconds = {file.stem: soundfile.info(file).duration for file in files}
    for name, channel, start, duration, _, confidence in map(str.split, out.splitlines()):
        assert channel == "1"
        assert 0 <= float(start) < float(start) + float(duration) < seconds[name]
        assert 0 < float(confidence) <= 1


def test_a_text_of_ones_own_as_json(cli: Cli, trained: Path, files: list[Path]) -> None:
    code, out, _ = cli("align", trained, files[0], "text=one two", "format=jsonl")
    row = json.loads(out)
    assert (code, row["audio"], row["text"]) == (0, str(files[0]), "one two")
    assert [word for word, *_ in row["words"]] == [token for token, *_ in row["tokens"]] == ["one", "two"]
    assert all(start < end for _, start, end, _ in row["words"])
    assert row["score"] < 0


def test_what_cannot_be_aligned_is_named_and_the_rest_is_done(
    cli: Cli, trained: Path, files: list[Path], tmp_path: Path
) -> None:
    files[0].with_suffix(".txt").unlink()
    code, out, err = cli("align", trained, *files)
    assert code == 2
    assert {line.split()[0] for line in out.splitlines()} == {files[1].stem}
    assert f"1 of 2 files could not be aligned:\n  {files[0]}: there is no {files[0].stem}.txt beside it" in err
    files[0].with_suffix(".lab").write_bytes(b"\xff\xfe")
    assert "is no UTF-8 text" in cli("align", trained, files[0])[2]
    (tmp_path / "other").mkdir()
    twin = files[0].rename(tmp_path / "other" / files[1].name)
    assert "2 files are called" in cli("align", trained, twin, files[1])[2]
    assert "text=... is said in one file" in cli("align", trained, *files, "text=one")[2]
    assert "Which audio?" in cli("align", trained)[2]

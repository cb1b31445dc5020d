import json
from pathlib import Path

import pytest

from moe_asr.cli.score import run
from moe_asr.config.score import ScoreConfig, Unit
from moe_asr.errors import InputError


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Seven utterances of seven speakers; a third of the even ones' words are wrong."""
    texts = {f"u{i}": "one two three" for i in range(7)}
    hypotheses = {i: t.replace("two", "too") if int(i[1]) % 2 == 0 else t for i, t in texts.items()}
    (tmp_path / "hyp").write_text("".join(f"{i} {t}\n" for i, t in hypotheses.items()))
    items = [{"id": i, "text": t, "speaker": f"s{i}"} for i, t in texts.items()]
    (tmp_path / "ref.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(tmp_path / "hyp"), str(tmp_path / "ref.jsonl")


def test_the_table_and_the_json_agree(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(ScoreConfig(*files, json=str(tmp_path / "score.json"), alignments=True))
    result = json.loads((tmp_path / "score.json").read_text())
    printed = capsys.readouterr().out
    assert result["wer"] == pytest.approx(4 / 21)
    assert result["num_speakers"] == 7
    assert "WER            19.05 %" in printed
    assert "S / D / I      4 / 0 / 0" in printed
    assert "-".join(f"{100 * bound:.2f}" for bound in result["wer_ci95"]) in printed
    assert printed.count("HYP: one too three") == 4


def test_characters_and_speakers_from_utt2spk(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "utt2spk").write_text("".join(f"u{i} {'ab'[i % 2]}\n" for i in range(7)))
    run(ScoreConfig(*files, unit=Unit.char, utt2spk=str(tmp_path / "utt2spk")))
    printed = capsys.readouterr().out
    assert "CER            4.40 %" in printed  # 4 of 91
    assert "fewer than 5 speakers" in printed
    assert "a            7.69 % of 52 tokens" in printed


def test_different_utterances_are_refused_unless_partial(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_text("u1 one two three\nu9 nine\n")
    with pytest.raises(InputError, match=r"6 without a hypothesis \(e.g. u0\) and 1 without a reference \(e.g. u9\)"):
        run(ScoreConfig(*files))
    run(ScoreConfig(*files, partial=True))
    assert "1 (7 references, 2 hypotheses)" in capsys.readouterr().out


def test_both_files_are_needed(files: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="score HYPOTHESES REFERENCES"):
        run(ScoreConfig(files[0]))
    with pytest.raises(InputError, match="did you mean basic"):
        run(ScoreConfig(*files, normalizer="basik"))


def test_pronunciations_are_scored_instead_of_spelling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("espeakng_loader")
    (tmp_path / "ref").write_text("a the knight\nb two cats\n")
    (tmp_path / "hyp").write_text("a the night\nb two bats\n")
    run(ScoreConfig(str(tmp_path / "hyp"), str(tmp_path / "ref"), unit=Unit.phone, phones="en-us"))
    shown = capsys.readouterr().out
    assert "1 / 0 / 0" in shown, "knight sounds like night; cats and bats differ in one phone"
    with pytest.raises(InputError, match="unit=phone"):
        run(ScoreConfig(str(tmp_path / "hyp"), str(tmp_path / "ref"), phones="en-us"))

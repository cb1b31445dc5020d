"""`moe-asr explore` writes a page of a recording, or of a part of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from moe_asr.data.manifest import load_samples, read_split

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def audio(digits: Path, tmp_path: Path) -> Path:
    file = tmp_path / "heard.wav"
    soundfile.write(file, load_samples(read_split(str(digits), "seen")[0], 16000), 16000)
    return file


def test_the_page_goes_into_the_run_and_says_what_it_holds(cli: Cli, untrained: Path, audio: Path) -> None:
    words = ("explore", untrained, audio, "start=0.2", "seconds=1", "decode.chunk=4", "routing.choose=expert_1")
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    page = untrained / "explorer" / "heard.html"
    assert f"page: {page} (0.1 MB, audio included)" in out
    text = page.read_text(encoding="utf8")
    page.unlink()
    assert "heard.wav, heard by" in text
    for said in ("ctc_greedy, chunks of 4 frames", "holds 0.2 to 1.2 s of 2.061 s", "by routing.choose=expert_1"):
        assert said in text


def test_mistakes_are_named(cli: Cli, untrained: Path, audio: Path) -> None:
    assert cli("explore", untrained / "checkpoints" / "model.pt", audio)[::2] == (
        2,
        f"moe-asr: {untrained}/checkpoints/model.pt is a file; say with out=FILE.html where the page goes.\n",
    )
    code, _, err = cli("explore", untrained, audio, "start=9")
    assert (code, "lasts 2.061 s" in err) == (2, True)
    assert cli("explore", untrained, audio.with_name("none.wav"))[0] == 2

"""lhotse's recipes through one door: their parts become splits, what cannot be used is listed, mistakes are named."""

import json
from pathlib import Path

import numpy
import pytest
import soundfile
from lhotse import CutSet

from moe_asr.config.prepare import Corpus, LhotseConfig, PrepareConfig
from moe_asr.data.manifest import describe, load_samples, read_card, read_split
from moe_asr.data.prepare import prepare
from moe_asr.data.prepare_lhotse import READ_ELSEWHERE, recipe_of
from moe_asr.errors import InputError

STUDY = ("librispeech", "ami", "chime6", "tedlium", "voxpopuli", "commonvoice", "fleurs", "switchboard")
TALK = numpy.sin(numpy.arange(4 * 16000) / 9) * numpy.arange(4 * 16000) / 64000 / 2


def prepared(source: Path, out: Path, name: str = "tedlium", **options: object) -> Path:
    chosen = LhotseConfig(name, dict(options))
    return prepare(PrepareConfig(Corpus.lhotse, str(source), str(out), workers=1, lhotse=chosen)).folder


@pytest.fixture
def tedlium(tmp_path: Path) -> Path:
    """The layout of TED-LIUM 3 with one talk in train and one in test."""
    for part, talk in (("train", "AnnSmith_2001"), ("test", "BobJones_2002")):
        folder = tmp_path / "TEDLIUM_release-3" / "legacy" / part
        for kind in ("sph", "stm"):
            (folder / kind).mkdir(parents=True)
        soundfile.write(folder / "sph" / f"{talk}.sph", TALK, 16000, format="NIST", subtype="PCM_16")
        lines = ("0.5 1.75 <o,f0,male> so  this is", "2.0 3.5 <o,f0,male> the point", "3.5 4.0 <o,f0,male> ")
        stm = [f"{talk} 1 {talk} {line}\n" for line in lines]
        (folder / "stm" / f"{talk}.stm").write_text("".join(stm))
    return tmp_path / "TEDLIUM_release-3"


def test_parts_become_splits_of_their_segments(tedlium: Path, tmp_path: Path) -> None:
    folder = prepared(tedlium, tmp_path / "out", dataset_parts=["train", "test"])
    assert {name: size.utterances for name, size in read_card(folder).splits.items()} == {"train": 2, "test": 2}
    first, second = read_split(folder, "train")
    assert (describe(first).text, describe(first).speaker) == ("so this is", "AnnSmith_2001")
    assert (first.duration, second.duration) == (1.25, 1.5)
    assert numpy.allclose(load_samples(second), TALK[32000:56000], atol=1e-4)
    problems = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
    assert [problem["reason"] for problem in problems] == ["empty text"] * 2
    assert not list(folder.rglob("*.sph"))


def test_published_cuts_are_read_with_paths_from_their_folder(tedlium: Path, tmp_path: Path) -> None:
    cuts = read_split(prepared(tedlium, tmp_path / "out", dataset_parts="train"), "train")
    here = tmp_path / "published"
    (here / "audio").mkdir(parents=True)
    soundfile.write(here / "audio" / "talk.flac", TALK, 16000)
    for cut in cuts:
        cut.recording.sources[0].source = "audio/talk.flac"
    CutSet.from_cuts(cuts).to_file(here / "libriheavy_cuts_small.jsonl.gz")
    folder = prepared(here, tmp_path / "again", name="cuts")
    again = read_split(folder, "small")
    assert [describe(cut).text for cut in again] == ["so this is", "the point"]
    assert numpy.allclose(load_samples(again[1]), TALK[32000:56000], atol=1e-4)
    (here / "audio" / "talk.flac").unlink()
    with pytest.raises(InputError, match=r"no usable utterance.*there is no file"):
        prepared(here, tmp_path / "lost", name="cuts")


@pytest.mark.parametrize("name", STUDY)
def test_the_recipes_of_the_study_exist(name: str) -> None:
    assert recipe_of(name).__name__ == f"prepare_{name}"


def test_mistakes_are_named(tedlium: Path, tmp_path: Path) -> None:
    for name, remedy in READ_ELSEWHERE.items():
        with pytest.raises(InputError, match=f"no recipe named '{name}': {remedy}"):
            prepared(tedlium, tmp_path / "out", name=name)
    with pytest.raises(InputError, match="no recipe named 'tedlum': see lhotse"):
        prepared(tedlium, tmp_path / "out", name="tedlum")
    with pytest.raises(InputError, match="prepare_tedlium has no option part; it has output_dir, dataset_parts"):
        prepared(tedlium, tmp_path / "out", part="train")
    with pytest.raises(InputError, match="prepare_tedlium cannot read"):
        prepared(tedlium, tmp_path / "out")  # there is no dev
    with pytest.raises(InputError, match="lhotse finds no part of cuts"):
        prepared(tedlium, tmp_path / "out", name="cuts")
    assert not (tmp_path / "out").exists()

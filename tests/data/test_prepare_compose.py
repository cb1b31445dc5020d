"""Long recordings are their utterances, each once, with quiet pauses between, words and phones where they are said."""

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy
import pytest

from moe_asr.config.prepare import ComposeConfig, Corpus, PrepareConfig
from moe_asr.data.manifest import (
    Card,
    describe,
    load_samples,
    read_card,
    read_split,
    word_ends,
    write_card,
    write_split,
)
from moe_asr.data.prepare import prepare
from moe_asr.errors import InputError

OPTIONS = ComposeConfig(seconds=[4.0, 9.0], pause=[0.1, 0.3])


def composed(source: Path, out: Path, options: ComposeConfig = OPTIONS, seed: int = 1) -> Path:
    return prepare(PrepareConfig(Corpus.compose, str(source), str(out), compose=options, seed=seed)).folder


@pytest.fixture(scope="module")
def long(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return composed(digits, tmp_path_factory.mktemp("composed") / "long")


def test_every_utterance_is_in_one_recording_of_its_speaker_or_a_problem(digits: Path, long: Path) -> None:
    assert read_card(long).licence == read_card(digits).licence
    assert set(read_card(digits).notes) <= set(read_card(long).notes)
    left_out = [line for line in (long / "problems.jsonl").read_text().splitlines() if "makes no recording" in line]
    for split in read_card(long).splits:
        short = {cut.id: describe(cut) for cut in read_split(digits, split)}
        facts = [describe(cut) for cut in read_split(long, split)]
        used = Counter(source for fact in facts for source in fact.sources)
        assert set(used.values()) == {1}
        lost = {name for name in short if any(f'"{name}"' in line for line in left_out)}
        assert set(used) | lost == set(short)
        assert not set(used) & lost
        for fact in facts:
            assert 4.0 <= fact.seconds <= 9.0
            assert {short[source].speaker for source in fact.sources} == {fact.speaker}
            assert fact.text == " ".join(short[source].text for source in fact.sources)
            assert fact.phones == " ".join(short[source].phones or "" for source in fact.sources)


def test_the_audio_and_its_times_are_those_of_the_utterances(digits: Path, long: Path) -> None:
    short = {cut.id: cut for cut in read_split(digits, "train")}
    pauses = []
    for cut in read_split(long, "train"):
        samples, ends, position = load_samples(cut), word_ends(cut), 0
        phones = iter(cut.supervisions[0].alignment["phone"])
        assert ends is not None
        expected = []
        for name in describe(cut).sources:
            own = load_samples(short[name])
            start = next(
                i for i in range(position, len(samples) - len(own) + 1) if abs(samples[i] - own[0]) < 1e-4
                and numpy.abs(samples[i : i + len(own)] - own).max() < 1e-4
            )  # fmt: skip
            if position:
                pauses.append(samples[position:start])
            position = start + len(own)
            expected += [(word, end and end + start / 16000) for word, end in word_ends(short[name]) or ()]
            for item in short[name].supervisions[0].alignment["phone"]:
                assert next(phones).start == pytest.approx(item.start + start / 16000, abs=1e-4)
        assert [word for word, _ in ends] == [word for word, _ in expected] == describe(cut).text.split()
        assert [end for _, end in ends] == pytest.approx([end for _, end in expected], abs=1e-4)
        assert position == len(samples)
        assert next(phones, None) is None
    assert min(map(len, pauses)) / 16000 >= 0.099
    assert max(map(len, pauses)) / 16000 <= 0.301
    assert all(1e-4 < pause.std() < 2e-3 for pause in pauses)  # the floor of these recordings: -75 to -60 dB


def test_draws_are_keyed_and_limits_hold(digits: Path, long: Path, tmp_path: Path) -> None:
    again, other = composed(digits, tmp_path / "again"), composed(digits, tmp_path / "other", seed=2)
    audio = [sorted((folder / "audio" / "train").iterdir()) for folder in (long, again, other)]
    content = [b"".join(file.read_bytes() for file in files) for files in audio]
    assert content[0] == content[1] != content[2]
    few = ComposeConfig(seconds=[4.0, 9.0], pause=[0.1, 0.3], splits=["train"], recordings=6)
    cuts = read_split(composed(digits, tmp_path / "few", few), "train")
    assert list(read_card(tmp_path / "few").splits) == ["train"]
    assert Counter(describe(cut).speaker for cut in cuts) == {"v000": 2, "v001": 2, "v002": 1, "v003": 1}
    assert {cut.id for cut in cuts} < {cut.id for cut in read_split(long, "train")}
    lengths = defaultdict(list)
    for cut in read_split(long, "train"):
        lengths[describe(cut).speaker].append(cut.duration)
    assert all(abs(a - b) > 1e-3 for own in lengths.values() for a, b in pairwise(own))


def test_words_without_times_and_speakers_without_names(digits: Path, tmp_path: Path) -> None:
    cuts = read_split(digits, "seen")
    for i, cut in enumerate(cuts):
        supervision = cut.supervisions[0]
        supervision.speaker, supervision.alignment = None, supervision.alignment if i else None
    size = write_split(tmp_path / "plain", "a/test", cuts)
    write_card(tmp_path / "plain", Card("plain", "somewhere", {"a/test": size}))
    everything = ComposeConfig(seconds=[1.0, 60.0])
    long = read_split(composed(tmp_path / "plain", tmp_path / "joined", everything), "a/test")
    with_first = next(cut for cut in long if cuts[0].id in describe(cut).sources)
    assert with_first.id.startswith("a-test-nobody-")
    assert word_ends(with_first) is None
    assert {describe(cut).speaker for cut in long} == {None}


def test_what_cannot_be_joined_is_said(digits: Path, tmp_path: Path) -> None:
    for options in ({"seconds": [3.0]}, {"seconds": [5.0, 4.0]}, {"pause": [-1.0, 0.0]}, {"recordings": 0}):
        with pytest.raises(InputError, match=r"compose\."):
            ComposeConfig(**options)
    with pytest.raises(InputError, match="has no split 'tarin'"):
        composed(digits, tmp_path / "out", ComposeConfig(splits=["tarin"]))
    with pytest.raises(InputError, match="has no usable utterance"):
        composed(digits, tmp_path / "out", ComposeConfig(seconds=[500.0, 600.0]))
    with pytest.raises(InputError, match="holds no prepared corpus"):
        composed(tmp_path, tmp_path / "out")

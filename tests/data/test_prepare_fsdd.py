from collections import Counter
from pathlib import Path

import numpy
import pytest
import soundfile

from moe_asr.config.prepare import Corpus, FsddConfig, PrepareConfig
from moe_asr.data.manifest import describe, load_samples, read_card, read_split
from moe_asr.data.prepare import prepare
from moe_asr.data.synthetic.recipes import DIGITS as WORDS
from moe_asr.errors import InputError

DIGITS = Path(__file__).parents[2] / "../shared/data/fsdd"
SPEAKERS = ("ann", "bob", "cat", "dan")
OPTIONS = FsddConfig(train_strings=40, dev_strings=10, test_strings=20, min_digits=2, max_digits=5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdd")
    (folder / "recordings").mkdir()
    rng = numpy.random.default_rng(0)
    for speaker in SPEAKERS:
        for digit in range(10):
            for index in range(2):
                samples = rng.normal(0, 0.1, rng.integers(800, 1600))
                soundfile.write(folder / "recordings" / f"{digit}_{speaker}_{index}.wav", samples, 8000)
    return folder


@pytest.fixture(scope="module")
def corpus(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "fsdd"
    prepare(PrepareConfig(Corpus.fsdd, str(source), out=str(folder), fsdd=OPTIONS))
    return folder


def speakers(corpus, split):
    return {describe(cut).speaker for cut in read_split(corpus, split)}


def test_folds_leave_one_speaker_out(corpus):
    assert len(read_card(corpus).splits) == 4 * 6
    for held_out, dev in zip(SPEAKERS, [*SPEAKERS[1:], SPEAKERS[0]], strict=True):
        for kind in ("", "_isolated"):
            assert speakers(corpus, f"{held_out}/test{kind}") == {held_out}
            assert speakers(corpus, f"{held_out}/dev{kind}") == {dev}
            assert speakers(corpus, f"{held_out}/train{kind}") == set(SPEAKERS) - {held_out, dev}


def test_isolated_digits_are_the_recordings(corpus, source):
    cuts = read_split(corpus, "cat/test_isolated")
    assert [cut.id for cut in cuts] == sorted(f"{digit}_cat_{index}" for digit in range(10) for index in range(2))
    samples = soundfile.read(source / "recordings/3_cat_1.wav", dtype="float32")[0]
    cut = next(cut for cut in cuts if cut.id == "3_cat_1")
    assert describe(cut).text == "three"
    assert numpy.array_equal(load_samples(cut, 8000), samples)


def test_a_string_is_its_recordings_with_quiet_pauses(corpus, source):
    cuts = read_split(corpus, "ann/test")
    assert len({cut.id for cut in cuts}) == len(cuts) == 20
    for cut in cuts:
        fact, samples = describe(cut), load_samples(cut, 8000)
        assert fact.text == " ".join(WORDS[int(name[0])] for name in fact.sources)
        assert 2 <= len(fact.sources) <= 5
        assert len(samples) == round(fact.seconds * 8000)
        end = 0
        for name, track in zip(fact.sources, cut.tracks, strict=False):
            start = round(track.offset * 8000)
            original = soundfile.read(source / f"recordings/{name}.wav", dtype="float32")[0]
            # Only the room's noise, 70 dB below full scale, lies over the recording and in the pauses.
            assert numpy.abs(samples[start : start + len(original)] - original).max() < 0.002
            if end:
                pause = samples[end:start]
                assert 0.02 <= len(pause) / 8000 <= 0.25
                assert 1e-4 < pause.std() < 1e-3
            end = start + len(original)
        assert end == len(samples)


def test_draws_are_keyed_and_spread(corpus, source, tmp_path):
    again = prepare(PrepareConfig(Corpus.fsdd, str(source), out=str(tmp_path / "again"), fsdd=OPTIONS)).folder
    other = prepare(PrepareConfig(Corpus.fsdd, str(source), out=str(tmp_path / "other"), fsdd=OPTIONS, seed=2)).folder
    content = [(folder / "bob/train.jsonl.gz").read_bytes() for folder in (corpus, again, other)]
    assert content[0] == content[1] != content[2]
    facts = [describe(cut) for cut in read_split(corpus, "bob/train")]
    assert Counter(fact.speaker for fact in facts) == {"ann": 20, "dan": 20}
    assert {len(fact.sources) for fact in facts} == {2, 3, 4, 5}
    assert len({name for fact in facts for name in fact.sources}) > 35  # of 40; about 140 draws
    fewer = FsddConfig(train_strings=7, dev_strings=1, test_strings=1, min_digits=2, max_digits=5)
    prepare(PrepareConfig(Corpus.fsdd, str(source), out=str(tmp_path / "fewer"), fsdd=fewer))
    prefix = [describe(cut).sources for cut in read_split(tmp_path / "fewer", "bob/train")]
    assert prefix == [fact.sources for fact in facts[:7]]


def test_bad_recordings_are_left_out_of_the_strings(source, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for path in (source / "recordings").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "9_dan_1.wav").unlink()
    (folder / "9_dan_1.wav").write_bytes(b"RIFF")
    (folder / "readme_not_audio.txt").touch()
    summary = prepare(PrepareConfig(Corpus.fsdd, str(folder), out=str(tmp_path / "out"), fsdd=OPTIONS))
    assert dict(summary.card.left_out) == {"unreadable audio": 1}
    used = {s for cut in read_split(tmp_path / "out", "dan/test") for s in describe(cut).sources}
    assert "9_dan_1" not in used
    assert used


def test_too_few_speakers_and_mixed_rates_are_refused(source, tmp_path):
    for path in (source / "recordings").glob("*_[ab]*"):
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match="files of 2 speakers; 3 are needed"):
        prepare(PrepareConfig(Corpus.fsdd, str(tmp_path), out=str(tmp_path / "out")))
    soundfile.write(tmp_path / "0_zoe_0.wav", numpy.full(100, 0.1), 16000)
    with pytest.raises(InputError, match="differ in sampling rate"):
        prepare(PrepareConfig(Corpus.fsdd, str(tmp_path), out=str(tmp_path / "out")))


def test_contradictory_options_are_refused():
    for options in ({"min_digits": 5, "max_digits": 4}, {"min_gap": 0.5}, {"dev_strings": 0}):
        with pytest.raises(InputError, match=r"fsdd\."):
            FsddConfig(**options)


@pytest.mark.skipif(not DIGITS.is_dir(), reason=f"no corpus at {DIGITS}")
def test_real_digits(tmp_path):
    options = FsddConfig(train_strings=30, dev_strings=10, test_strings=10)
    summary = prepare(
        PrepareConfig(Corpus.fsdd, str(DIGITS), out=str(tmp_path / "out"), decode_check=False, fsdd=options)
    )
    assert not summary.card.left_out
    assert summary.card.splits["theo/train_isolated"].utterances == 1500
    assert speakers(tmp_path / "out", "yweweler/dev") == {"george"}
    cut = read_split(tmp_path / "out", "theo/test")[0]
    assert load_samples(cut).shape == (round(cut.duration * 16000),)

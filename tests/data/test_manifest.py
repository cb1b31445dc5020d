import json
import shutil

import numpy
import pytest
import soundfile
from lhotse import AudioSource, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.cut import MixedCut, MixTrack

from moe_asr.data.manifest import (
    Card,
    Problem,
    SplitSize,
    building,
    config_hash,
    describe,
    load_samples,
    read_card,
    read_split,
    write_card,
    write_problems,
    write_split,
)
from moe_asr.errors import InputError
from moe_asr.features.audio import resample

RNG = numpy.random.default_rng(0)
NOISE = RNG.normal(0, 0.1, (2, 1600)).astype("float32")  # 0.2 s at 8 kHz, two channels


def recording(folder, name, samples, path=None):
    """samples (C, S) at 8 kHz; `path` is what the manifest will say."""
    soundfile.write(folder / f"{name}.wav", samples.T, 8000, subtype="FLOAT")
    source = AudioSource("file", list(range(len(samples))), path or str(folder / f"{name}.wav"))
    return Recording(name, [source], 8000, samples.shape[1], samples.shape[1] / 8000)


def cut(recording, text="hello", start=0.0, seconds=None, custom=None):
    seconds = recording.duration - start if seconds is None else seconds
    segment = SupervisionSegment(recording.id, recording.id, 0.0, seconds, 0, text, "en", "ann", "f", custom=custom)
    return MonoCut(recording.id, start, seconds, 0, [segment], recording=recording)


def corpus(folder, **splits):
    folder.mkdir(exist_ok=True)
    sizes = {name: write_split(folder, name, cuts) for name, cuts in splits.items()}
    write_card(folder, Card("test", "somewhere", sizes, {"seed": 1}, config_hash({"seed": 1}), notes=("a note",)))
    return folder


def test_a_split_comes_back_as_it_was_written(tmp_path):
    cuts = [cut(recording(tmp_path, f"r{i}", NOISE[:1]), text=f"text {i}") for i in range(3)]
    folder = corpus(tmp_path / "corpus", train=iter(cuts), dev=cuts[:1])
    assert read_split(folder, "train") == cuts
    card = read_card(folder)
    assert card.splits == {"train": SplitSize(3, round(0.6 / 3600, 6), 1), "dev": SplitSize(1, 5.6e-05, 1)}
    assert (card.name, card.config, card.notes) == ("test", {"seed": 1}, ("a note",))


def test_equal_cuts_give_equal_bytes(tmp_path):
    cuts = [cut(recording(tmp_path, "r", NOISE[:1]))]
    first = corpus(tmp_path / "a", train=cuts) / "train.jsonl.gz"
    second = corpus(tmp_path / "b", train=cuts) / "train.jsonl.gz"
    assert first.read_bytes() == second.read_bytes()


def test_a_corpus_can_be_moved(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    inside = cut(recording(tmp_path / "old", "inside", NOISE[:1], path="inside.wav"))
    outside = cut(recording(tmp_path, "outside", NOISE[1:]))
    mixed = MixedCut("mixed", [MixTrack(inside), MixTrack(outside, offset=0.2)])
    corpus(tmp_path / "old", **{"fold/train": [inside, outside, mixed]})
    shutil.move(tmp_path / "old", tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    cuts = read_split("new", "fold/train")
    monkeypatch.chdir("/")  # the paths that were read do not depend on where a worker runs
    for got, expected in zip(cuts, [NOISE[0], NOISE[1], NOISE.reshape(-1)], strict=True):
        assert numpy.array_equal(load_samples(got, 8000), expected)


def test_a_missing_corpus_names_its_command_and_a_missing_split_the_splits(tmp_path):
    with pytest.raises(InputError, match=r"`moe-asr prepare fsdd source=DIR out=\S*fsdd`"):
        read_split(tmp_path / "fsdd", "train")
    with pytest.raises(InputError, match=r"`moe-asr prepare synthetic recipe=digits out="):
        read_card(tmp_path / "digits")
    folder = corpus(tmp_path / "c", train=[cut(recording(tmp_path, "r", NOISE[:1]))], dev=[])
    with pytest.raises(InputError, match=r"no split 'trian' \(did you mean 'train'\?\); it has train, dev"):
        read_split(folder, "trian")


def test_damaged_files_of_a_corpus_are_refused(tmp_path):
    folder = corpus(tmp_path / "c", train=[cut(recording(tmp_path, "r", NOISE[:1]))])
    whole = (folder / "train.jsonl.gz").read_bytes()
    for damage in (b"", b"no gzip", whole[:-20]):
        (folder / "train.jsonl.gz").write_bytes(damage)
        with pytest.raises(InputError, match="damaged"):
            read_split(folder, "train")
    (folder / "corpus.json").write_text('{"splits": 3}')
    with pytest.raises(InputError, match=r"corpus.json is damaged"):
        read_card(folder)


def test_samples_of_any_cut(tmp_path):
    stereo, mono = recording(tmp_path, "stereo", NOISE), recording(tmp_path, "mono", NOISE[:1])
    both = MultiCut("both", 0.0, 0.2, [0, 1], [], recording=stereo)
    assert numpy.array_equal(load_samples(both, 8000), NOISE.mean(axis=0))
    part = cut(mono, start=0.05, seconds=0.1)
    assert numpy.array_equal(load_samples(part, 8000), NOISE[0, 400:1200])
    assert numpy.array_equal(load_samples(part), resample(NOISE[0, 400:1200], 8000, 16000))
    # A joined cut is resampled as a whole: its seams are not edges.
    joined = MixedCut("joined", [MixTrack(cut(mono)), MixTrack(cut(mono), offset=0.25)])
    whole = numpy.concatenate([NOISE[0], numpy.zeros(400, "float32"), NOISE[0]])
    assert numpy.array_equal(load_samples(joined, 16000), resample(whole, 8000, 16000))
    faster = cut(mono).perturb_speed(1.25)
    assert load_samples(faster, 8000).shape == (1280,)


def test_an_unreadable_utterance_is_named(tmp_path):
    broken = cut(recording(tmp_path, "r", NOISE[:1]))
    (tmp_path / "r.wav").unlink()
    with pytest.raises(InputError, match=r"^utterance r cannot be read \(.*\); prepare its corpus again\.$"):
        load_samples(broken)


def test_the_facts_of_a_cut(tmp_path):
    one = cut(recording(tmp_path, "one", NOISE[:1]), "one", custom={"phones": "w ʌ n"})
    two = cut(recording(tmp_path, "two", NOISE[1:]), "two", custom={"phones": "t uː"})
    fact = describe(one)
    assert (fact.id, fact.seconds, fact.text, fact.speaker) == ("one", 0.2, "one", "ann")
    assert (fact.gender, fact.language, fact.phones, fact.sources) == ("f", "en", "w ʌ n", ("one",))
    one.custom = {"sources": ["one", "two"]}
    late_first = describe(MixedCut("m", [MixTrack(one, offset=0.3), MixTrack(two)]))
    assert (late_first.text, late_first.phones) == ("two one", "t uː w ʌ n")
    assert (late_first.seconds, late_first.sources) == (0.5, ("one", "two"))


def test_the_hash_knows_values_not_order():
    assert config_hash({"a": 1, "b": [2]}) == config_hash({"b": [2], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_problems_are_lines(tmp_path):
    write_problems(tmp_path, [Problem("ü", "empty text", "x")])
    lines = (tmp_path / "problems.jsonl").read_text("utf8").splitlines()
    assert [json.loads(line) for line in lines] == [{"id": "ü", "reason": "empty text", "detail": "x"}]


def test_a_folder_is_replaced_only_by_a_whole_corpus(tmp_path):
    folder = corpus(tmp_path / "c", train=[])
    (folder / "old").touch()
    with pytest.raises(InputError, match="overwrite=true"), building(folder):
        pass
    with pytest.raises(KeyboardInterrupt), building(folder, overwrite=True):
        raise KeyboardInterrupt
    assert (folder / "old").exists()
    with building(folder, overwrite=True) as unfinished:
        (unfinished / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"]
    with pytest.raises(InputError, match="no prepared corpus"), building(folder, overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["c"]

import json
from pathlib import Path

import numpy
import pytest
import soundfile

from moe_asr.config.prepare import Corpus, KaldiConfig, PrepareConfig, Speechocean762Config
from moe_asr.data.manifest import describe, load_samples, read_card, read_split
from moe_asr.data.prepare import prepare
from moe_asr.errors import InputError

SPEECH = Path(__file__).parents[2] / "../shared/data/speechocean762_train"


def audio(path, seconds=0.2, rate=16000, channels=1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = numpy.random.default_rng(seed).normal(0, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, samples, rate)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")


def run(corpus, source, tmp_path, **options):
    return prepare(PrepareConfig(corpus, str(source), out=str(tmp_path / "out"), workers=2, **options))


def facts(tmp_path, split):
    return [describe(cut) for cut in read_split(tmp_path / "out", split)]


def texts(tmp_path, split):
    return {fact.id: fact.text for fact in facts(tmp_path, split)}


def problems(tmp_path):
    lines = (tmp_path / "out" / "problems.jsonl").read_text("utf8").splitlines()
    return {p["id"]: p["reason"] for p in map(json.loads, lines)}


def test_librispeech(tmp_path):
    root = tmp_path / "source" / "LibriSpeech"
    for name in ("19-198-0000", "19-198-0001", "19-198-0002"):
        audio(root / "dev-clean/19/198" / f"{name}.flac")
    audio(root / "train-clean-100/26/495/26-495-0000.flac")
    transcript = "19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n19-198-0003 LOST\n"
    write(root / "dev-clean/19/198/19-198.trans.txt", transcript)
    write(root / "train-clean-100/26/495/26-495.trans.txt", "26-495-0000 IT'S\n")
    write(root / "SPEAKERS.TXT", "; comment | x\n19   | F | dev-clean | 25.19 | Somebody\n")
    summary = run(Corpus.librispeech, tmp_path / "source", tmp_path)
    assert texts(tmp_path, "dev-clean") == {"19-198-0000": "northanger abbey", "19-198-0001": "this little work"}
    assert texts(tmp_path, "train-clean-100") == {"26-495-0000": "it's"}
    first = facts(tmp_path, "dev-clean")[0]
    assert (first.speaker, first.gender, first.language, first.seconds) == ("19", "f", "en", 0.2)
    assert problems(tmp_path) == {"19-198-0002": "empty text", "19-198-0003": "missing audio"}
    assert "left out 2 (1 empty text, 1 missing audio: problems.jsonl)" in str(summary)


def test_aishell(tmp_path):
    root = tmp_path / "data_aishell"
    for part, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")):
        audio(root / "wav" / part / speaker / f"BAC009{speaker}W0121.wav")
    lines = ["BAC009S0002W0121 甚至 出现 Ａ 交易", "BAC009S0764W0121 几乎 停滞", "BAC009S0003W0100 没有 声音"]
    write(root / "transcript" / "aishell_transcript_v0.8.txt", "\n".join(lines) + "\n")
    summary = run(Corpus.aishell, root, tmp_path)
    assert texts(tmp_path, "train") == {"BAC009S0002W0121": "甚至出现A交易"}
    fact = facts(tmp_path, "test")[0]
    assert (fact.text, fact.speaker, fact.language) == ("几乎停滞", "S0764", "cmn")
    assert problems(tmp_path) == {"BAC009S0724W0121": "empty text", "BAC009S0003W0100": "missing audio"}
    assert list(summary.card.splits) == ["train", "test"]
    assert "dev has no usable utterance" in str(summary)


@pytest.fixture
def kaldi_dir(tmp_path):
    folder = tmp_path / "corpus" / "train"
    audio(tmp_path / "corpus/wav/0007.wav", seconds=1.0)
    audio(tmp_path / "corpus/wav/stereo.wav", seconds=0.5, rate=8000, channels=2)
    write(folder / "wav.scp", f"0007\twav/0007.wav\nstereo {tmp_path}/corpus/wav/stereo.wav\ngone wav/gone.wav\n")
    write(folder / "text", "0007\tAh   OH\nstereo two  channels\ngone x\nonlytext y\n")
    write(folder / "utt2spk", "0007 0001\nstereo\t0002\ngone 0002\n")
    write(folder / "spk2gender", "0001 f\n0002\tm\n")
    return folder


def test_a_kaldi_dir(tmp_path, kaldi_dir):
    summary = run(Corpus.kaldi, kaldi_dir, tmp_path)
    assert texts(tmp_path, "train") == {"0007": "Ah OH", "stereo": "two channels"}
    assert [(f.speaker, f.gender, f.seconds) for f in facts(tmp_path, "train")] == [
        ("0001", "f", 1.0),
        ("0002", "m", 0.5),
    ]
    assert problems(tmp_path) == {"gone": "missing audio", "onlytext": "missing audio"}
    assert "1 utterances have several channels, which are averaged when read" in summary.card.notes
    stereo = soundfile.read(tmp_path / "corpus/wav/stereo.wav", dtype="float32")[0]
    loaded = load_samples(read_split(tmp_path / "out", "train")[1], 8000)
    assert numpy.allclose(loaded, stereo.mean(axis=1), atol=1e-7)


def test_kaldi_segments(tmp_path, kaldi_dir):
    write(
        kaldi_dir / "segments",
        "a 0007 0.1 0.3\nb 0007 0.5 -1\nc 0007 0.5 1.004\nlate 0007 0.9 1.5\n"
        "bad 0007 x\nwho nobody 0 1\nnan 0007 nan 1\n",
    )
    write(kaldi_dir / "text", "".join(f"{name} hi\n" for name in ("a", "b", "c", "late", "bad", "who", "nan")))
    run(Corpus.kaldi, tmp_path / "corpus", tmp_path, kaldi=KaldiConfig(audio_root=str(tmp_path / "corpus")))
    samples = soundfile.read(tmp_path / "corpus/wav/0007.wav", dtype="float32")[0]
    spans = {"a": samples[1600:4800], "b": samples[8000:], "c": samples[8000:]}
    cuts = read_split(tmp_path / "out", "train")
    assert [cut.id for cut in cuts] == list(spans)
    for cut in cuts:
        assert numpy.array_equal(load_samples(cut), spans[cut.id])
    assert problems(tmp_path) == {
        "late": "outside the audio",
        "nan": "outside the audio",
        "bad": "bad line",
        "who": "missing audio",
    }


@pytest.mark.parametrize("entry", ["sox a.flac -t wav - |", "feats.ark:123"])
def test_kaldi_commands_and_archives_are_refused(tmp_path, kaldi_dir, entry):
    write(kaldi_dir / "wav.scp", f"0007 {entry}\n")
    with pytest.raises(InputError, match=r"wav\.scp gives 0007 by a command or archive"):
        run(Corpus.kaldi, kaldi_dir, tmp_path)
    assert not (tmp_path / "out").exists()


def test_jsonl(tmp_path):
    root = tmp_path / "source"
    audio(root / "a/one.wav", seconds=1.0)
    audio(root / "two.flac", seconds=0.5)
    lines = [
        {"audio": "a/one.wav", "text": "Eins", "speaker": 7, "language": "de", "duration": 1.0, "mood": "calm"},
        {"audio": "a/one.wav", "text": "part", "start": 0.25, "duration": 0.5, "gender": "f"},
        {"audio": "two.flac", "text": "zwei", "id": "0002", "split": "dev", "phones": "t s v aɪ"},
        {"audio": "two.flac", "text": "zwei", "id": "0002", "split": "dev"},
        {"audio": "two.flac", "text": " ", "id": "blank"},
        {"audio": "two.flac", "text": "x", "id": "long", "duration": 0.6},
        {"audio": "none.flac", "text": "x", "id": "none"},
        {"audio": "two.flac"},
        {"audio": "two.flac", "text": 3},
        {"audio": "two.flac", "text": "x", "split": "../up"},
        ["audio"],
    ]
    write(root / "manifest.jsonl", "\n".join(map(json.dumps, lines)) + "\n\nnot json\n")
    run(Corpus.jsonl, root, tmp_path)
    assert texts(tmp_path, "train") == {"a-one": "Eins", "a-one-0.25": "part"}
    whole, part = read_split(tmp_path / "out", "train")
    assert whole.supervisions[0].custom == {"mood": "calm"}
    assert (describe(whole).speaker, describe(whole).language, describe(part).gender) == ("7", "de", "f")
    samples = soundfile.read(root / "a/one.wav", dtype="float32")[0]
    assert numpy.array_equal(load_samples(part), samples[4000:12000])
    assert facts(tmp_path, "dev")[0].phones == "t s v aɪ"
    assert problems(tmp_path) == {
        "0002": "duplicate id",
        "blank": "empty text",
        "long": "outside the audio",
        "none": "missing audio",
        **{f"manifest.jsonl:{n}": "bad line" for n in (8, 9, 10, 11, 13)},
    }


def test_jsonl_files_are_splits(tmp_path):
    audio(tmp_path / "a.wav")
    for name in ("train", "dev"):
        write(tmp_path / f"{name}.jsonl", json.dumps({"audio": "a.wav", "text": "HI", "id": name}))
    assert list(run(Corpus.jsonl, tmp_path, tmp_path, lower=True).card.splits) == ["dev", "train"]
    assert texts(tmp_path, "dev") == {"dev": "hi"}
    assert list(run(Corpus.jsonl, tmp_path / "dev.jsonl", tmp_path, overwrite=True).card.splits) == ["train"]


def damaged_corpus(root):
    audio(root / "good.flac", seconds=1.0)
    whole = (root / "good.flac").read_bytes()
    (root / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (root / "empty.wav").touch()
    names = ("good.flac", "cut.flac", "empty.wav")
    write(root / "manifest.jsonl", "\n".join(json.dumps({"audio": n, "text": "x", "id": n}) for n in names))


def test_damaged_audio_is_found_by_decoding(tmp_path):
    damaged_corpus(tmp_path / "source")
    run(Corpus.jsonl, tmp_path / "source", tmp_path)
    assert problems(tmp_path) == {"cut.flac": "unreadable audio", "empty.wav": "unreadable audio"}
    run(Corpus.jsonl, tmp_path / "source", tmp_path, overwrite=True, decode_check=False)
    assert problems(tmp_path) == {"empty.wav": "unreadable audio"}


def test_only_an_entirely_bad_corpus_is_fatal(tmp_path):
    damaged_corpus(tmp_path / "source")
    (tmp_path / "source/good.flac").unlink()
    with pytest.raises(InputError, match=r"has no usable utterance.*first of 3: there is no file .*good\.flac"):
        run(Corpus.jsonl, tmp_path / "source", tmp_path)
    write(tmp_path / "source/manifest.jsonl", "")
    with pytest.raises(InputError, match="has no usable utterance"):
        run(Corpus.jsonl, tmp_path / "source", tmp_path)


def test_a_prepared_corpus_is_left_alone_until_an_option_changes(tmp_path):
    damaged_corpus(tmp_path / "source")
    made = run(Corpus.jsonl, tmp_path / "source", tmp_path)
    before = (tmp_path / "out" / "train.jsonl.gz").stat().st_mtime_ns
    again = run(Corpus.jsonl, tmp_path / "source", tmp_path)
    assert (made.made, again.made, again.card) == (True, False, made.card)
    assert (tmp_path / "out" / "train.jsonl.gz").stat().st_mtime_ns == before
    assert "already prepared" in str(again)
    assert sum(again.card.left_out.values()) == 2
    with pytest.raises(InputError, match="overwrite=true"):
        run(Corpus.jsonl, tmp_path / "source", tmp_path, lower=True)
    assert run(Corpus.jsonl, tmp_path / "source", tmp_path, lower=True, overwrite=True).made


def test_the_same_manifests_come_out_whatever_the_threads(tmp_path):
    damaged_corpus(tmp_path / "source")
    contents = []
    for workers in (1, 3):
        config = PrepareConfig(Corpus.jsonl, str(tmp_path / "source"), str(tmp_path / f"out{workers}"), workers=workers)
        folder = prepare(config).folder
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("corpus", [c for c in Corpus if c not in (Corpus.synthetic, Corpus.domains, Corpus.tokenizer)])
def test_a_wrong_source_is_refused(tmp_path, corpus):
    with pytest.raises(InputError, match=f"moe-asr prepare {corpus.value} source=DIR"):
        prepare(PrepareConfig(corpus))
    with pytest.raises(InputError, match="does not exist"):
        run(corpus, tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=str(tmp_path / "empty")):
        run(corpus, tmp_path / "empty", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_text_in_another_encoding_is_refused(tmp_path, kaldi_dir):
    (kaldi_dir / "text").write_bytes("0007 für".encode("latin1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        run(Corpus.kaldi, kaldi_dir, tmp_path)


def upstream_speechocean(root):
    """Eight train speakers, half of them children, half of them women; one test speaker."""
    lines = {"train": [], "test": []}
    for k in range(9):
        name, split = f"{k:05d}0001", "test" if k == 8 else "train"
        audio(root / f"WAVE/SPEAKER{k:04d}/{name}.WAV")
        lines[split].append((name, f"{k:04d}", f"WAVE/SPEAKER{k:04d}/{name}.WAV", 30 if k % 2 else 8, "mf"[k // 2 % 2]))
    for split, rows in lines.items():
        write(root / split / "text", "".join(f"{name}\tHELLO {k}\n" for k, (name, *_) in enumerate(rows)))
        write(root / split / "utt2spk", "".join(f"{name} {speaker}\n" for name, speaker, *_ in rows))
        write(root / split / "wav.scp", "".join(f"{name}\t{path}\n" for name, _, path, *_ in rows))
        write(root / split / "spk2age", "".join(f"{speaker} {age}\n" for _, speaker, _, age, _ in rows))
        write(root / split / "spk2gender", "".join(f"{speaker}\t{gender}\n" for _, speaker, *_, gender in rows))


def test_upstream_speechocean762_draws_a_proportional_dev_set(tmp_path):
    upstream_speechocean(tmp_path / "source")
    run(Corpus.speechocean762, tmp_path / "source", tmp_path, speechocean762=Speechocean762Config(dev_speakers=4))
    splits = {name: read_split(tmp_path / "out", name) for name in ("train", "dev", "test")}
    speakers = {name: {describe(cut).speaker for cut in cuts} for name, cuts in splits.items()}
    assert {name: len(s) for name, s in speakers.items()} == {"train": 4, "dev": 4, "test": 1}
    assert not speakers["train"] & speakers["dev"]
    traits = {(cut.supervisions[0].gender, cut.supervisions[0].custom["age"]) for cut in splits["dev"]}
    assert traits == {("m", 8), ("m", 30), ("f", 8), ("f", 30)}
    assert texts(tmp_path, "test") == {"000080001": "hello 0"}
    with pytest.raises(InputError, match="dev_speakers=8 leaves none of 8 speakers"):
        run(
            Corpus.speechocean762,
            tmp_path / "source",
            tmp_path,
            overwrite=True,
            speechocean762=Speechocean762Config(dev_speakers=8),
        )


@pytest.mark.skipif(not SPEECH.is_dir(), reason=f"no corpus at {SPEECH}")
def test_real_speechocean762(tmp_path):
    run(Corpus.speechocean762, SPEECH, tmp_path, decode_check=False)
    sizes = read_card(tmp_path / "out").splits
    assert {name: (s.utterances, s.speakers) for name, s in sizes.items()} == {"train": (2100, 105), "dev": (400, 20)}
    assert abs(sizes["train"].hours - 2.459) < 0.001
    assert problems(tmp_path) == {}
    fact = facts(tmp_path, "dev")[0]
    assert (fact.id, fact.text, fact.speaker, fact.gender) == ("000010011", "we call it bear", "0001", "m")
    assert load_samples(read_split(tmp_path / "out", "dev")[0]).shape == (round(fact.seconds * 16000),)

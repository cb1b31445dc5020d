import hashlib
import itertools
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import soundfile

from moe_asr.config.synthetic import Engine, Recipe, SyntheticConfig
from moe_asr.data import manifest
from moe_asr.data.synthetic import corpus, espeak
from moe_asr.data.synthetic.corpus import generate
from moe_asr.data.synthetic.formant import PRONUNCIATIONS
from moe_asr.errors import InputError

SMALL = SyntheticConfig(
    engine=Engine.formant,
    hours=0.01,
    train_voices=5,
    test_voices=3,
    utterances_per_test_voice=4,
    seen_utterances=4,
    dev_utterances=6,
    dev_voices=4,
)
SPOKEN = replace(SMALL, engine=Engine.auto)
SPLITS = ("train", "dev", "seen", "unseen")
needs_espeak = pytest.mark.skipif(not espeak.available(), reason="espeak-ng is not installed (extra `synthetic`)")


def fingerprint(folder: Path) -> dict[str, str]:
    """What a corpus holds, its own name aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "corpus.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "small"
    assert generate(SMALL, folder, workers=2).fresh
    return folder


def test_the_number_of_workers_changes_no_byte(small: Path, tmp_path: Path) -> None:
    generate(SMALL, tmp_path / "again", workers=1)
    assert fingerprint(tmp_path / "again") == fingerprint(small)
    generate(replace(SMALL, seed=2), tmp_path / "other", workers=1)
    assert not set(fingerprint(tmp_path / "other").values()) & {
        digest for path, digest in fingerprint(small).items() if path.endswith("flac")
    }


def test_splits_share_no_sentence_and_unseen_voices_speak_nowhere_else(small: Path) -> None:
    splits = {name: manifest.read_split(small, name) for name in SPLITS}
    sentences = {name: {cut.supervisions[0].text for cut in cuts} for name, cuts in splits.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not sentences[one] & sentences[other]
    voices = {name: {cut.supervisions[0].speaker for cut in cuts} for name, cuts in splits.items()}
    assert len(voices["train"]) == 5
    assert len(voices["unseen"]) == 3
    assert voices["seen"] < voices["train"]
    assert not voices["unseen"] & (voices["train"] | voices["dev"])
    assert len(voices["dev"] & voices["train"]) == len(voices["dev"] - voices["train"]) == 2
    assert {name: len(splits[name]) for name in SPLITS[1:]} == {"dev": 6, "seen": 4, "unseen": 12}
    assert 0.01 <= sum(cut.duration for cut in splits["train"]) / 3600 < 0.02
    assert len({cut.id for cuts in splits.values() for cut in cuts}) == sum(map(len, splits.values()))


def test_cuts_carry_words_phones_times_and_language(small: Path) -> None:
    for cut in manifest.read_split(small, "unseen"):
        facts = manifest.describe(cut)
        assert facts.language == "en"
        phones = [symbol for word in facts.text.split() for symbol in PRONUNCIATIONS[word]]
        assert facts.phones == " ".join(phones)
        items = cut.supervisions[0].alignment["phone"]
        assert [item.symbol for item in items] == phones
        assert 0 < items[0].start < items[-1].end < cut.duration
        words = cut.supervisions[0].alignment["word"]
        assert [word.symbol for word in words] == facts.text.split()
        ends = itertools.accumulate(len(PRONUNCIATIONS[word.symbol]) for word in words)
        assert [word.end for word in words] == pytest.approx([items[end - 1].end for end in ends], abs=2e-4)
        assert words[0].start == items[0].start
        assert cut.supervisions[0].custom["voice"]["pitch"] > 50


def test_utterances_of_one_file_are_read_exactly_after_a_move(small: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(small)
    cuts = [cut for cut in manifest.read_split(moved, "train") if cut.supervisions[0].speaker == "v001"]
    assert len(cuts) > 1
    whole, rate = soundfile.read(small / "audio/train/v001-000.flac", dtype="float32")
    assert rate == 16000
    parts = [manifest.load_samples(cut) for cut in cuts]
    numpy.testing.assert_array_equal(numpy.concatenate(parts), whole)


def test_an_equal_corpus_is_left_and_another_one_not_replaced(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    made = generate(SMALL, small)
    assert not made.fresh
    assert "already holds" in made.notes[0]
    with pytest.raises(InputError, match="overwrite=true"):
        generate(replace(SMALL, hours=0.02), small)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_an_interrupted_generation_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path / "corpus", workers=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_generation_leaves_no_process_and_the_next_starts_clean(tmp_path: Path) -> None:
    script = tmp_path / "make.py"
    script.write_text(
        "import multiprocessing, os, pathlib, signal, sys\n"
        "from moe_asr.config.synthetic import Engine, SyntheticConfig\n"
        "from moe_asr.data.synthetic.corpus import generate\n"
        "def die(done, total):\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    generate(SyntheticConfig(engine=Engine.formant), pathlib.Path(sys.argv[1]), workers=2, progress=die)\n"
    )
    folder = tmp_path / "corpus"
    # The workers hold the pipe too, so its end means that they are gone.
    killed = subprocess.run([sys.executable, script, folder], stdout=subprocess.PIPE, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(killed.stdout.split()) == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["corpus.partial"]
    generate(SMALL, folder, workers=1)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["corpus"]


def test_without_espeak_digits_fall_back_and_the_rest_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(espeak, "available", lambda: False)
    made = generate(SPOKEN, tmp_path / "digits", workers=1)
    assert made.card.config["engine"] == "formant"
    assert "espeak-ng is not installed" in made.notes[0]
    for refused in (replace(SPOKEN, engine=Engine.espeak), replace(SPOKEN, recipe=Recipe.grammar)):
        with pytest.raises(InputError, match="pip install"):
            generate(refused, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@needs_espeak
def test_a_text_is_shared_out_and_its_unspeakable_lines_are_listed(tmp_path: Path) -> None:
    text = tmp_path / "lines.txt"
    words = ["red", "blue", "old", "new", "big", "cat", "dog", "fish"]
    pairs = [f"The {a} {b}!" for a, b in itertools.permutations(words, 2)]
    text.write_text("\n".join([*pairs, "room 101", "the red blue"]), encoding="utf8")
    config = replace(SPOKEN, recipe=Recipe.text, text=str(text), utterances_per_test_voice=2)
    made = generate(config, tmp_path / "corpus", workers=1)
    cuts = [cut for name in SPLITS for cut in manifest.read_split(tmp_path / "corpus", name)]
    assert {cut.supervisions[0].text for cut in cuts} <= {pair.lower().rstrip("!") for pair in pairs}
    problems = [json.loads(line) for line in (tmp_path / "corpus/problems.jsonl").read_text().splitlines()]
    assert [problem["id"] for problem in problems] == ["line-57", "line-58"]
    assert "2 sentences were left out" in made.notes[0]
    text.write_text("\n".join(pairs[:9]), encoding="utf8")
    with pytest.raises(InputError, match="give more lines"):
        generate(config, tmp_path / "short", workers=1)


@needs_espeak
def test_mandarin_keeps_its_characters(tmp_path: Path) -> None:
    text = tmp_path / "lines.txt"
    text.write_text("\n".join("".join(p) + "。" for p in itertools.permutations("你好世界人", 3)), encoding="utf8")
    config = replace(SPOKEN, recipe=Recipe.text, text=str(text), language="cmn", utterances_per_test_voice=1)
    generate(config, tmp_path / "corpus", workers=1)
    for cut in manifest.read_split(tmp_path / "corpus", "train"):
        assert len(cut.supervisions[0].text) == 3
        assert set(cut.supervisions[0].text) <= set("你好世界人")
        assert cut.supervisions[0].language == "cmn"
        assert 3 <= len(cut.supervisions[0].custom["phones"].split()) <= 12


@needs_espeak
def test_numerals_in_many_languages_have_phones_as_targets(tmp_path: Path) -> None:
    config = replace(SPOKEN, recipe=Recipe.multilingual, languages=["en", "de", "ru"])
    generate(config, tmp_path / "corpus", workers=2)
    for name in SPLITS:
        facts = [manifest.describe(cut) for cut in manifest.read_split(tmp_path / "corpus", name)]
        assert all(f.text == f.phones and f.text for f in facts)
        if name in ("train", "unseen"):
            assert {f.language for f in facts} == {"en", "de", "ru"}


@needs_espeak
def test_espeak_corpora_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        generate(replace(SPOKEN, hours=0.005), tmp_path / str(workers), workers=workers)
    assert fingerprint(tmp_path / "1") == fingerprint(tmp_path / "2")


def test_the_card_tells_what_it_is(small: Path) -> None:
    card = manifest.read_card(small)
    assert card.splits["unseen"].speakers == 3
    assert card.config["recipe"] == "digits"
    assert "say nothing about real speech" in card.notes[0]
    changed = replace(SMALL, seed=3)
    assert corpus._options(changed) != corpus._options(SMALL)

import itertools
from pathlib import Path

import numpy
import pytest

from moe_asr.config.synthetic import LANGUAGES, Engine, Recipe, SyntheticConfig
from moe_asr.data.synthetic.recipes import (
    DIGITS,
    GRAMMAR,
    SHARES,
    Sentence,
    read_line,
    read_lines,
    sentences,
    split_of,
)
from moe_asr.errors import InputError

DRAWN = [Recipe.digits, Recipe.grammar, Recipe.multilingual]


def say(recipe: Recipe, split: str, count: int, language: str = "en", seed: int = 0) -> list[Sentence]:
    rng = numpy.random.default_rng(seed)
    return list(itertools.islice(sentences(SyntheticConfig(recipe=recipe), split, language, rng), count))


@pytest.mark.parametrize("recipe", DRAWN)
def test_splits_share_no_sentence_and_a_voice_repeats_none(recipe: Recipe) -> None:
    said = {split: [s.spoken for seed in range(3) for s in say(recipe, split, 60, seed=seed)] for split in SHARES}
    for one, other in itertools.combinations(SHARES, 2):
        assert not set(said[one]) & set(said[other])
    for spoken in said.values():
        assert len(set(spoken[:60])) == 60
    assert say(recipe, "train", 20) == say(recipe, "train", 20)
    assert say(recipe, "train", 20) != say(recipe, "train", 20, seed=1)


def test_splits_have_their_shares_and_depend_on_the_seed() -> None:
    words = [str(i) for i in range(4000)]
    for split, share in SHARES.items():
        assert numpy.mean([split_of(w, 1) == split for w in words]) == pytest.approx(share, abs=0.02)
    assert [split_of(w, 1) for w in words] != [split_of(w, 2) for w in words]


def test_a_voice_goes_on_when_its_split_has_nothing_new() -> None:
    config = SyntheticConfig(max_digits=3, min_digits=1)
    voice = sentences(config, "unseen", "en", numpy.random.default_rng(0))
    spoken = [s.spoken for s in itertools.islice(voice, 130)]
    assert len(set(spoken[:50])) == 50
    assert 90 < len(set(spoken)) < 130  # a tenth of 1110 strings exist


def test_a_split_without_sentences_is_refused() -> None:
    with pytest.raises(InputError, match="no sentence falls into the split 'nowhere'"):
        say(Recipe.digits, "nowhere", 1)


def test_digit_strings_have_every_length_asked_for() -> None:
    strings = [s.text.split() for s in say(Recipe.digits, "train", 300) if s.text]
    assert {len(s) for s in strings} == set(range(1, 8))
    assert {w for s in strings for w in s} == set(DIGITS)


def test_the_grammar_has_its_vocabulary_and_only_words() -> None:
    texts = [s.text or "" for s in say(Recipe.grammar, "train", 2500)]
    words = {word for text in texts for word in text.split()}
    assert 160 <= len(words) <= 180
    assert all(word.isalpha() and word.islower() for word in words)
    assert GRAMMAR.count("\n") > 30
    assert not any(f" a {vowel}" in f" {text}" for text in texts for vowel in "aeiou")


def test_every_language_speaks_numerals_to_be_heard_as_phones() -> None:
    for language in LANGUAGES:
        drawn = say(Recipe.multilingual, "train", 30, language)
        assert all(s.text is None and any(c.isdigit() for c in s.spoken) for s in drawn)
    assert any(s.spoken.startswith("le ") for s in say(Recipe.multilingual, "train", 30, "fr"))


@pytest.mark.parametrize(
    ("line", "language", "spoken", "text"),
    [
        (
            "Hello, world! It’s Bob's 'friend'.",
            "en",
            "hello, world! it's bob's friend.",
            "hello world it's bob's friend",
        ),
        ("well-known — naïve (café)", "en", "well known naïve café", "well known naïve café"),
        ("你好,世界。", "cmn", "你好,世界。", "你好世界"),
        ("Привет, мир", "ru", "привет, мир", "привет мир"),
        ("L’eau d'été", "fr", "l'eau d'été", "l'eau d'été"),
    ],
)
def test_a_line_becomes_words_without_punctuation(line: str, language: str, spoken: str, text: str) -> None:
    assert read_line(line, language) == Sentence(spoken, text)


@pytest.mark.parametrize(
    ("line", "language"),
    [("3 cats", "en"), ("a & b", "en"), ("你好 OK", "cmn"), ("мир", "en"), ("50 %", "de"), ("…", "en")],
)
def test_a_line_not_written_as_it_is_spoken_says_why(line: str, language: str) -> None:
    reason = read_line(line, language)
    assert isinstance(reason, str)
    assert reason.startswith("has ")


def test_lines_left_out_are_listed_with_their_number(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("\ufeffOne line.\n\nroom 5\none LINE\nanother\n", encoding="utf8")
    good, bad = read_lines(file, "en")
    assert [s.text for s in good] == ["one line", "another"]
    assert [(number, line) for number, _, line in bad] == [(3, "room 5"), (4, "one LINE")]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read"), (b"\xff\xfe", "not UTF-8"), (b"1\n2\n", "line 1 has '1'"), (b"", "no line")],
)
def test_an_unusable_text_is_refused(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_lines(file, "en")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hours": 0}, "hours"),
        ({"dev_voices": 1}, "dev_voices"),
        ({"train_voices": 5}, "dev_voices=10 or fewer"),
        ({"min_digits": 5, "max_digits": 4}, "min_digits"),
        ({"max_digits": 2}, "write 3 or more"),
        ({"recipe": Recipe.text}, "text=FILE"),
        ({"text": "lines.txt"}, "text=FILE"),
        ({"recipe": Recipe.grammar, "engine": Engine.formant}, "engine=espeak"),
        ({"recipe": Recipe.multilingual, "languages": ["en", "xx"]}, "'xx' is not known"),
        ({"recipe": Recipe.multilingual, "languages": ["en", "en"]}, "once"),
        ({"recipe": Recipe.multilingual, "test_voices": 3}, "raise train_voices and test_voices"),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SyntheticConfig(**options)  # type: ignore[arg-type]

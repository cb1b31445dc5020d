"""A known text in time: against the true times of the synthetic corpus, and what the command makes of files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lhotse.cut import Cut

from moe_asr.config.data import TokenUnit
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.data.synthetic.formant import PRONUNCIATIONS
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.runs.recognizer import Recognizer
from moe_asr.runs.transcripts import FRAME_SECONDS, Timed, words_of
from moe_asr.tensors import Chunking

TOLERANCE = FRAME_SECONDS
"""Seconds. A frame hears 85 ms of audio from its begin on but is given 40, so it may begin before what it hears."""


@pytest.fixture(scope="module")
def recognizer(trained: Path) -> Recognizer:
    return Recognizer.load(trained)


def true_words(cut: Cut) -> Iterator[tuple[str, float, float]]:
    """Each word with its begin and end (s)."""
    (said,) = cut.supervisions
    phones = iter(said.alignment["phone"])
    for word in said.text.split():
        its = [next(phones) for _ in PRONUNCIATIONS[word]]
        yield word, its[0].start, its[-1].start + its[-1].duration
    assert next(phones, None) is None


@pytest.mark.parametrize("split", ["train", "seen", "unseen"])
def test_every_word_is_found_where_it_is_said(recognizer: Recognizer, digits: Path, split: str) -> None:
    inside = late = 0
    for cut in read_split(digits, split):
        true = list(true_words(cut))
        found = recognizer.align(load_samples(cut), cut.supervisions[0].text)
        assert [word.text for word in found.words] == [word for word, _, _ in true]
        assert found.words == found.tokens  # one token a word
        for word, (_, begin, end) in zip(found.words, true, strict=True):
            inside += begin - TOLERANCE <= word.start < word.end <= end + TOLERANCE
            late += 1
    assert inside >= 0.98 * late > 20


def test_a_text_never_said_has_a_lower_score_and_confidence(recognizer: Recognizer, digits: Path) -> None:
    cut = read_split(digits, "train")[0]
    samples, text = load_samples(cut), cut.supervisions[0].text
    right = recognizer.align(samples, text)
    wrong = recognizer.align(samples, " ".join("nine" if word != "nine" else "one" for word in text.split()))
    assert right.score > wrong.score + 5
    assert min(word.confidence for word in right.words) > 0.5 > max(word.confidence for word in wrong.words)
    heard = recognizer.transcribe(samples)
    assert heard.text == text
    assert [token.start for token in right.tokens] == list(heard.seconds)
    assert [token.confidence for token in right.tokens] == pytest.approx(heard.hypothesis.token_confidences)
    assert right.score == pytest.approx(heard.hypothesis.score, abs=1e-4)
    assert recognizer.align(samples, text, Chunking(8)).score != right.score


def test_words_of_characters_pieces_and_han() -> None:
    tokenizer = Tokenizer(TokenUnit.char, (*SPECIALS, "▁", "a", "b", "你", "好"))
    ids = tokenizer.encode("ab 你好 b")
    tokens = [Timed(tokenizer.symbols[i], 0.1 * k, 0.1 * k + 0.04, 1 - 0.1 * k) for k, i in enumerate(ids)]
    words = words_of(tokens, ids, tokenizer)
    assert [(w.text, round(w.start, 2), round(w.end, 2), round(w.confidence, 2)) for w in words] == [
        ("ab", 0.0, 0.14, 0.9),
        ("你", 0.3, 0.34, 0.7),
        ("好", 0.4, 0.44, 0.6),
        ("b", 0.6, 0.64, 0.4),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("one eleven", "holds what the model cannot write (eleven); give it as the training texts are written"),
        (" ", "the text to align is empty"),
        ("one " * 200, "has 200 tokens, too many for"),
    ],
)
def test_texts_that_cannot_be_aligned_are_refused(
    recognizer: Recognizer, digits: Path, text: str, sentence: str
) -> None:
    with pytest.raises(InputError) as refused:
        recognizer.align(load_samples(read_split(digits, "seen")[0]), text)
    assert sentence in str(refused.value)

"""Hotwords against a plain reading of the text; a language model against its table; their options."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.decoding.context import Context, Hotwords, LanguageModel, make_context
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import SPECIALS, Tokenizer

WORDS = Tokenizer(TokenUnit.word, (*SPECIALS, "a", "b", "c"))
ARPA = """
\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-1.0\t<unk>
0\t<s>\t-0.30
-0.9\t</s>
-0.6\ta\t-0.25
-0.7\tb\t-0.20

\\2-grams:
-0.2\t<s> a
-0.4\ta b
-0.5\tb </s>
-0.8\ta a

\\end\\
"""


def scores(context: Context, tokens: tuple[int, ...]) -> list[float]:
    """What each token adds, and the end."""
    state, gains = context.start, []
    for token in tokens:
        state, gain = context.extend(state, token)
        gains.append(gain)
    return [*gains, context.finish(state)]


def covered(tokens: tuple[int, ...], phrases: list[tuple[int, ...]]) -> int:
    """How many tokens lie in phrases, the longest one taken at each place from the left."""
    count = place = 0
    while place < len(tokens):
        fits = [len(p) for p in phrases if tokens[place : place + len(p)] == p]
        count += max(fits, default=0)
        place += max(fits, default=1)
    return count


SHORT = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)


@given(st.lists(SHORT, min_size=1, max_size=5), st.lists(st.integers(1, 4), max_size=14).map(tuple))
def test_hotwords_pay_for_the_tokens_of_whole_phrases(phrases, tokens):
    gains = scores(Hotwords(phrases, 0.5), tokens)
    assert sum(gains) == pytest.approx(0.5 * covered(tokens, phrases))
    for so_far, more in pairwise([sum(gains[:i]) for i in range(len(tokens) + 1)]):
        assert more - so_far <= 0.5


def test_the_bonus_comes_with_each_token_and_goes_with_the_phrase():
    hotwords = Hotwords([(1, 2, 3), (2,)], 2.0)
    assert scores(hotwords, (1, 2, 3)) == [2.0, 2.0, 2.0, 0.0]
    assert scores(hotwords, (1, 2, 4)) == [2.0, 2.0, -2.0, 0.0]  # the 2 alone is a phrase, too
    assert scores(hotwords, (1, 1)) == [2.0, 0.0, -2.0]


def test_hotwords_come_from_the_options_and_from_a_file(tmp_path: Path):
    file = tmp_path / "words.txt"
    file.write_text("b c\n\n c\n")
    config = DecodeConfig(DecodeMode.ctc_prefix_beam, hotwords=["a"], hotwords_file=str(file), hotword_bonus=1.5)
    context = make_context(config, WORDS)
    a, b, c = (WORDS.encode(word)[0] for word in "abc")
    assert scores(context, (a, b, c, b, b)) == [1.5, 1.5, 1.5, 1.5, 0.0, -1.5]
    assert make_context(DecodeConfig(), WORDS) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hotwords": ["a d"]}, "the hotword 'a d' is empty or holds what the tokenizer does not know: leave it out."),
        ({"hotwords": [" "]}, "the hotword ' ' is empty or holds what the tokenizer does not know: leave it out."),
        ({"hotwords_file": "none"}, "decode.hotwords_file=none cannot be read; give a text file with a phrase a line."),
    ],
)
def test_hotwords_that_cannot_be_used_are_refused(options, sentence):
    with pytest.raises(InputError) as refused:
        make_context(DecodeConfig(DecodeMode.ctc_prefix_beam, **options), WORDS)
    assert str(refused.value) == sentence


def test_a_language_model_adds_what_its_table_says(tmp_path: Path):
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="the extra `decode` is not installed")
    (tmp_path / "lm.arpa").write_text(ARPA)
    a, b, c = (WORDS.encode(word)[0] for word in "abc")
    model = LanguageModel(str(tmp_path / "lm.arpa"), WORDS.symbols, 0.5, 0.25)
    half, backed_off = 0.5 * math.log(10), -0.2 - 1.0  # c is unknown: the weight of b, then <unk>
    expected = [0.25 + half * -0.2, 0.25 + half * -0.4, 0.25 + half * backed_off, half * -0.9]
    assert scores(model, (a, b, c)) == pytest.approx(expected, abs=1e-6)
    assert scores(model, (a, b))[-1] == pytest.approx(half * -0.5)

    config = DecodeConfig(
        DecodeMode.ctc_prefix_beam, hotwords=["a"], hotword_bonus=1.0, lm=str(tmp_path / "lm.arpa"), lm_weight=0.5
    )
    both = make_context(config, WORDS)
    assert scores(both, (a, b))[:2] == pytest.approx([1.0 + half * -0.2, half * -0.4], abs=1e-6)
    (tmp_path / "broken").write_text("nothing\n")
    for name, words in (("none", "is not a file"), ("broken", "is neither ARPA nor KenLM")):
        with pytest.raises(InputError, match=words):
            LanguageModel(str(tmp_path / name), WORDS.symbols, 0.5, 0.0)


def test_a_language_model_needs_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "flashlight.lib.text.decoder.kenlm", None)
    with pytest.raises(InputError, match=r"pip install 'moe-asr\[decode\]'"):
        LanguageModel("lm.arpa", WORDS.symbols, 0.5, 0.0)

import random

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.measure.errors import EditCounts, alignment, edit_counts, paired_ids, split_tokens, total

TEXT = st.lists(st.sampled_from(["a", "b", "c", "dd", "é"]), max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)


def test_hand_computed_edits() -> None:
    counts = edit_counts(["a b c", "a b", "", "a"], ["a x c d", "b", "x y", ""])
    assert counts == [EditCounts(2, 1, 0, 1), EditCounts(1, 0, 1, 0), EditCounts(insertions=2), EditCounts(0, 0, 1)]
    assert total(counts) == EditCounts(3, 1, 2, 3)
    assert (total(counts).errors, total(counts).tokens) == (6, 6)
    assert total(counts).rate == 1.0


def test_a_corpus_without_reference_tokens_has_its_insertions_as_rate() -> None:
    assert total(edit_counts(["", ""], ["x y", "z"])).rate == 3 == jiwer.wer(["", ""], ["x y", "z"])
    assert total(edit_counts(["", " "], ["", " "])).rate == 0 == jiwer.wer(["", " "], ["", " "])
    assert total(edit_counts([], [])).rate == 0


@given(PAIRS)
def test_rates_equal_jiwer_with_empty_texts(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    word, char = (total(edit_counts(references, hypotheses, unit)) for unit in (Unit.word, Unit.char))
    expected = jiwer.process_words(references, hypotheses)
    assert word.rate == pytest.approx(expected.wer, abs=1e-12)
    assert (word.hits, word.substitutions, word.deletions, word.insertions) == (
        expected.hits,
        expected.substitutions,
        expected.deletions,
        expected.insertions,
    )
    assert char.rate == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)


def test_a_large_random_corpus_equals_jiwer() -> None:
    draw = random.Random(1)
    references, hypotheses = (
        [" ".join(draw.choices("abcdefg", k=draw.randrange(12))) for _ in range(2000)] for _ in range(2)
    )
    assert "" in references
    assert total(edit_counts(references, hypotheses)).rate == pytest.approx(
        jiwer.wer(references, hypotheses), abs=1e-12
    )


@given(PAIRS, st.integers(0, 8))
def test_batches_do_not_matter(pairs: list[tuple[str, str]], cut: int) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    whole = edit_counts(references, hypotheses)
    parts = edit_counts(references[:cut], hypotheses[:cut]) + edit_counts(references[cut:], hypotheses[cut:])
    assert parts == whole


@given(TEXT, TEXT)
def test_edit_counts_add_up_to_both_lengths(reference: str, hypothesis: str) -> None:
    (counts,) = edit_counts([reference], [hypothesis])
    (mirrored,) = edit_counts([hypothesis], [reference])
    assert counts.tokens == len(reference.split())
    assert counts.hits + counts.substitutions + counts.insertions == len(hypothesis.split())
    assert counts.errors == mirrored.errors
    assert (counts.errors == 0) == (reference == hypothesis)


def test_each_unit_counts_its_own_tokens() -> None:
    assert split_tokens(" ab  c ", Unit.char) == ["a", "b", " ", "c"]
    assert split_tokens("t ʃ iː", Unit.phone) == ["t", "ʃ", "iː"]
    assert split_tokens("我有iPhone 十五 pro", Unit.mixed) == ["我", "有", "iPhone", "十", "五", "pro"]
    assert split_tokens("  ", Unit.char) == []
    (counts,) = edit_counts(["你好吗"], ["你好 马"], Unit.mixed)
    assert counts == EditCounts(hits=2, substitutions=1)


def test_the_alignment_marks_every_edit() -> None:
    assert alignment("a b c", "a x c d") == "REF: a b c *\nHYP: a x c d\n       S   I"
    assert alignment("a b", "a b") == ""


def test_unequal_numbers_of_texts_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="2 references"):
        edit_counts(["a", "b"], ["a"])


def test_ids_must_be_the_same_unless_partial() -> None:
    assert paired_ids({"b": "", "a": ""}, {"a": "", "b": ""}) == ["b", "a"]
    with pytest.raises(InputError, match=r"1 utterances in common, 1 without .* \(e.g. b\) and 2 without"):
        paired_ids({"a": "", "b": ""}, {"a": "", "c": "", "d": ""})
    assert paired_ids({"a": "", "b": ""}, {"a": "", "c": ""}, partial=True) == ["a"]
    with pytest.raises(InputError, match=r"0 utterances in common, .* name utterances alike"):
        paired_ids({"a": ""}, {"c": ""}, partial=True)

import itertools
import random

import pytest

from moe_asr.measure.errors import hits
from moe_asr.measure.latency import Latencies, Shown, latencies, latency_result

ENDS = [("the", None), ("old", 1.0), ("house", 2.0)]


def shown(*texts: str, certain: int = 0) -> list[Shown]:
    """One text a second, from second 1 on; all but the last with `certain` words that stay."""
    words = [tuple(text.split()) for text in texts]
    return [Shown(i, w, certain if i < len(texts) else len(w)) for i, w in enumerate(words, start=1)]


def test_words_that_stay() -> None:
    found = latencies(ENDS, shown("", "the", "the old", "the old", "the old house", certain=1))
    assert found == Latencies((2.0, 3.0), (2.0, 3.0), (4.0, 3.0), appeared=3, revised=0)


def test_a_word_that_comes_goes_and_comes_back() -> None:
    found = latencies(ENDS, shown("the old", "the cold", "the", "the old house"))
    assert (found.first, found.settled) == ((0.0, 2.0), (3.0, 2.0))
    assert (found.appeared, found.revised) == (5, 2)  # the, old, cold, old, house


def test_an_unfinished_last_word_is_not_revised_but_settles_when_finished() -> None:
    found = latencies(ENDS, shown("th", "the o", "the old", "the old hou", "the old house"))
    assert (found.first, found.settled) == ((2.0, 3.0), (2.0, 3.0))
    assert (found.appeared, found.revised) == (3, 0)
    assert latencies(ENDS, shown("the o", "the oak", "the old house")).revised == 1
    assert latencies(ENDS, shown("th old", "the old house")).revised == 1  # not the last: it was finished


def test_only_right_words_whose_end_is_known_count() -> None:
    assert latencies(ENDS, shown("the bold house")).settled == (-1.0,)
    assert latencies(ENDS, shown("an old grey house")).settled == (0.0, -1.0)  # found in spite of the insertion
    assert latencies(ENDS, shown("", "")) == Latencies((), (), (), 0, 0)
    assert latencies([], shown("x")) == Latencies((), (), (), 1, 0)


def test_what_holds_for_any_stream() -> None:
    rng = random.Random(0)
    for _ in range(200):
        texts = [" ".join(rng.choices("ab", k=rng.randrange(5))) for _ in range(6)]
        ends = [(word, 0.0) for word in rng.choices("ab", k=4)]
        found = latencies(ends, shown(*texts))
        assert found.appeared - found.revised == len(texts[-1].split())
        assert all(a <= b <= c == 6 for a, b, c in zip(found.first, found.settled, found.certain, strict=True))


def test_hits_are_pairs_of_equal_words_in_order() -> None:
    assert hits(["a", "b", "c", "d"], ["a", "x", "c", "d", "e"]) == [(0, 0), (2, 2), (3, 3)]
    assert hits([], ["a"]) == hits(["a"], []) == hits([], []) == []
    pairs = hits(["to", "be", "or", "not", "to", "be"], ["be", "or", "to", "be"])
    assert all(a < b and c < d for (a, c), (b, d) in itertools.pairwise(pairs))
    assert len(pairs) == 4


def test_words_are_pooled_and_nothing_gives_no_number() -> None:
    one, two = Latencies((0.0,), (1.0,), (4.0,), 3, 1), Latencies((1.0, 2.0), (2.0, 3.0), (4.0, 4.0), 2, 0)
    assert latency_result([one, two]) == {
        "words": 3,
        "first_p50": 1.0,
        "first_p90": pytest.approx(1.8),
        "settled_p50": 2.0,
        "settled_p90": pytest.approx(2.8),
        "certain_p50": 4.0,
        "certain_p90": 4.0,
        "revised": 0.2,
    }
    assert latency_result([])["settled_p50"] is None
    assert latency_result([])["revised"] == 0.0

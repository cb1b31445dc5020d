"""Changed decisions between two traces, counted on rows made by hand."""

from dataclasses import replace
from typing import Any

import numpy
import pytest

from moe_asr.analysis.drift import drift
from moe_asr.analysis.trace import SiteRows, Trace, loads, said, select
from moe_asr.errors import InputError

SITE, READS = "encoder.00.ffn_out", "left_to_right.00.ffn_out"


def make_trace(ids: list[list[int]], lengths: list[int], names: str = "abcdef", **more: Any) -> Trace:
    """Top 2 of 3 experts at an encoder site and (the first position of each utterance) at a decoder site."""
    offsets = numpy.cumsum([0, *lengths])
    chosen = numpy.array(ids, numpy.int8)
    utterances = tuple(
        {"id": name, "speaker": f"s{name}", "split": "x", "tokens": []} for name, _ in zip(names, lengths, strict=False)
    )
    sites = {
        SITE: SiteRows(chosen, chosen / 2, chosen[:, 0] / 4, **more),
        READS: SiteRows(chosen[offsets[:-1]], *2 * [chosen[offsets[:-1], 0]]),
    }
    word = numpy.array([0, 0, -1, 1, 1, 0, 0][: len(ids)])
    stacks = {"encoder": offsets, "left_to_right": numpy.arange(len(lengths) + 1)}
    return Trace({"num_experts": 3}, utterances, stacks, sites, {"word": word}, {"word": ("one", "two")})


ONE = [[0, 1], [0, 1], [1, 2], [2, 0], [1, 0]]
OTHER = [[0, 1], [1, 0], [1, 2], [2, 1], [0, 1]]


def test_changes_are_counted_whatever_the_order_of_the_utterances() -> None:
    before, after = make_trace(ONE, [3, 2]), make_trace([*OTHER[3:], *OTHER[:3]], [2, 3], "ba")
    (found,) = drift(before, after).values()
    assert (found.first, found.any, found.divergence) == (2 / 5, 1 / 5, None)
    assert found.interval.bounds is None
    assert found.interval.clusters == 2
    (same,) = drift(before, before).values()
    assert (same.first, same.any, same.v) == (0, 0, pytest.approx(1.0))


def test_experts_that_only_change_their_numbers_have_v_1() -> None:
    ids = numpy.random.default_rng(0).permuted(numpy.tile([0, 1, 2], (600, 1)), axis=1)[:, :2]
    before, after = (make_trace((ids + shift) % 3, [100] * 6) for shift in (0, 1))
    (found,) = drift(replace(before, labels={}), replace(after, labels={})).values()
    assert (found.first, found.v) == (1.0, pytest.approx(1.0))
    kept = numpy.random.default_rng(1).random(600) > 0.25
    (mixed,) = drift(before, make_trace(numpy.where(kept[:, None], ids, (ids + 1) % 3), [100] * 6)).values()
    assert mixed.first == pytest.approx(1 - kept.mean())
    low, high = mixed.interval.bounds or (0, 0)
    assert 0.15 < low < mixed.first < high < 0.35
    assert 0.5 < mixed.v < 1


def test_the_divergence_of_probabilities_in_closed_form() -> None:
    p = numpy.tile(numpy.array([0.5, 0.5, 0.0], numpy.float32), (5, 1))
    q = numpy.tile(numpy.array([0.25, 0.5, 0.25], numpy.float32), (5, 1))
    before, after = make_trace(ONE, [3, 2], probabilities=p), make_trace(ONE, [3, 2], probabilities=q)
    assert drift(before, after)[SITE].divergence == pytest.approx(0.5 * numpy.log(2))
    assert drift(before, before)[SITE].divergence == pytest.approx(0)


def test_only_what_is_aligned_is_compared() -> None:
    before = make_trace(ONE, [3, 2])
    assert set(drift(before, before, "left_to_right")) == {READS}
    others = tuple(u | {"tokens": ["x"]} for u in before.utterances)
    refusals = {
        "not of the same utterances (2 and 2, not in both: b)": make_trace(ONE, [3, 2], "ac"),
        "not of the same utterances (2 and 1": make_trace(ONE, [5], "a"),
        "the positions of these traces differ in 'encoder'": make_trace(ONE, [2, 3]),
        "no site in 'encoder' in common with equally many experts": replace(before, card={"num_experts": 4}),
    }
    for sentence, after in refusals.items():
        with pytest.raises(InputError) as refused:
            drift(before, after)
        assert sentence in str(refused.value)
    with pytest.raises(InputError, match="differ in 'left_to_right'"):
        drift(before, replace(before, utterances=others), "left_to_right")


def test_clean_and_noisy_speech_are_selected_from_a_trace_of_both() -> None:
    whole = make_trace([*ONE, *OTHER[3:]], [3, 2, 2], "abc")
    facts = [u | {"split": split} for u, split in zip(whole.utterances, ("clean", "clean", "noise"), strict=True)]
    facts[2]["id"] = "noise-b"
    whole = replace(whole, utterances=tuple(facts))
    clean, noise = select(whole, lambda u: u["id"] == "b"), select(whole, lambda u: u["split"] == "noise")
    assert clean.sites[SITE].ids.tolist() == ONE[3:]
    assert clean.sites[READS].ids.tolist() == [ONE[3]]
    assert clean.labels["word"].tolist() == [1, 1]
    (found,) = drift(clean, noise, same=lambda u: u["id"].removeprefix("noise-")).values()
    assert (found.first, found.any) == (0.5, 0.5)
    with pytest.raises(InputError, match="none of the 3 utterances"):
        select(whole, lambda u: False)


def test_loads_and_words_of_a_trace() -> None:
    trace = make_trace([*ONE[:4], [-1, -1]], [3, 2])
    assert loads(trace)[SITE] == [3 / 8, 3 / 8, 2 / 8]
    assert set(loads(trace, "encoder")) == {SITE}
    assert said(trace, 0) == [("one", 0.0, 0.08)]
    assert said(trace, 1) == [("two", 0.0, 0.08)]

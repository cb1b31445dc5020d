"""Specialisation in traces made by hand, whose answers are known."""

from dataclasses import replace
from typing import Any

import numpy
import pytest

from moe_asr.analysis.specialisation import TENTHS, labels, moved, specialisation
from moe_asr.analysis.trace import SiteRows, Trace
from moe_asr.errors import InputError

LENGTH, COUNT = 40, 30
PLACES = numpy.tile(numpy.arange(LENGTH), COUNT)


def rng(seed: int = 0) -> numpy.random.Generator:
    return numpy.random.default_rng(seed)


def phones() -> numpy.ndarray:
    """(P,) of 4 phones, each lasting 4 frames, in another order in every utterance."""
    return rng(1).integers(0, 4, (COUNT, LENGTH // 4)).repeat(4, axis=1).flatten()


def make_trace(choices: numpy.ndarray, **known: Any) -> Trace:
    """One encoder site of 4 experts, 30 utterances of 40 frames by 10 speakers."""
    offsets = numpy.arange(0, len(choices) + 1, LENGTH)
    zeros = numpy.zeros(len(choices), numpy.float32)
    utterances = tuple(
        {"id": f"u{i}", "speaker": f"s{i % 10}", "split": "noise" if i % 10 < 5 else "clean", "language": None}
        for i in range(len(offsets) - 1)
    )
    said = {"phone": phones(), "word": numpy.full(len(choices), -1)} | known
    site = SiteRows(choices[:, None], zeros[:, None], zeros)
    card = {"num_experts": 4}
    symbols = {"phone": ("p", "t", "k", "s"), "word": ()}
    return Trace(card, utterances, {"encoder": offsets}, {"encoder.00.ffn_out": site}, said, symbols)


def test_experts_that_follow_phones_are_explained_by_phones_alone() -> None:
    trace = make_trace((phones() + 1) % 4)
    (found,) = specialisation(trace, "phone", draws=60).values()
    assert found.classes == ("p", "t", "k", "s")
    assert found.explained == pytest.approx(1.0)
    assert found.p_value == pytest.approx(1 / 61)
    assert (found.table > 0).sum() == 4
    experts, said = found.table.nonzero()
    expected = numpy.log2(found.table.sum() / found.table.sum(1))[experts]
    assert found.lift[experts, said].tolist() == pytest.approx(expected.tolist())
    assert (found.lift[found.table == 0] == -numpy.inf).all()
    assert (found.p_cells < 0.01).all()
    (of_speakers,) = specialisation(trace, "speaker", draws=60).values()
    assert of_speakers.explained < 0.1
    assert of_speakers.p_value > 0.05
    assert (of_speakers.p_cells == 1).all()


def test_experts_that_follow_speakers_are_not_said_to_follow_phones_or_the_noise() -> None:
    speaker = numpy.arange(COUNT).repeat(LENGTH) % 10
    trace = make_trace(numpy.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])[speaker])
    (of_speakers,) = specialisation(trace, "speaker", draws=60, least=1).values()
    assert of_speakers.explained == pytest.approx(1.0)
    assert of_speakers.p_value == pytest.approx(1 / 61)
    for kind in ("phone", "split"):
        (found,) = specialisation(trace, kind, draws=60).values()
        assert found.p_value > 0.05
        assert (found.p_cells > 0.05).all()


def test_independent_choices_that_last_are_inside_the_null_where_a_test_of_frames_would_not_be() -> None:
    """Choices that last 8 frames: phones explain more of them than of frames that are independent."""
    p_values = []
    for seed in range(30):
        lasting = rng(100 + seed).integers(0, 4, (COUNT, LENGTH // 8)).repeat(8, axis=1).flatten()
        (found,) = specialisation(make_trace(lasting), "phone", draws=19, seed=seed).values()
        p_values.append(found.p_value)
    assert numpy.mean(numpy.array(p_values) <= 0.05) < 0.17
    assert 0.35 < numpy.mean(p_values) < 0.65


def test_what_follows_the_position_is_found_against_rotated_utterances_only() -> None:
    trace = make_trace(PLACES // 12)
    (found,) = specialisation(trace, "position", draws=40).values()
    assert found.classes == TENTHS
    assert found.explained == pytest.approx(1.0, abs=0.01)
    assert found.p_value == pytest.approx(1 / 41)
    (chance,) = specialisation(make_trace(rng().integers(0, 4, LENGTH * COUNT)), "position", draws=40).values()
    assert chance.p_value > 0.05


def test_the_null_keeps_utterances_and_speakers_whole() -> None:
    trace = make_trace(PLACES % 4)
    of_split, _ = labels(trace, "split")
    speakers = numpy.arange(COUNT) % 10
    for seed in range(5):
        drawn = moved(trace, of_split, "split", "encoder", rng(seed)).reshape(COUNT, LENGTH)
        assert (drawn == drawn[:, :1]).all()
        assert len(set(zip(speakers, drawn[:, 0], strict=True))) == 10
        assert drawn[:, 0].sum() == of_split.sum() / LENGTH
    turned = moved(trace, PLACES, "position", "encoder", rng())[:LENGTH]
    assert set(numpy.diff(turned) % LENGTH) == {1}
    assert turned[0] != 0


def test_labels_of_tokens_are_read_in_the_order_of_the_decoder() -> None:
    said = ({"tokens": ["a", "b"], "speaker": "x"}, {"tokens": [], "speaker": None})
    offsets = {stack: numpy.array([0, 3, 4]) for stack in ("left_to_right", "right_to_left")}
    trace = Trace({"num_experts": 2}, said, offsets, {}, {}, {})
    for stack, order in (
        ("left_to_right", ["<sos>", "a", "b", "<sos>"]),
        ("right_to_left", ["<sos>", "b", "a", "<sos>"]),
    ):
        found, names = labels(trace, "token", stack)
        assert [names[i] for i in found] == order
    assert labels(trace, "speaker", "left_to_right")[0].tolist() == [0, 0, 0, -1]


def test_what_is_not_known_is_refused() -> None:
    trace = make_trace(PLACES % 4)
    for kind, sentence in {
        "word": "the trace knows no word",
        "language": "the trace knows no language",
        "token": "positions of 'encoder' have no 'token': frames have phone, word",
        "age": "have no 'age'",
    }.items():
        with pytest.raises(InputError, match=sentence):
            specialisation(trace, kind)
    with pytest.raises(InputError, match="fewer than 2 classes of 'phone' have 5000 positions"):
        specialisation(trace, "phone", least=5000)
    with pytest.raises(InputError, match="with sites in 'left_to_right'"):
        specialisation(trace, "phone", "left_to_right")
    with pytest.raises(InputError, match="at least 2 utterances"):
        specialisation(replace(trace, utterances=trace.utterances[:1]), "phone")

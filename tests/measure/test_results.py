import json

import pytest

from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.measure import results
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.results import Scored
from moe_asr.measure.rtf import TimedBatch, speed_receipt


def corpus(speakers: int) -> list[Scored]:
    """Each speaker s says two sentences of three words, of which s % 3 are wrong."""
    hypotheses = ["One, two three", "one two four", "one five four"]
    return [
        Scored(f"{s}-{i}", "one two three", hypotheses[s % 3 if i else 0], f"speaker{s}")
        for s in range(speakers)
        for i in range(2)
    ]


def test_the_result_holds_rates_edits_and_receipts() -> None:
    speed = speed_receipt([TimedBatch(1.0, 2.0, 4.0)], batch=2, warm_up=1)
    result = results.test_set_result(corpus(6), normalizer("basic"), [Unit.word, Unit.char], speed)
    assert json.loads(json.dumps(result, allow_nan=False))["speed"]["rtf_quartiles"] == [0.25, 0.25, 0.25]
    assert result["wer"] == pytest.approx(6 / 36)
    assert result["wer_ci95"][0] < result["wer"] < result["wer_ci95"][1]
    assert 0 < result["cer_ci95"][0] < result["cer"] < result["cer_ci95"][1]
    assert result["cer"] != result["wer"]
    kept = ("unit", "num_utterances", "num_tokens", "substitutions", "deletions", "insertions", "num_speakers", "rtf")
    assert [result[key] for key in kept] == ["word", 12, 36, 6, 0, 0, 6, 0.25]
    assert result["interval"]["clusters"] == 6
    assert result["normalizer"] == normalizer("basic").receipt()
    assert sum(row["num_tokens"] for row in result["per_speaker"].values()) == 36


def test_few_speakers_get_a_table_instead_of_an_interval() -> None:
    result = results.test_set_result(corpus(3), normalizer("basic"), [Unit.word], None)
    assert result["wer_ci95"] is None
    assert result["per_speaker"]["speaker2"] == {"wer": pytest.approx(2 / 6), "num_utterances": 2, "num_tokens": 6}
    assert {s: row["wer"] for s, row in result["per_speaker"].items()} == pytest.approx(
        {"speaker0": 0, "speaker1": 1 / 6, "speaker2": 2 / 6}
    )
    assert "rtf" not in result


def test_the_normaliser_and_the_unit_make_the_rate() -> None:
    raw = results.test_set_result(corpus(3), normalizer("none"), [Unit.word], None)
    assert raw["wer"] > results.test_set_result(corpus(3), normalizer("basic"), [Unit.word], None)["wer"]
    phones = results.test_set_result([Scored("u", "a b", "a c")], normalizer("none"), [Unit.phone], None)
    assert (phones["per"], phones["num_speakers"]) == (0.5, None)
    assert "wer" not in phones


def test_every_utterance_counts_once_and_has_a_speaker_or_none_has() -> None:
    word, none = [Unit.word], normalizer("none")
    with pytest.raises(InputError, match="The utterance 1-0 was scored twice"):
        results.test_set_result([*corpus(3), corpus(3)[2]], none, word, None)
    with pytest.raises(InputError, match="The speaker of x is not known"):
        results.test_set_result([*corpus(3), Scored("x", "a", "a")], none, word, None)
    with pytest.raises(InputError, match="no utterance"):
        results.test_set_result([], none, word, None)

"""Weights tried on kept n-bests choose what decoding with them chooses; dev chooses, test never."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from moe_asr.analysis.evaluation import evaluate_set
from moe_asr.analysis.tuning import candidates, refuse_test, tune, worth
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.tune import TuneConfig
from moe_asr.data.batches import read_all
from moe_asr.data.manifest import Utterance, describe, read_split
from moe_asr.decoding import context
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.decoding.search import search
from moe_asr.errors import InputError
from moe_asr.models.encoder import EncoderOutput
from moe_asr.runs.recognizer import Recognizer

VALUES = {
    "ctc_weight": [0.0, 3.0],
    "reverse_weight": [0.0, 1.0],
    "length_penalty": [0.0, 1.0],
    "blank_penalty": [-3.0, 0.0, 3.0],
    "lm_weight": [0.0, 1.0],
    "token_bonus": [0.0, 2.0],
}


@pytest.fixture(scope="module")
def untaught(untrained: Path) -> Recognizer:
    return Recognizer.load(untrained)


@pytest.mark.parametrize("mode", DecodeMode)
def test_every_point_has_the_errors_of_decoding_with_it(untaught: Recognizer, mode: DecodeMode, tmp_path: Path) -> None:
    given = DecodeConfig(mode, beam=4, batch=5)
    found = tune(untaught, untaught.config, ["dev"], given, VALUES)
    dev = read_split(untaught.config.data.path, "dev")
    points = list(product(*found.weights.values()))
    assert found.errors.size == len(points) >= 2
    for point, errors in zip(points, found.errors.flatten(), strict=True):
        decode = replace(given, **dict(zip(found.weights, point, strict=True)))
        result = evaluate_set(untaught, dev, untaught.config, decode, tmp_path / "x.jsonl")
        assert errors == result["substitutions"] + result["deletions"] + result["insertions"]
        for own, one in ((found.best_result, found.best), (found.given_result, found.given)):
            if decode == one:
                assert {key: result[key] for key in own} == own
    assert found.errors.min() < found.errors.max()
    best = found.best_result
    assert best["substitutions"] + best["deletions"] + best["insertions"] == found.errors.min() >= found.oracle
    assert (found.given, found.unreadable) == (given, 0)


@torch.inference_mode()
def searched(recognizer: Recognizer, encoded: EncoderOutput, decode: DecodeConfig) -> list[list[Hypothesis]]:
    return search(recognizer.model, encoded, decode, recognizer.tokenizer)


class Loved:
    """A language model that loves some tokens."""

    start = 0

    def __init__(self, path: str, symbols: tuple[str, ...], weight: float, token_bonus: float) -> None:
        self.weight, self.bonus = weight, token_bonus

    def extend(self, state: int, token: int) -> tuple[int, float]:
        return state + 1, self.weight * (5.0 * (token % 3) - state) + self.bonus

    def finish(self, state: int) -> float:
        return -0.5 * self.weight * state


@pytest.mark.parametrize("mode", [DecodeMode.ctc_prefix_beam, DecodeMode.attention_rescoring])
def test_a_language_model_is_weighed_anew(
    untaught: Recognizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: DecodeMode
) -> None:
    monkeypatch.setattr(context, "_load_lm", Loved)
    given = DecodeConfig(mode, beam=4, lm="x", lm_weight=0.4, token_bonus=0.7, hotwords=["one"])
    cuts = read_split(untaught.config.data.path, "dev")
    encoded = untaught.encode(list(read_all(cuts, 16000)[0].values()))
    lm, ctc = Loved("", (), 1.0, 0.0), replace(given, mode=DecodeMode.ctc_prefix_beam, nbest=4)
    for row, nbest in zip(candidates(untaught, encoded, given), searched(untaught, encoded, ctc), strict=True):
        for c, hypothesis in zip(row, nbest, strict=True):
            assert c.tokens == len(hypothesis.tokens)
            assert c.lm == pytest.approx(worth(lm, hypothesis.tokens))
            assert c.own + 0.4 * c.lm + 0.7 * c.tokens == pytest.approx(hypothesis.score)
    found = tune(untaught, untaught.config, ["dev"], given, VALUES)
    assert {"lm_weight": [0.0, 0.4, 1.0], "token_bonus": [0.0, 0.7, 2.0]}.items() <= found.weights.items()
    result = evaluate_set(untaught, cuts, untaught.config, given, tmp_path / "x.jsonl")
    assert found.given_result["wer"] == result["wer"]


def test_equally_good_weights_stay_what_they_were(trained: Path) -> None:
    recognizer = Recognizer.load(trained)
    given = DecodeConfig(DecodeMode.attention_rescoring, ctc_weight=2e6)  # beside which no decoder counts
    values = {**VALUES, "ctc_weight": [1e6, 3e6], "blank_penalty": [0.0]}
    found = tune(recognizer, recognizer.config, ["train"], given, values)
    assert len(found.weights["ctc_weight"]) == 3 <= len(found.weights["reverse_weight"])
    assert found.errors.min() == found.errors.max()
    assert found.best == given
    assert (found.better, found.worse) == (0, 0)


def test_what_judges_may_not_choose(untaught: Recognizer, digits: Path) -> None:
    for splits in (["seen"], ["dev", "unseen"]):
        with pytest.raises(InputError, match=r"utterances belong to the run's test sets \(e\.g\. (un)?seen-"):
            tune(untaught, untaught.config, splits, DecodeConfig(), VALUES)
    composed = [composition("x", "dev-v000-00000"), composition("y", describe(read_split(digits, "seen")[1]).id)]
    refuse_test(untaught.config, str(digits), composed[:1])
    with pytest.raises(InputError, match=r"^1 of 2 utterances belong to the run's test sets \(e\.g\. y\)"):
        refuse_test(untaught.config, str(digits), composed)
    moved = replace(untaught.config, data=replace(untaught.config.data, path="gone"))
    with pytest.raises(InputError, match="judge and never choose"):
        refuse_test(moved, str(digits), composed)


def composition(name: str, *sources: str) -> Utterance:
    return Utterance(name, 1.0, "", None, None, None, None, sources)


def test_a_model_without_reverse_decoder_keeps_its_weight_at_nothing(
    untaught: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = {"left_to_right": untaught.model.decoders["left_to_right"]}
    monkeypatch.setitem(untaught.model.__dict__["_modules"], "decoders", decoders)
    found = tune(untaught, untaught.config, ["dev"], DecodeConfig(DecodeMode.attention_rescoring, beam=3), VALUES)
    assert found.weights["reverse_weight"] == [0.0]
    assert found.best.reverse_weight == 0.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reverse_weight": [0.5, 1.5]}, "reverse_weight=[0.5, 1.5] must hold no value below 0 or above 1."),
        ({"ctc_weight": [-1.0]}, "ctc_weight=[-1.0] must hold no value below 0 or above inf."),
        (
            {"decode": DecodeConfig(DecodeMode.ctc_prefix_beam, lm="x", lm_weight=0.0)},
            "decode.lm_weight=0.0 hears nothing of the language model to tune: write decode.lm_weight=0.3.",
        ),
    ],
)
def test_values_that_cannot_be_tried_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        TuneConfig("run", **options)  # type: ignore[arg-type]
    assert str(refused.value) == sentence

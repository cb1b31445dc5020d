"""One door to all modes: how many hypotheses come out, for whom, and what a model must have."""

from dataclasses import replace

import pytest
import torch

from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.decoding.search import ctc_log_probs, search
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.models.encoder import EncoderOutput

TOKENIZER = Tokenizer(TokenUnit.char, (*SPECIALS, "a", "b", "▁"))


@pytest.mark.parametrize("mode", DecodeMode)
@pytest.mark.parametrize("placement", ["none", "both"])
@torch.inference_mode()
def test_a_batch_changes_no_hypothesis(make_model, mode, placement):
    model = make_model(placement=placement)
    torch.manual_seed(5)
    features, lengths = torch.randn(4, 83, 11, dtype=torch.float64), torch.tensor([83, 60, 31, 3])
    config = DecodeConfig(mode, beam=4, nbest=1 if mode is DecodeMode.ctc_greedy else 3)
    together = search(model, model.encode(features, lengths), config, TOKENIZER)
    for found, row, length in zip(together, features, lengths.tolist(), strict=True):
        encoded = model.encode(row[None, :length], torch.tensor([length]))
        (expected,) = search(model, encoded, config, TOKENIZER)
        assert [(h.tokens, h.frames) for h in found] == [(h.tokens, h.frames) for h in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-9)
            assert one.confidence == pytest.approx(other.confidence, abs=1e-9)
            assert one.token_confidences == pytest.approx(other.token_confidences, abs=1e-6)
    assert [len(found) for found in together[:3]] == [config.nbest] * 3
    assert len({tuple(h.tokens for h in found) for found in together}) >= 3
    assert together[3][0].tokens == ()


@pytest.mark.parametrize("mode", DecodeMode)
@torch.inference_mode()
def test_every_hypothesis_comes_with_times_and_confidences(make_model, encoded, mode):
    config = DecodeConfig(mode, beam=20, nbest=1 if mode is DecodeMode.ctc_greedy else 5)
    for found, length in zip(search(make_model(), encoded, config, TOKENIZER), (6, 4, 1, 0), strict=True):
        assert 1 <= len(found) <= config.nbest
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({h.tokens for h in found}) == len(found)
        for h in found:
            assert list(h.frames) == sorted(set(h.frames))
            assert all(0 <= frame < length for frame in h.frames)
            assert len(h.frames) == len(h.tokens) or (mode is DecodeMode.attention and h.frames == ())
            assert len(h.token_confidences) == len(h.tokens)
            assert all(0 < c <= 1 for c in (h.confidence, *h.token_confidences))


@torch.inference_mode()
def test_the_weights_of_rescoring_reorder(make_model, encoded):
    model, config = make_model(), DecodeConfig(DecodeMode.attention_rescoring, beam=20, nbest=20, reverse_weight=0.5)
    by_ctc = [h.tokens for h in search(model, encoded, replace(config, mode="ctc_prefix_beam"), TOKENIZER)[0]]
    for ctc_weight in (0.0, 1e6):
        found = [h.tokens for h in search(model, encoded, replace(config, ctc_weight=ctc_weight), TOKENIZER)[0]]
        assert sorted(found) == sorted(by_ctc)
        assert (found == by_ctc) == (ctc_weight > 0)


@torch.inference_mode()
def test_a_blank_penalty_is_taken_off_the_logit(make_model, encoded):
    model = make_model()
    logits = model.ctc.output(encoded.frames)
    logits[..., 0] -= 2.5
    found = ctc_log_probs(model, encoded.frames, DecodeConfig(blank_penalty=2.5))
    assert (found - logits.log_softmax(-1)).abs().max() < 1e-12
    config = DecodeConfig(DecodeMode.ctc_prefix_beam)
    few, many = (search(model, encoded, replace(config, blank_penalty=p), TOKENIZER)[0][0] for p in (-9.0, 9.0))
    assert len(few.tokens) < len(many.tokens)


@torch.inference_mode()
def test_hotwords_reach_the_prefix_beam_and_the_rescoring(make_model, encoded):
    model = make_model()
    for mode in (DecodeMode.ctc_prefix_beam, DecodeMode.attention_rescoring):
        config = DecodeConfig(mode, hotwords=["b b b"], hotword_bonus=50.0)
        best = search(model, encoded, config, TOKENIZER)[0][0]
        assert TOKENIZER.decode(best.tokens).count("b b b") == 1
        without = search(model, encoded, replace(config, hotwords=[]), TOKENIZER)[0][0]
        assert "b b b" not in TOKENIZER.decode(without.tokens)


@pytest.mark.parametrize(
    ("mode", "decoders", "sentence"),
    [
        ("attention", (0, 0), "this model has no left-to-right decoder: write decode.mode=ctc_prefix_beam."),
        (
            "attention_rescoring",
            (0, 0),
            "this model has no left-to-right decoder: write decode.reverse_weight=1.0 or another decode.mode.",
        ),
        (
            "attention_rescoring",
            (1, 0),
            "this model has no right-to-left decoder: write decode.reverse_weight=0.0 or another decode.mode.",
        ),
    ],
)
@torch.inference_mode()
def test_a_decoder_that_is_missing_is_named(make_model, encoded, mode, decoders, sentence):
    with pytest.raises(InputError) as refused:
        search(make_model(*decoders), encoded, DecodeConfig(DecodeMode(mode)), TOKENIZER)
    assert str(refused.value) == sentence


@torch.inference_mode()
def test_single_precision_on_long_utterances_stays_finite(make_model):
    model = make_model(placement="both").float()
    torch.manual_seed(6)
    encoded = EncoderOutput(torch.randn(2, 300, 16), torch.tensor([300, 211]), ())
    for mode in DecodeMode:
        for found in search(model, encoded, DecodeConfig(mode, beam=3), TOKENIZER):
            assert -20_000 < found[0].score < 0
            assert found[0].tokens

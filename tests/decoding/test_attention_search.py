"""The decoders' searches against one hypothesis at a time."""

from itertools import product

import pytest
import torch

from moe_asr.decoding.attention import attention_rescoring, attention_search
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.models.decoder import Decoder
from moe_asr.models.encoder import EncoderOutput

EOS = 2


def alone(encoded: EncoderOutput, row: int) -> EncoderOutput:
    length = int(encoded.frame_lengths[row])
    return EncoderOutput(encoded.frames[row : row + 1, :length], encoded.frame_lengths[row : row + 1], ())


def gains(model, encoded, row, text, name="left_to_right"):
    """The log probability of each token of a text and of its end, by a pass of its own."""
    decoder, inputs = model.decoders[name], torch.tensor([[EOS, *text]])
    logits, _ = decoder(
        inputs, torch.tensor([len(text) + 1]), decoder.memory(alone(encoded, row)), routers=model.routers
    )
    chosen = logits[0].log_softmax(-1)[torch.arange(len(text) + 1), torch.tensor([*text, EOS])]
    return chosen.tolist()


@pytest.mark.parametrize("placement", ["none", "both"])
@torch.inference_mode()
def test_a_step_at_a_time_is_a_pass_over_all_tokens(make_model, encoded, placement):
    model = make_model(layers=2, placement=placement)
    decoder = model.decoders["left_to_right"]
    memory, tokens = decoder.memory(encoded), torch.randint(0, 6, (8, 5))
    tokens[:, 0] = EOS
    whole, _ = decoder(tokens, torch.full((8,), 5), memory, routers=model.routers)
    state = decoder.start(8)
    for place in range(5):
        logits, state = decoder.step(tokens[:, place], memory, state, model.routers)
        assert (logits - whole[:, place]).abs().max() < 1e-12
    rows = torch.arange(8) // 2
    again, _ = decoder(tokens, torch.full((8,), 5), memory, rows, model.routers)
    assert (again - whole).abs().max() < 1e-12


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@torch.inference_mode()
def test_a_beam_wider_than_the_lattice_finds_the_best_of_all_texts(make_model, encoded, penalty):
    model = make_model()
    few = EncoderOutput(encoded.frames[:, :3], torch.tensor([3, 2, 1, 0]), ())
    log_probs = model.ctc_log_probs(few.frames)
    found = attention_search(model, few, log_probs, beam=200, nbest=200, length_penalty=penalty)
    others = [token for token in range(6) if token != EOS]
    for row, limit in enumerate((3, 2, 1)):
        expected = {}
        for length in range(limit + 1):
            for text in product(others, repeat=length):
                each = gains(model, few, row, text)[: max(limit, 1)]  # cut at the limit, a text has no end
                expected[text] = sum(each) / max(length, 1) ** penalty
        assert {h.tokens: h.score for h in found[row]} == pytest.approx(expected, abs=1e-9)
        assert found[row][0].score == pytest.approx(max(expected.values()))
        assert [h.score for h in found[row]] == sorted((h.score for h in found[row]), reverse=True)
        for h in found[row][:9]:
            assert h.token_confidences == pytest.approx(
                torch.tensor(gains(model, few, row, h.tokens)[:-1]).exp().tolist(), abs=1e-6
            )
            assert all(0 <= frame < limit for frame in h.frames)
            assert len(h.frames) in (len(h.tokens), 0)
    assert found[3] == [Hypothesis((), 0.0, (), 1.0, ())]


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 0.6, 1.0])
@torch.inference_mode()
def test_stopping_early_changes_no_hypothesis(make_model, encoded, penalty, monkeypatch):
    model = make_model()
    model.decoders["left_to_right"].output.bias[EOS] += 1.0  # some hypotheses end before others
    log_probs, steps = model.ctc_log_probs(encoded.frames), []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, *args: steps.append(1) or step(self, *args))
    every = attention_search(model, encoded, log_probs, beam=6, nbest=6, length_penalty=penalty)
    taken = len(steps)
    assert [found[:1] for found in every] == attention_search(model, encoded, log_probs, 6, 1, penalty)
    assert len(steps) - taken < taken or penalty


@torch.inference_mode()
def test_rescoring_scores_each_hypothesis_as_if_alone(make_model, encoded):
    model = make_model(placement="both")
    texts = [[(3, 4, 4), (5,), ()], [(4,)], [(3,), (4, 5)], [()]]
    nbest = [[Hypothesis(t, -1.5 * i, (0,) * len(t)) for i, t in enumerate(row)] for row in texts]
    found = attention_rescoring(model, encoded, nbest, ctc_weight=0.5, reverse_weight=0.3)
    for row, (given, hypotheses) in enumerate(zip(texts, found, strict=True)):
        assert sorted(h.tokens for h in hypotheses) == sorted(given)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for h in hypotheses:
            forth = gains(model, encoded, row, h.tokens)
            back = gains(model, encoded, row, h.tokens[::-1], "right_to_left")
            attention = 0.7 * sum(forth) + 0.3 * sum(back)
            assert h.score == pytest.approx(attention + 0.5 * -1.5 * given.index(h.tokens), abs=1e-9)
            assert h.confidence == pytest.approx(torch.tensor(attention / (len(h.tokens) + 1)).exp().item(), rel=1e-5)
            pairs = torch.tensor([forth[:-1], back[:-1][::-1]]).exp().mean(0).tolist()
            assert h.token_confidences == pytest.approx(pairs, rel=1e-5)
            assert len(h.frames) == len(h.tokens)


@torch.inference_mode()
def test_equals_keep_their_order_and_unused_decoders_do_not_run(make_model, encoded):
    model = make_model(reverse_layers=0)
    twins = [Hypothesis((3,), -1.0, (frame,)) for frame in (0, 1, 2)]
    found = attention_rescoring(model, encoded, [twins, twins[:1], twins[:2], twins], 0.5, 0.0)
    assert [h.frames for h in found[0]] == [(0,), (1,), (2,)]
    assert [len(row) for row in found] == [3, 1, 2, 3]
    assert found[0][0].score == pytest.approx(sum(gains(model, encoded, 0, (3,))) - 0.5)

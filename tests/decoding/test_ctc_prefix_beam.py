"""The prefix beam against sums over all paths; in pieces, with any beam, and with contexts."""

from collections import defaultdict
from itertools import groupby, product

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_asr.decoding.context import Hotwords
from moe_asr.decoding.ctc_prefix_beam import CtcPrefixBeam
from moe_asr.decoding.hypotheses import Hypothesis

Text = tuple[int, ...]


def lattice(frames: int, classes: int, seed: int = 0, sharp: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(frames, classes, generator=generator, dtype=torch.float64)).log_softmax(-1)


def collapse(path: Text, blank: int) -> Text:
    return tuple(token for token, _ in groupby(path) if token != blank)


def all_texts(log_probs: Tensor, blank: int) -> dict[Text, float]:
    """Every text and its log probability, summed over every path."""
    sums: dict[Text, float] = defaultdict(lambda: -np.inf)
    rows = log_probs.tolist()
    for path in product(range(log_probs.shape[1]), repeat=len(rows)):
        text = collapse(path, blank)
        sums[text] = np.logaddexp(sums[text], sum(row[c] for row, c in zip(rows, path, strict=True)))
    return dict(sums)


def best_path(log_probs: Tensor, text: Text, blank: int) -> Text:
    """Frames where the runs of the tokens end in the most probable path of a text."""
    rows, best, score = log_probs.tolist(), (), -np.inf
    for path in product(range(log_probs.shape[1]), repeat=len(rows)):
        value = sum(row[c] for row, c in zip(rows, path, strict=True))
        if value > score and collapse(path, blank) == text:
            best, score = path, value
    ends = [i for i, c in enumerate(best) if c != blank and (i + 1 == len(best) or best[i + 1] != c)]
    return tuple(ends)


def run(search: CtcPrefixBeam, log_probs: Tensor) -> list[Hypothesis]:
    return search(log_probs.unsqueeze(0), torch.tensor([len(log_probs)]))[0]


@pytest.mark.parametrize(("frames", "classes", "blank"), [(1, 3, 0), (5, 3, 0), (6, 3, 2), (5, 4, 1), (7, 2, 0)])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_wider_than_the_lattice_finds_every_text_with_its_probability(frames, classes, blank, seed):
    log_probs = lattice(frames, classes, seed)
    found = run(CtcPrefixBeam(2000, blank), log_probs)
    expected = all_texts(log_probs, blank)
    assert {h.tokens: h.score for h in found} == pytest.approx(expected, abs=1e-9)
    assert len(found) == len(expected)
    assert [h.score for h in found] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-9)
    for hypothesis in found[:5]:
        assert hypothesis.frames == best_path(log_probs, hypothesis.tokens, blank)
        assert hypothesis.confidence == pytest.approx(np.exp(hypothesis.score / (len(hypothesis.tokens) + 1)))


def test_only_the_most_probable_classes_of_a_frame_may_occur():
    probabilities = torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.5, 0.4]])
    found = run(CtcPrefixBeam(2), probabilities.log())
    # Blank is the third class of both frames: 1 and 2 alone can be said, and 1 1 needs a blank.
    assert {h.tokens for h in found} <= {(1,), (2,), (1, 2), (2, 1)}
    assert found[0].tokens == (1,)
    assert found[0].score == pytest.approx(np.log(0.25))


def test_a_prefix_that_fell_out_and_came_back_is_the_same_text():
    """Were 'a' and then 'a b' told apart by their history, the sum over alignments would fall into parts."""
    log_probs = lattice(9, 4, seed=7, sharp=0.3)
    narrow, wide = run(CtcPrefixBeam(8), log_probs), run(CtcPrefixBeam(4000), log_probs)
    exact = {h.tokens: h.score for h in wide}
    texts = [h.tokens for h in narrow]
    assert len(set(texts)) == len(texts) == 8
    assert all(h.score <= exact[h.tokens] + 1e-9 for h in narrow)


@pytest.mark.parametrize("cuts", [[1] * 20, [3, 0, 7, 10], [20]])
def test_frames_may_come_in_any_portions(cuts):
    log_probs = lattice(20, 12, seed=3)
    search = CtcPrefixBeam(5, context=Hotwords([(3, 4), (5,)], 1.0))
    state, first = search.start(), 0
    for size in cuts:
        before = state
        state = search.advance(state, log_probs[first : first + size])
        first += size
        assert search.finish(state) == run(search, log_probs[:first])
        assert [h.tokens for h in search.partial(before)] == [h.tokens for h in search.partial(before)]
    assert state.frames == 20


def test_a_batch_is_its_utterances():
    batch = torch.stack([lattice(12, 6, seed) for seed in range(3)])
    lengths = torch.tensor([12, 7, 0])
    search = CtcPrefixBeam(4)
    together = search(batch, lengths)
    assert together == [run(search, row[:length]) for row, length in zip(batch, lengths.tolist(), strict=True)]
    assert together[2] == [Hypothesis((), 0.0, (), 1.0, ())]


def test_a_token_is_as_certain_as_in_the_best_frame_of_its_run():
    probabilities = torch.tensor([[0.1, 0.6, 0.3], [0.05, 0.9, 0.05], [0.2, 0.7, 0.1], [0.8, 0.1, 0.1]])
    best = run(CtcPrefixBeam(3), probabilities.double().log())[0]
    assert (best.tokens, best.frames) == ((1,), (2,))
    assert best.token_confidences == pytest.approx((0.9,))


@pytest.mark.parametrize("seed", range(5))
def test_with_hotwords_the_best_text_is_that_of_the_highest_sum(seed):
    log_probs = lattice(5, 4, seed)
    hotwords = Hotwords([(2, 3), (3, 1, 1), (1,)], 1.3)

    def bonus(text: Text) -> float:
        state, total = hotwords.start, 0.0
        for token in text:
            state, gain = hotwords.extend(state, token)
            total += gain
        return total + hotwords.finish(state)

    expected = {text: score + bonus(text) for text, score in all_texts(log_probs, 0).items()}
    found = run(CtcPrefixBeam(5000, context=hotwords), log_probs)
    assert {h.tokens: h.score for h in found} == pytest.approx(expected, abs=1e-9)
    assert found[0].score == pytest.approx(max(expected.values()))
    plain = {h.tokens: h.confidence for h in run(CtcPrefixBeam(5000), log_probs)}
    assert {h.tokens: h.confidence for h in found} == pytest.approx(plain)


def test_a_hotword_overturns_a_close_decision_and_half_of_it_does_not():
    probabilities = torch.full((5, 5), 0.02)
    for frame, (one, other) in enumerate([(1, 1), (0, 0), (2, 3), (0, 0), (4, 4)]):
        probabilities[frame, other] = 0.40
        probabilities[frame, one] = 0.54 if one != other else 0.92
    log_probs = probabilities.log()
    assert run(CtcPrefixBeam(4), log_probs)[0].tokens == (1, 2, 4)
    assert run(CtcPrefixBeam(4, context=Hotwords([(1, 3, 4)], 1.0)), log_probs)[0].tokens == (1, 3, 4)
    assert run(CtcPrefixBeam(4, context=Hotwords([(1, 3, 1)], 1.0)), log_probs)[0].tokens == (1, 2, 4)

"""Forced alignment against all paths."""

import math
from itertools import groupby, product

import pytest
import torch

from moe_asr.decoding.alignment import Alignment, align


def runs(path, blank):
    """(token, first frame, last frame) of each run of a token."""
    groups = [list(group) for _, group in groupby(enumerate(path), key=lambda place: place[1])]
    return [(group[0][1], group[0][0], group[-1][0]) for group in groups if group[0][1] != blank]


def brute(log_probs, text, blank):
    best = Alignment(-math.inf, ())
    for path in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        found = runs(path, blank)
        score = sum(float(row[c]) for row, c in zip(log_probs, path, strict=True))
        if tuple(token for token, _, _ in found) == text and score > best.score:
            best = Alignment(score, tuple((first, last) for _, first, last in found))
    return best


@pytest.mark.parametrize("blank", [0, 2])
def test_the_path_is_the_best_of_all(blank):
    torch.manual_seed(0)
    tokens = [t for t in range(3) if t != blank]
    texts = [(), (tokens[0],), (tokens[0], tokens[0]), (tokens[1], tokens[0]), (tokens[0], tokens[0], tokens[0])]
    lengths = [6, 1, 5, 4, 4]
    log_probs = torch.randn(5, 6, 3, dtype=torch.float64).log_softmax(-1)
    padded = torch.tensor([[*text, *[-1] * (3 - len(text))] for text in texts])
    counts = torch.tensor([len(text) for text in texts])
    found = align(log_probs, torch.tensor(lengths), padded, counts, blank)
    for one, row, length, text in zip(found, log_probs, lengths, texts, strict=True):
        expected = brute(row[:length], text, blank)
        assert one.score == pytest.approx(expected.score, abs=1e-12)
        assert one.spans == expected.spans
    assert found[4] == Alignment(-math.inf, ())  # three equal tokens need five frames


def test_texts_of_one_utterance_share_its_frames():
    torch.manual_seed(1)
    log_probs = torch.randn(2, 7, 5).log_softmax(-1)
    lengths, tokens = torch.tensor([7, 5]), torch.tensor([[1, 2], [3, 3], [4, 1], [2, 0]])
    counts = torch.tensor([2, 2, 2, 1])
    together = align(log_probs, lengths, tokens, counts)
    rows = torch.tensor([0, 0, 1, 1])
    assert together == align(log_probs[rows], lengths[rows], tokens, counts)
    assert [len(one.spans) for one in together] == counts.tolist()


def test_no_frames_hold_the_empty_text_alone():
    log_probs, lengths = torch.zeros(2, 0, 4), torch.tensor([0, 0])
    found = align(log_probs, lengths, torch.tensor([[0], [1]]), torch.tensor([0, 1]))
    assert found == [Alignment(0.0, ()), Alignment(-math.inf, ())]

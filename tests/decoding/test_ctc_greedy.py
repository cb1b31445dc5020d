import math
from itertools import groupby

import pytest
import torch

from moe_asr.decoding.ctc_greedy import ctc_greedy


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_equals_a_plain_collapse(blank):
    torch.manual_seed(0)
    log_probs = torch.randn(40, 12, 4).log_softmax(-1)
    lengths = torch.randint(0, 13, (40,))
    for hypothesis, row, length in zip(ctc_greedy(log_probs, lengths, blank), log_probs, lengths.tolist(), strict=True):
        path, score = [], 0.0
        for frame in range(length):
            best = int(row[frame].argmax())
            path.append((best, frame))
            score += float(row[frame, best])
        runs = [next(run) for token, run in groupby(path, key=lambda place: place[0]) if token != blank]
        assert hypothesis.tokens == tuple(token for token, _ in runs)
        assert hypothesis.frames == tuple(frame for _, frame in runs)
        assert hypothesis.score == pytest.approx(score)
        runs = [list(run) for token, run in groupby(path, key=lambda place: place[0]) if token != blank]
        peaks = [max(float(row[f, token]) for token, f in run) for run in runs]
        assert hypothesis.token_confidences == pytest.approx(torch.tensor(peaks).exp().tolist())
        assert hypothesis.confidence == pytest.approx(math.exp(score / (len(runs) + 1)))


def test_a_repeat_needs_a_blank_between():
    ids = torch.tensor([[3, 3, 0, 3, 1, 1]])
    log_probs = torch.nn.functional.one_hot(ids, 4).float().mul(9).log_softmax(-1)
    (hypothesis,) = ctc_greedy(log_probs, torch.tensor([6]))
    assert hypothesis.tokens == (3, 3, 1)
    assert hypothesis.frames == (0, 3, 4)

"""The best CTC path: the most probable class of every frame, repeats merged, blanks dropped."""

import torch
from torch import Tensor

from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.tensors import lengths_to_mask


def ctc_greedy(log_probs: Tensor, frame_lengths: Tensor, blank: int = 0) -> list[Hypothesis]:
    """log_probs (B,N,V), frame_lengths (B,) -> one hypothesis per utterance.

    Its score is the log probability of the path, its frames are where each run of a token begins.
    """
    best, ids = log_probs.max(-1)
    valid = lengths_to_mask(frame_lengths, ids.shape[1])
    begins = valid & (ids != blank)
    begins[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    scores = best.double().where(valid, 0.0).sum(1)
    counts = begins.sum(1).tolist()
    tokens = ids[begins].cpu().split(counts)
    frames = torch.where(begins)[1].cpu().split(counts)
    return [
        Hypothesis(tuple(t.tolist()), score, tuple(f.tolist()))
        for t, score, f in zip(tokens, scores.tolist(), frames, strict=True)
    ]

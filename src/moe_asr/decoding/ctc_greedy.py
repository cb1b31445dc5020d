"""The best CTC path: the most probable class of every frame, repeats merged, blanks dropped."""

import torch
from torch import Tensor

from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.tensors import lengths_to_mask


def ctc_greedy(log_probs: Tensor, frame_lengths: Tensor, blank: int = 0) -> list[Hypothesis]:
    """log_probs (B,N,V), frame_lengths (B,) -> one hypothesis per utterance.

    Its score is the log probability of the path, its frames are where each run of a token begins, and a token is as
    certain as in the best frame of its run.
    """
    best, ids = log_probs.max(-1)
    valid = lengths_to_mask(frame_lengths, ids.shape[1])
    spoken = valid & (ids != blank)
    begins = spoken.clone()
    begins[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    scores = best.double().where(valid, 0.0).sum(1)
    counts = begins.sum(1)
    run = begins.flatten().cumsum(0)[spoken.flatten()] - 1
    peaks = best.new_zeros(int(counts.sum())).scatter_reduce(0, run, best[spoken].exp(), "amax")
    confidences = (scores / (counts + 1)).exp().tolist()
    rows = [values.cpu().split(counts.tolist()) for values in (ids[begins], torch.where(begins)[1], peaks)]
    return [
        Hypothesis(tuple(tokens.tolist()), score, tuple(frames.tolist()), confidence, tuple(peak.tolist()))
        for tokens, frames, peak, score, confidence in zip(*rows, scores.tolist(), confidences, strict=True)
    ]

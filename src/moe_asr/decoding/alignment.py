"""Forced alignment: when CTC hears the tokens of a given text, on its most probable path."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_asr.tensors import lengths_to_mask


@dataclass(frozen=True)
class Alignment:
    """score: log probability of the path; spans: first and last frame of each token.

    Where the frames are too few for the tokens: -inf and no spans.
    """

    score: float
    spans: tuple[tuple[int, int], ...]


def align(
    log_probs: Tensor, frame_lengths: Tensor, tokens: Tensor, token_lengths: Tensor, blank: int = 0
) -> list[Alignment]:
    """log_probs (B,N,V), frame_lengths (B,), tokens (H,U) with any padding, token_lengths (H,) -> one path each.

    The utterances in order have as many adjoining texts each. Viterbi over the states blank, y1, blank,
    y2, ... (Graves et al. 2006, section 4.1, with maxima for sums).
    """
    (B, N, _), (H, U), device = log_probs.shape, tokens.shape, log_probs.device
    row = torch.arange(H, device=device) // (H // B)
    frame_lengths = frame_lengths[row]
    tokens = tokens.masked_fill(~lengths_to_mask(token_lengths, U), blank)
    states = F.pad(torch.stack([torch.full_like(tokens, blank), tokens], 2).flatten(1), (0, 1), value=blank)
    S = states.shape[1]
    may_skip = F.pad((states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2]), (2, 0))
    emitted = log_probs[row[:, None, None], torch.arange(N, device=device)[:, None], states.unsqueeze(1)]
    score = torch.full_like(states, -torch.inf, dtype=log_probs.dtype)
    score[:, 0] = 0.0  # what an utterance without frames ends with
    running = lengths_to_mask(frame_lengths, N)
    if N:
        score = torch.where(running[:, :1], emitted[:, 0], score)
        score[:, 2:] = -torch.inf
    moves = torch.zeros(N, H, S, dtype=torch.long, device=device)
    for frame in range(1, N):
        one, two = (F.pad(score, (step, 0), value=-torch.inf)[:, :S] for step in (1, 2))
        best, moves[frame] = torch.stack([score, one, two.masked_fill(~may_skip, -torch.inf)]).max(0)
        score = torch.where(running[:, frame, None], best + emitted[:, frame], score)
    last = 2 * token_lengths.unsqueeze(1)
    ends, choice = score.gather(1, torch.cat([last, (last - 1).clamp(min=0)], 1)).max(1)
    state = last.squeeze(1) - choice * (token_lengths > 0)
    path = torch.zeros(H, N, dtype=torch.long, device=device)
    for frame in reversed(range(N)):
        path[:, frame] = state.where(running[:, frame], 0)
        state = state - moves[frame].gather(1, state.unsqueeze(1)).squeeze(1).where(running[:, frame], 0)
    rows = zip(ends.tolist(), path.tolist(), token_lengths.tolist(), strict=True)
    return [Alignment(end, _spans(row, count) if end > -torch.inf else ()) for end, row, count in rows]


def _spans(path: list[int], count: int) -> tuple[tuple[int, int], ...]:
    """The states of all frames -> where each of the tokens begins and ends."""
    frames: list[list[int]] = [[] for _ in range(count)]
    for frame, state in enumerate(path):
        if state % 2:
            frames[state // 2].append(frame)
    return tuple((found[0], found[-1]) for found in frames)

"""Connectionist temporal classification: the output layer over frames and its loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.errors import InputError


def ctc_feasible(tokens: Tensor, token_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
    """(B,) bool: whether an alignment exists, i.e. frames >= tokens + immediate repeats."""
    pair = torch.arange(1, max(tokens.shape[1], 1), device=tokens.device) < token_lengths.unsqueeze(1)
    repeats = ((tokens[:, 1:] == tokens[:, :-1]) & pair).sum(1)
    return frame_lengths >= (token_lengths + repeats).clamp(min=1)


class CtcHead(nn.Module):
    def __init__(self, width: int, vocab_size: int, blank: int) -> None:
        super().__init__()
        self.blank = blank
        self.output = nn.Linear(width, vocab_size)

    def log_probs(self, frames: Tensor) -> Tensor:
        """(B,N,d) -> (B,N,V), float32 or wider."""
        logits = self.output(frames)
        return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def loss(self, frames: Tensor, frame_lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """Negative log likelihood summed over utterances, divided by their number.

        Raises InputError where an utterance has no alignment: its loss would be infinite, and zeroing it would hide it.
        """
        feasible = ctc_feasible(tokens, token_lengths, frame_lengths)
        if not bool(feasible.all()):
            bad = (~feasible).nonzero().flatten().tolist()
            raise InputError(
                f"{len(bad)} of {len(tokens)} utterances have fewer frames than CTC needs for their tokens "
                f"(rows {bad} of the batch): leave out utterances with frames < tokens + repeats."
            )
        log_probs = self.log_probs(frames).transpose(0, 1)
        loss = F.ctc_loss(log_probs, tokens, frame_lengths, token_lengths, blank=self.blank, reduction="sum")
        return loss / len(tokens)

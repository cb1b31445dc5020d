"""Lengths, masks and chunking: the shape vocabulary of the whole program.

B utterances or streams, T feature frames (10 ms), N frames (encoder output, 40 ms) or tokens, D width, F mel bins,
V vocabulary, E experts, K experts chosen per position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths -> (B, size) bool, True on valid positions."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


@dataclass(frozen=True)
class Chunking:
    """How far an encoder frame may look.

    size: encoder frames (40 ms) per chunk; a frame sees its whole chunk but nothing after it. None = the utterance.
    left: chunks of left context besides the own chunk. None = all.
    """

    size: int | None = None
    left: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"a chunk needs at least 1 frame, got size={self.size} (None means full context)")
        if self.left is not None and self.left < 0:
            raise ValueError(f"left context cannot be negative, got left={self.left} (None means all)")


def chunk_mask(queries: Tensor, keys: Tensor, chunking: Chunking) -> Tensor:
    """Which key positions each query position may attend to (U2, arXiv 2012.05481, section 3.2).

    queries (..., Q) and keys (..., K) are absolute frame positions; the result (..., Q, K) is True where key j lies in
    ``[(i // size - left) * size, (i // size + 1) * size)``. Padding is the caller's business.
    """
    q, k = queries.unsqueeze(-1), keys.unsqueeze(-2)
    if chunking.size is None:
        return torch.ones_like(q - k, dtype=torch.bool)
    first_of_chunk = q.div(chunking.size, rounding_mode="floor") * chunking.size
    allowed = k < first_of_chunk + chunking.size
    if chunking.left is not None:
        allowed = allowed & (k >= first_of_chunk - chunking.left * chunking.size)
    return allowed

"""Multi-head attention: relative self-attention of the encoder, self- and cross-attention of the decoders.

Heads are laid out as (B, N, h, d/h), so that caches and batches are cut along the same axes everywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0, causal: bool = False
) -> Tensor:
    """q (B,Q,h,c), k and v (B,K,h,c) -> (B,Q,h*c).

    mask: bool (True = may attend) or a float to add to the scores, broadcastable to (B,h,Q,K). A query that may attend
    to nothing gives 0.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    return y.transpose(1, 2).flatten(2)


KeyCache = tuple[Tensor, ...]
"""What a relative self-attention keeps of past frames: keys and values (B,K,h,c), position scores (B,K,h)."""


class RelativeSelfAttention(nn.Module):
    """``softmax(((q+u) k' + (q+v) p') / sqrt(c))`` where p is the projected absolute position of the key.

    Transformer-XL's four terms (arXiv 1901.02860, section 3.3) without its relative shift, as U2++ computes them.
    Rewritten as ``(q+u)(k+p)' + (v-u) p'``: the position joins its key once, the last term is one number per key and
    head, and attention over cached keys costs no more than without positions.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.position = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width // heads)))
        self.position_bias = nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, width // heads)))
        self.out = nn.Linear(width, width)

    def empty_cache(self, streams: int) -> KeyCache:
        keys = self.content_bias.new_zeros(streams, 0, *self.content_bias.shape)
        return keys, keys, keys[..., 0]

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyCache | None = None
    ) -> tuple[Tensor, KeyCache]:
        """x (B,N,d); positions: their sinusoids (N,d), or (B,N,d) with a cache of K past frames; mask (B|1,1,N|1,K+N).

        Returns (B,N,d) and the cache with the new frames at its end.
        """
        width = x.shape[-1]
        bias = self.qkv.bias + F.pad(self.content_bias.flatten(), (0, 2 * width))
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, keys, values = qkv.unbind(2)
        p = self.position(positions).unflatten(-1, (self.heads, -1))
        keys = keys + p
        scores = ((self.position_bias - self.content_bias) * p).sum(-1) * q.shape[-1] ** -0.5
        if cache is not None:
            keys, values, scores = (torch.cat(pair, 1) for pair in zip(cache, (keys, values, scores), strict=True))
        added = scores.mT.unsqueeze(-2).to(q.dtype)  # (h,1,K) or (B,h,1,K)
        if mask is not None:
            added = added.where(mask, -torch.inf)
        added = added.expand(len(x), self.heads, x.shape[1], keys.shape[1])
        y = attend(q, keys, values, added, self.dropout if self.training else 0.0)
        return self.out(y), (keys, values, scores)


class CausalSelfAttention(nn.Module):
    """Plain self-attention to the position itself and earlier ones."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.out(attend(q, k, v, dropout=self.dropout if self.training else 0.0, causal=True))


class CrossAttention(nn.Module):
    """Attention from tokens to encoder frames, whose keys and values are computed once per utterance."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def memory(self, frames: Tensor) -> Tensor:
        """(B,N,d) -> keys and values (B,N,2,h,c)."""
        return self.kv(frames).unflatten(-1, (2, self.heads, -1))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = memory.unbind(2)
        return self.out(attend(q, k, v, mask, self.dropout if self.training else 0.0))

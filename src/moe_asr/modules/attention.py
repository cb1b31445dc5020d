"""Multi-head attention: relative self-attention of the encoder, self- and cross-attention of the decoders.

Heads are laid out as (B, N, h, d/h), so that caches and batches are cut along the same axes everywhere.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.modules.dropout import dropout


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, dropout_rate: float = 0.0
) -> Tensor:
    """q (B,Q,h,c), k and v (B,K,h,c) -> (B,Q,h*c).

    mask (True = may attend) and bias (added to the scores) are broadcastable to (B,h,Q,K). A query that may attend to
    nothing gives 0.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.is_cpu and torch.is_grad_enabled():  # the fused kernel has no gradient of a bias and no dropout on CPUs
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        scores = scores if bias is None else scores + bias
        scores = scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        y = (dropout(weights, dropout_rate) if dropout_rate > 0 else weights) @ v
        y = y if mask is None else y.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    else:
        if bias is not None:
            mask = (bias if mask is None else bias.where(mask, -torch.inf)).to(q.dtype)
            mask = mask.expand(*q.shape[:3], k.shape[2])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_rate)
    return y.transpose(1, 2).flatten(2)


KeyCache = tuple[Tensor, ...]
"""What self-attention keeps of the past: keys and values together (B,K,2,h,c), or apart where positions are relative,
(B,K,h,c) each, and position scores (B,K,h)."""


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
        q, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        p = self.position(positions).unflatten(-1, (self.heads, -1))
        keys = keys + p
        scores = ((self.position_bias - self.content_bias) * p).sum(-1) * q.shape[-1] ** -0.5
        if cache is not None:
            keys, values, scores = (torch.cat(pair, 1) for pair in zip(cache, (keys, values, scores), strict=True))
        bias = scores.mT.unsqueeze(-2)  # (h,1,K) or (B,h,1,K)
        y = attend(q + self.content_bias, keys, values, mask, bias, self.dropout if self.training else 0.0)
        return self.out(y), (keys, values, scores)


class SelfAttention(nn.Module):
    """Plain self-attention: of decoders, and of encoders whose positions are in the input or rotary."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.out = nn.Linear(width, width, bias)

    def empty_cache(self, rows: int) -> KeyCache:
        weight = self.out.weight
        return (weight.new_zeros(rows, 0, 2, self.heads, weight.shape[1] // self.heads),)

    def forward(
        self, x: Tensor, rotation: Tensor | None, mask: Tensor | None, cache: KeyCache | None = None
    ) -> tuple[Tensor, KeyCache]:
        """x (B,U,d), mask broadcastable to (B,1,U,K+U), cache of K earlier keys and values -> (B,U,d) and all of them.

        rotation: of queries and keys, from `RotaryPositions`.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if rotation is not None:
            qkv = torch.cat([_rotate(qkv[:, :, :2], rotation), qkv[:, :, 2:]], 2)
        kv = qkv[:, :, 1:] if cache is None else torch.cat([cache[0], qkv[:, :, 1:]], 1)
        q, (k, v) = qkv[:, :, 0], kv.unbind(2)
        return self.out(attend(q, k, v, mask, dropout_rate=self.dropout if self.training else 0.0)), (kv,)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (B,N,2,h,c): its first and second half are the real and imaginary parts of what is rotated."""
    cosine, sine = rotation.unsqueeze(-2).unsqueeze(-2).unbind(-4)
    real, imaginary = x.chunk(2, -1)
    return torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], -1)


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
        return self.out(attend(q, k, v, mask, dropout_rate=self.dropout if self.training else 0.0))

"""Multi-head attention: relative self-attention of the encoder, self- and cross-attention of the decoders.

Heads are laid out as (B, N, h, d/h), so that caches and batches are cut along the same axes everywhere.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.inference import InferencePrecision
from moe_asr.modules import fused
from moe_asr.modules.dropout import dropout
from moe_asr.modules.packed import Identity, bias_of, give_up, identity_of, pack_linear
from moe_asr.modules.positions import Places, sinusoids

PLACES = 1024
"""Of so many positions (41 s of frames) a fused attention keeps what they add."""


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
"""What self-attention keeps of the past: keys and values (B,K,2,h,c), or where positions are relative (B,K,h,2c+1) with
position scores last."""


def extended(cache: Tensor, count: int) -> Tensor:
    """(B,K,...) -> (B,K+count,...): the cache, and behind it memory that is not written yet.

    In place where the cache lies in memory that goes on, which is then used up: a cache is extended once.
    """
    step, end = cache.stride(1), cache.shape[1] + count
    size = (len(cache), end, *cache.shape[2:])
    apart, first = cache.stride(0), cache.storage_offset()
    if first + end * step > apart or len(cache) * apart * cache.itemsize > cache.untyped_storage().nbytes():
        longer = cache.new_empty(len(cache), 2 * end + 2 * count, *cache.shape[2:])[:, :end]
        longer[:, :-count] = cache
        return longer
    return cache.as_strided(size, cache.stride(), first)


def joined(cache: Tensor, new: Tensor) -> Tensor:
    """(B,K,...), (B,N,...) -> (B,K+N,...). In inference mode that is done in place, so that a cache serves once."""
    if not torch.is_inference_mode_enabled():
        return torch.cat([cache, new], 1)
    longer = extended(cache.to(new.dtype), new.shape[1])
    longer[:, -new.shape[1] :] = new
    return longer


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
        heads, width = self.content_bias.shape
        return (self.content_bias.new_zeros(streams, 0, heads, 2 * width + 1),)

    def forward(
        self, x: Tensor, positions: Tensor | Places, mask: Tensor | None, cache: KeyCache | None = None
    ) -> tuple[Tensor, KeyCache]:
        """x (B,N,d); positions: their sinusoids (N,d), or (B,N,d) with a cache of K past frames; mask (B|1,1,N|1,K+N).

        Returns (B,N,d) and the cache `joined` with the new frames, if there was one.
        """
        if isinstance(positions, tuple):
            positions = sinusoids(positions[0], x.shape[-1]).to(x.dtype)
        q, keys, values = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        place = self.place(positions)
        keys, scores = keys + place[..., :-1], place[..., -1:]
        if cache is not None:
            cache = (joined(cache[0], torch.cat([keys, values, scores], -1)),)
            keys, values, scores = cache[0].split([q.shape[-1], q.shape[-1], 1], -1)
        bias = scores.squeeze(-1).mT.unsqueeze(-2)  # (h,1,K) or (B,h,1,K)
        y = attend(q + self.content_bias, keys, values, mask, bias, self.dropout if self.training else 0.0)
        return self.out(y), cache or ()

    def place(self, positions: Tensor) -> Tensor:
        """Sinusoids (...,d) -> (...,h,c+1): what positions add to keys, and to the scores of these."""
        p = self.position(positions).unflatten(-1, (self.heads, -1))
        scores = ((self.position_bias - self.content_bias) * p).sum(-1, keepdim=True) * p.shape[-1] ** -0.5
        return torch.cat([p, scores], -1)


class FusedSelfAttention(RelativeSelfAttention):
    """What `fuse_attention` makes of one in place: parameters are the same, and rule as in a `PackedLinear`.

    What the first `PLACES` positions add is kept.
    """

    packed: Callable[..., Tensor]
    packed_place: Callable[[Tensor], Tensor]
    places: Tensor
    packed_from: Identity

    def forward(
        self, x: Tensor, positions: Tensor | Places, mask: Tensor | None, cache: KeyCache | None = None
    ) -> tuple[Tensor, KeyCache]:
        if not isinstance(positions, tuple) or torch.is_grad_enabled() or identity_of(self) != self.packed_from:
            return super().forward(x, positions, mask, cache)
        index, limit = positions
        places = self._places(limit)
        if limit > PLACES:
            places = self.packed_place(sinusoids(index.flatten(), x.shape[-1]))
            index = torch.arange(index.numel()).view(index.shape)
        count, dtype, rows = x.shape[1], x.dtype, x.float().contiguous()
        empty = rows.new_empty(len(x), 0, self.heads, places.shape[-1] * 2 - 1)
        memory = extended(empty if cache is None else cache[0], count)
        y = self.packed(places, index, rows, memory, mask)
        return y.to(dtype), () if cache is None else (memory,)

    def _places(self, limit: int) -> Tensor:
        if len(self.places) < limit <= PLACES:
            count = min(max(2 * len(self.places), limit), PLACES)
            self.places = self.packed_place(sinusoids(torch.arange(count), self.out.out_features))
        return self.places


def fuse_attention(module: RelativeSelfAttention, precision: InferencePrecision, release: bool = False) -> None:
    """Raises InputError where the fused kernel is not supported; heads must be multiples of `fused.lanes` wide."""
    first, last = (fused.pack(m.weight[None], m.bias[None], precision) for m in (module.qkv, module.out))
    position = pack_linear(module.position.weight, bias_of(module.position), precision, fuse=True)
    bias, difference = module.content_bias.detach().clone(), (module.position_bias - module.content_bias).detach()

    def place(positions: Tensor) -> Tensor:
        p = position(positions).unflatten(-1, bias.shape)
        return torch.cat([p, (difference * p).sum(-1, keepdim=True) * p.shape[-1] ** -0.5], -1)

    if release:
        give_up(module.qkv.weight, module.out.weight, module.position.weight)
    module.__class__ = FusedSelfAttention
    assert isinstance(module, FusedSelfAttention)
    module.packed, module.packed_place = lambda *given: fused.attention((first, last), bias, *given), place
    module.places, module.packed_from = bias.new_empty(0, len(bias), bias.shape[1] + 1), identity_of(module)


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
        """x (B,U,d), mask broadcastable to (B,1,U,K+U), cache of K keys and values -> (B,U,d) and all, `joined`.

        rotation: of queries and keys, from `RotaryPositions`.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if rotation is not None:
            qkv = torch.cat([_rotate(qkv[:, :, :2], rotation), qkv[:, :, 2:]], 2)
        kv = qkv[:, :, 1:] if cache is None else joined(cache[0], qkv[:, :, 1:])
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

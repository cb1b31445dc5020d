"""A Transformer decoder: the next token from the tokens so far and the encoder's frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_asr.config.model import DecoderConfig
from moe_asr.config.placement import MoESite
from moe_asr.models.encoder import NO_ROUTERS, EncoderOutput
from moe_asr.modules.attention import CrossAttention, SelfAttention
from moe_asr.modules.dropout import Dropout
from moe_asr.modules.moe.routing import NOTHING, RoutingTrace, Side, SiteTrace
from moe_asr.modules.moe.sharing import Routers
from moe_asr.modules.positions import AbsolutePositions
from moe_asr.tensors import lengths_to_mask


@dataclass(frozen=True)
class Memory:
    """Cross-attention keys and values of B utterances, (B,N,2,h,c) per layer; mask (B,1,1,N), None without padding."""

    layers: tuple[Tensor, ...]
    mask: Tensor | None

    def select(self, rows: Tensor) -> "Memory":
        return Memory(tuple(kv[rows] for kv in self.layers), None if self.mask is None else self.mask[rows])


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each after a norm."""

    def __init__(
        self, config: DecoderConfig, width: int, site: MoESite, feed_forward: Callable[[MoESite], nn.Module]
    ) -> None:
        super().__init__()
        self.site = site
        self.norm_self, self.norm_cross, self.norm_ffn = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = SelfAttention(width, config.heads, config.self_attention_dropout)
        self.cross_attention = CrossAttention(width, config.heads, config.cross_attention_dropout)
        self.ffn_out = feed_forward(site)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        valid: Tensor,
        past: Tensor,
        memory: Tensor,
        mask: Tensor | None,
        routers: Routers,
        side: Side,
        cache: Tensor | None,
    ) -> tuple[Tensor, RoutingTrace, Tensor]:
        """x (H,U,d), memory of B utterances: H / B adjoining rows each -> (H,U,d), routing, self-attention cache."""
        y, (cache,) = self.self_attention(self.norm_self(x), None, past, None if cache is None else (cache,))
        x = x + self.dropout(y)
        queries = self.norm_cross(x).reshape(len(memory), -1, x.shape[-1])  # one long row per utterance
        x = x + self.dropout(self.cross_attention(queries, memory, mask).view_as(x))
        y, routing = self.ffn_out(self.norm_ffn(x), valid, self.site, routers.get(self.site), side)
        trace = () if routing is None else (SiteTrace(self.site, routing, valid),)
        return x + self.dropout(y), trace, cache


DecoderState = tuple[Tensor, ...]
"""Self-attention keys and values (H,K,2,h,c) of each layer, for the K tokens that H hypotheses begin with."""


class Decoder(nn.Module):
    """stack: the name of its sites; feed_forward: makes the feed-forward layer of a site, dense or MoE."""

    layers: Sequence[DecoderLayer]

    def __init__(
        self,
        config: DecoderConfig,
        layers: int,
        width: int,
        vocab_size: int,
        stack: str,
        feed_forward: Callable[[MoESite], nn.Module],
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = AbsolutePositions(config.position_dropout)
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            DecoderLayer(config, width, MoESite(stack, i, "ffn_out"), feed_forward) for i in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocab_size)

    def memory(self, encoded: EncoderOutput) -> Memory:
        """What cross-attention needs of B utterances, computed once for however many hypotheses."""
        valid = lengths_to_mask(encoded.frame_lengths, encoded.frames.shape[1])
        mask = None if bool(valid.all()) else valid[:, None, None]
        return Memory(tuple(layer.cross_attention.memory(encoded.frames) for layer in self.layers), mask)

    def forward(
        self,
        tokens: Tensor,
        token_lengths: Tensor,
        memory: Memory,
        rows: Tensor | None = None,
        routers: Routers = NO_ROUTERS,
        side: Side = NOTHING,
    ) -> tuple[Tensor, RoutingTrace]:
        """tokens (H,U) that begin with the start token, token_lengths (H,) -> logits (H,U,V) of the next token each.

        rows (H,): the utterance of each hypothesis; None: the utterances in order, with as many adjoining hypotheses
        each, which then share keys and values without a copy. Padding may be any valid token. side: of the utterances.
        """
        if rows is not None:
            memory, side = memory.select(rows), side.select(rows)
        valid = lengths_to_mask(token_lengths, tokens.shape[1])
        x, trace, _ = self._run(tokens, valid, memory, (None,) * len(self.layers), 0, routers, side)
        return self.output(self.norm(x)), trace

    def start(self, hypotheses: int) -> DecoderState:
        return tuple(layer.self_attention.empty_cache(hypotheses)[0] for layer in self.layers)

    def step(
        self,
        tokens: Tensor,
        memory: Memory,
        state: DecoderState,
        routers: Routers = NO_ROUTERS,
        side: Side = NOTHING,
    ) -> tuple[Tensor, DecoderState]:
        """The newest token (H,) of each hypothesis, the start token first -> logits (H,V) of the next, and the state.

        The utterances in order have as many adjoining hypotheses each.
        """
        tokens = tokens.unsqueeze(1)
        valid = torch.ones_like(tokens, dtype=torch.bool)
        x, _, state = self._run(tokens, valid, memory, state, state[0].shape[1], routers, side)
        return self.output(self.norm(x[:, 0])), state

    def _run(
        self,
        tokens: Tensor,
        valid: Tensor,
        memory: Memory,
        state: Sequence[Tensor | None],
        first: int,
        routers: Routers,
        side: Side,
    ) -> tuple[Tensor, RoutingTrace, DecoderState]:
        """tokens (H,U), of which the first is at position `first`, after the last layer."""
        positions = first + torch.arange(tokens.shape[1], device=tokens.device)
        past = torch.arange(first + tokens.shape[1], device=tokens.device) <= positions.unsqueeze(1)
        x, _ = self.positions(self.embedding(tokens), positions)
        side = side.at(positions, repeats=len(tokens) // len(memory.layers[0]))
        trace: RoutingTrace = ()
        after = []
        for layer, kv, cache in zip(self.layers, memory.layers, state, strict=True):
            x, decided, cache = layer(x, valid, past, kv, memory.mask, routers, side, cache)
            trace += decided
            after.append(cache)
        return x, trace, tuple(after)

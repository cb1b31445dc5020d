"""The encoder, a Conformer or a Transformer: one layer code path, offline under a mask or chunk by chunk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_asr.config.model import EncoderConfig, Positions
from moe_asr.config.placement import MoESite
from moe_asr.errors import InputError
from moe_asr.modules.attention import RelativeSelfAttention, SelfAttention
from moe_asr.modules.cmvn import Cmvn
from moe_asr.modules.convolution import ConvolutionModule
from moe_asr.modules.dropout import Dropout
from moe_asr.modules.moe.routing import NOTHING, RoutingTrace, Side, SiteTrace, concatenate
from moe_asr.modules.moe.sharing import Routers
from moe_asr.modules.positions import make_positions
from moe_asr.modules.subsampling import FACTOR, OVERLAP, frame_lengths, make_subsampling
from moe_asr.tensors import Chunking, chunk_mask, lengths_to_mask

FULL_CONTEXT = Chunking()
NO_ROUTERS: Routers = {}

LayerState = tuple[Tensor, ...]
"""Of attention (B,K,...), then the convolution's history (B,k-1,d) if any; the newest frame is last."""


@dataclass(frozen=True)
class EncoderOutput:
    """frames (B,N,d), frame_lengths (B,), the routing of all sites, and the outputs of the layers asked for."""

    frames: Tensor
    frame_lengths: Tensor
    routing: RoutingTrace
    taps: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderState:
    """Where B streams stand; bounded in size when the left context is limited.

    pending (B,P,F), pending_lengths (B,): feature frames that no chunk has used up; positions (B,): frames encoded.
    """

    chunking: Chunking
    pending: Tensor
    pending_lengths: Tensor
    positions: Tensor
    layers: tuple[LayerState, ...]

    def select(self, rows: Tensor) -> "EncoderState":
        """The streams `rows`, in any order or repetition, so that streams can leave or be multiplied."""
        layers = tuple(tuple(tensor[rows] for tensor in layer) for layer in self.layers)
        return EncoderState(self.chunking, self.pending[rows], self.pending_lengths[rows], self.positions[rows], layers)


class EncoderLayer(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward (arXiv 2005.08100), each after a norm.

    Of these, half a feed-forward and the convolution may be left out; without both it is a pre-norm Transformer layer.
    """

    def __init__(self, config: EncoderConfig, index: int, feed_forward: Callable[[MoESite], nn.Module]) -> None:
        super().__init__()
        width = config.width
        self.macaron, self.convolutional = config.macaron, config.kernel is not None
        self.sites = MoESite("encoder", index, "ffn_in"), MoESite("encoder", index, "ffn_out")
        if config.macaron:
            self.norm_ffn_in, self.ffn_in = nn.LayerNorm(width), feed_forward(self.sites[0])
        self.norm_attention = nn.LayerNorm(width)
        self.attention: RelativeSelfAttention | SelfAttention
        if config.positions is Positions.relative:
            self.attention = RelativeSelfAttention(width, config.heads, config.attention_dropout)
        else:
            self.attention = SelfAttention(width, config.heads, config.attention_dropout, config.attention_bias)
        if config.kernel is not None:
            self.norm_convolution = nn.LayerNorm(width)
            self.convolution = ConvolutionModule(
                width, config.kernel, config.causal, config.conv_norm, config.activation
            )
        self.norm_ffn_out, self.ffn_out = nn.LayerNorm(width), feed_forward(self.sites[1])
        self.norm = nn.LayerNorm(width) if config.macaron or self.convolutional else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def start(self, streams: int) -> LayerState:
        history = (self.convolution.empty_history(streams),) if self.convolutional else ()
        return *self.attention.empty_cache(streams), *history

    def restart(self, state: LayerState, ended: Tensor) -> LayerState:
        """Where a stream `ended` (B,): the history of a fresh one; its attention never looks at negative positions."""
        if not self.convolutional:
            return state
        fresh = self.convolution.empty_history(len(ended))
        return *state[:-1], fresh.where(ended[:, None, None], state[-1])

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None,
        valid: Tensor,
        mask: Tensor | None,
        routers: Routers,
        side: Side,
        state: LayerState | None,
    ) -> tuple[Tensor, RoutingTrace, LayerState]:
        """x (B,N,d) -> (B,N,d), the routing of this layer's MoE sites, and the state with the new frames appended."""
        caches = None if state is None else state[:-1] if self.convolutional else state
        share, trace, history = 0.5 if self.macaron else 1.0, [], ()
        if self.macaron:
            y, routing = self.ffn_in(self.norm_ffn_in(x), valid, self.sites[0], routers.get(self.sites[0]), side)
            x = torch.add(x, self.dropout(y), alpha=share)
            trace.append((self.sites[0], routing))
        y, caches = self.attention(self.norm_attention(x), positions, mask, caches)
        x = x + self.dropout(y)
        if self.convolutional:
            y, *history = self.convolution(self.norm_convolution(x), valid, None if state is None else state[-1])
            x = x + self.dropout(y)
        y, routing = self.ffn_out(self.norm_ffn_out(x), valid, self.sites[1], routers.get(self.sites[1]), side)
        x = self.norm(torch.add(x, self.dropout(y), alpha=share))
        trace.append((self.sites[1], routing))
        decided = tuple(SiteTrace(site, routing, valid) for site, routing in trace if routing is not None)
        return x, decided, (*caches, *history)


class Encoder(nn.Module):
    """feed_forward: makes the feed-forward layer of a site, dense or MoE."""

    layers: Sequence[EncoderLayer]

    def __init__(self, config: EncoderConfig, mel_bins: int, feed_forward: Callable[[MoESite], nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.cmvn = Cmvn(mel_bins)
        self.subsampling, self.overlap = make_subsampling(config, mel_bins), OVERLAP[config.subsampling]
        self.positions = make_positions(config)
        self.layers = nn.ModuleList(EncoderLayer(config, i, feed_forward) for i in range(config.layers))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(config.width)
        self.checkpointed = False
        """Compute layers anew for the gradient, under the same dropout, instead of keeping what they held."""

    def frame_lengths(self, feature_lengths: Tensor) -> Tensor:
        return frame_lengths(feature_lengths, self.config.subsampling)

    def forward(
        self,
        features: Tensor,
        feature_lengths: Tensor,
        chunking: Chunking = FULL_CONTEXT,
        routers: Routers = NO_ROUTERS,
        taps: Sequence[int] = (),
        side: Side = NOTHING,
    ) -> EncoderOutput:
        """Whole utterances: features (B,T,F), feature_lengths (B,) -> frames (B,N,d).

        taps: layers whose output is wanted too, counted from 0. Raises InputError for a chunk size where the
        convolution or a router looks ahead.
        """
        self._refuse_lookahead(chunking, routers)
        missing = FACTOR + self.overlap - features.shape[1]  # not even one frame: encode one, which is not valid
        x = self.subsampling(self.cmvn(F.pad(features, (0, 0, 0, missing)) if missing > 0 else features))
        size, lengths = x.shape[1], self.frame_lengths(feature_lengths)
        positions = torch.arange(size, device=x.device)
        valid, mask = lengths_to_mask(lengths, size), None
        if chunking.size is not None and chunking.size < size:
            mask = chunk_mask(positions, positions, chunking)
        if not bool(valid.all()):
            mask = valid[:, None, None] if mask is None else mask & valid[:, None, None]
        x, trace, _, tapped = self._layers(x, positions, valid, mask, routers, side, taps=taps)
        return EncoderOutput(x, lengths, trace, tapped)

    def start(self, streams: int, chunking: Chunking = FULL_CONTEXT) -> EncoderState:
        """Fresh streams; with chunking.size None each is encoded at its end. Raises InputError like `forward`."""
        self._refuse_lookahead(chunking, NO_ROUTERS)
        zero = torch.zeros(streams, dtype=torch.long, device=self.cmvn.mean.device)
        pending = self.cmvn.mean.new_zeros(streams, 0, len(self.cmvn.mean))
        return EncoderState(chunking, pending, zero, zero, tuple(layer.start(streams) for layer in self.layers))

    def step(
        self,
        features: Tensor,
        feature_lengths: Tensor,
        state: EncoderState,
        routers: Routers = NO_ROUTERS,
        finish: Tensor | None = None,
        side: Side = NOTHING,
    ) -> tuple[EncoderOutput, EncoderState]:
        """Takes any number of new feature frames per stream: features (B,T,F), feature_lengths (B,); 0 = idle.

        Every chunk that is complete is encoded, the rest waits in the state; a chunk of n frames is complete once
        4n+3 feature frames (4n where they are stacked) have come since its beginning, of which the last 3 serve the
        next chunk too. finish (B,):
        True where the stream ends here, so that its last, shorter chunk is encoded as well; its place is then fresh
        for another stream. Returns the new frames (B,N,d) of each stream, N = 0 if none has any, and the new state.
        The old one is consumed: in inference mode the new one's caches go on in its memory. `select` copies.
        """
        self._refuse_lookahead(state.chunking, routers)
        pending, waiting = _join(state.pending, state.pending_lengths, features, feature_lengths)
        finish = torch.zeros_like(waiting, dtype=torch.bool) if finish is None else finish
        used = torch.zeros_like(waiting)
        outputs = [EncoderOutput(self.norm.weight.new_zeros(len(features), 0, self.config.width), used, ())]
        while True:
            ready = self.frame_lengths(waiting - used)
            whole = ready.max() if state.chunking.size is None else state.chunking.size
            take = ready.clamp(max=whole).where(finish | (ready >= whole) & (state.chunking.size is not None), 0)
            if not bool(take.any()):
                break
            output, state = self._chunk(
                _cut(pending, used, FACTOR * int(take.max()) + self.overlap), take, state, routers, side
            )
            outputs.append(output)
            used = used + FACTOR * take
        waiting = (waiting - used).masked_fill(finish, 0)
        # A stream has its whole chunks first and the ragged one last, so that its frames are contiguous.
        output = EncoderOutput(
            torch.cat([o.frames for o in outputs], 1),
            torch.stack([o.frame_lengths for o in outputs]).sum(0),
            outputs[1].routing if len(outputs) == 2 else concatenate([o.routing for o in outputs[1:]]),
        )
        layers = state.layers
        if bool(finish.any()):  # cached keys of the former stream have negative positions from now on: masked
            layers = tuple(layer.restart(old, finish) for layer, old in zip(self.layers, layers, strict=True))
        positions = state.positions.masked_fill(finish, 0)
        rest = _cut(pending, used, int(waiting.max()))
        return output, EncoderState(state.chunking, rest, waiting, positions, layers)

    def _chunk(
        self, window: Tensor, take: Tensor, state: EncoderState, routers: Routers, side: Side
    ) -> tuple[EncoderOutput, EncoderState]:
        """One chunk of every stream, of which `take` (B,) frames are real."""
        x = self.subsampling(self.cmvn(window))
        cached, size = state.layers[0][0].shape[1], x.shape[1]
        offsets = torch.arange(-cached, size, device=x.device)
        positions = state.positions.unsqueeze(1) + offsets  # (B, cached + size)
        seen = (positions >= 0) & (offsets < take.unsqueeze(1))
        mask = None if bool(seen.all()) else seen[:, None, None]
        x, trace, layers, _ = self._layers(
            x, positions[:, cached:], seen[:, cached:], mask, routers, side, state.layers
        )
        keep = int((state.positions + take).max())
        if state.chunking.size is not None and state.chunking.left is not None:
            keep = min(keep, state.chunking.left * state.chunking.size)
        history = () if self.config.kernel is None else (self.config.kernel - 1,)
        keeps = (*(keep,) * (len(layers[0]) - len(history)), *history)
        # Slots older than a stream hold anything: their position is negative.
        missing = None if bool((take == size).all()) else size - take
        layers = tuple(
            tuple(_newest(tensor, missing, n) for tensor, n in zip(layer, keeps, strict=True)) for layer in layers
        )
        return EncoderOutput(x, take, trace), replace(state, positions=state.positions + take, layers=layers)

    def _layers(
        self,
        x: Tensor,
        positions: Tensor,
        valid: Tensor,
        mask: Tensor | None,
        routers: Routers,
        side: Side,
        states: Sequence[LayerState] | None = None,
        taps: Sequence[int] = (),
    ) -> tuple[Tensor, RoutingTrace, tuple[LayerState, ...], dict[int, Tensor]]:
        x, sinusoids = self.positions(x, positions)
        side = side.at(positions)
        trace: RoutingTrace = ()
        appended, tapped = [], {}
        for i, layer in enumerate(self.layers):
            run = partial(checkpoint, layer, use_reentrant=False) if self.checkpointed and self.training else layer
            x, decided, state = run(x, sinusoids, valid, mask, routers, side, None if states is None else states[i])
            trace += decided
            if states is not None:
                appended.append(state)
            if i in taps:
                tapped[i] = x
        return self.norm(x), trace, tuple(appended), tapped

    def _refuse_lookahead(self, chunking: Chunking, routers: Routers) -> None:
        if chunking.size is None:
            return
        if not self.config.causal and self.config.kernel is not None:
            raise InputError(
                "encoder.causal=false lets the convolution look ahead, which chunks forbid: "
                "use full context, or train with encoder.causal=true."
            )
        for site in (site for layer in self.layers for site in layer.sites):
            router = routers.get(site)
            if router is not None and not router.causal:
                raise InputError(
                    f"the router of {site} looks at other positions, which chunks forbid: "
                    "use full context or another router."
                )


def _cut(rows: Tensor, first: Tensor, count: int) -> Tensor:
    """(B,P,F) -> (B,count,F) from index first (B,) on; what lies beyond the end is arbitrary."""
    index = first.unsqueeze(1) + torch.arange(count, device=first.device)
    return rows[torch.arange(len(rows), device=first.device).unsqueeze(1), index.clamp(0, max(rows.shape[1] - 1, 0))]


def _join(old: Tensor, old_lengths: Tensor, new: Tensor, new_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Appends left-aligned padded (B,T,F) to (B,P,F), stream by stream."""
    both = torch.cat([old, new.to(old.dtype)], 1)
    place = torch.arange(both.shape[1], device=old.device)
    source = place + (old.shape[1] - old_lengths.unsqueeze(1)) * (place >= old_lengths.unsqueeze(1))
    index = source.clamp(max=max(both.shape[1] - 1, 0))
    return both[torch.arange(len(old), device=old.device).unsqueeze(1), index], old_lengths + new_lengths


def _newest(tensor: Tensor, missing: Tensor | None, keep: int) -> Tensor:
    """The last `keep` entries of (B,K,...) before the last `missing` (B,) ones, which are not real (None: all are)."""
    first = tensor.shape[1] - keep
    return tensor[:, first:] if missing is None else _cut(tensor, first - missing, keep)

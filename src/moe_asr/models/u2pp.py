"""U2++ (arXiv 2106.05642): one encoder, a CTC head, decoders in both directions, and one bank of routers for all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from moe_asr.config.model import AUXILIARY, ChunkConfig, LossConfig, ModelConfig, MoEConfig, RouterConfig
from moe_asr.config.placement import DECODERS, MoESite, moe_sites, sharing_table
from moe_asr.models.batch import Batch
from moe_asr.models.ctc import CtcHead
from moe_asr.models.decoder import Decoder
from moe_asr.models.encoder import FULL_CONTEXT, Encoder, EncoderOutput
from moe_asr.modules.feed_forward import ACTIVATIONS, FeedForward
from moe_asr.modules.moe.experts import Experts
from moe_asr.modules.moe.layer import MoEFeedForward
from moe_asr.modules.moe.losses import auxiliary_losses
from moe_asr.modules.moe.routers import make_router
from moe_asr.modules.moe.routing import NOTHING, Routing, RoutingTrace, Side, SiteTrace
from moe_asr.modules.moe.sharing import RouterBank, Routers
from moe_asr.modules.moe.statistics import RoutingSums, over_ranks, routing_sums
from moe_asr.tensors import Chunking


@dataclass(frozen=True)
class Losses:
    """total: what to minimise; unweighted parts: "ctc", "att", "att_l2r", "att_r2l" and router losses, if any."""

    total: Tensor
    parts: Mapping[str, Tensor]


class AsrModel(nn.Module):
    """What every model has: an encoder, a CTC head, any mapping of decoders, the routers of all its MoE sites."""

    decoders: Mapping[str, Decoder]

    def __init__(
        self, encoder: Encoder, ctc: CtcHead, decoders: Mapping[str, Decoder], routers: RouterBank, sos_eos: int
    ) -> None:
        super().__init__()
        self.encoder, self.ctc, self.routers, self.sos_eos = encoder, ctc, routers, sos_eos
        self.decoders = nn.ModuleDict(decoders)  # type: ignore[assignment]

    def encode(
        self,
        features: Tensor,
        feature_lengths: Tensor,
        chunking: Chunking = FULL_CONTEXT,
        routers: Routers | None = None,
        side: Side = NOTHING,
    ) -> EncoderOutput:
        """`Encoder.forward` with the model's own routers, unless others are given."""
        return self.encoder(
            features, feature_lengths, chunking, self.routers if routers is None else routers, side=side
        )

    def ctc_log_probs(self, frames: Tensor) -> Tensor:
        """(B,N,d) -> (B,N,V)."""
        return self.ctc.log_probs(frames)

    def decoder_routing(
        self,
        encoded: EncoderOutput,
        hypotheses: Sequence[Sequence[int]],
        routers: Routers | None = None,
        side: Side = NOTHING,
    ) -> RoutingTrace:
        """How the decoders with MoE layers route as they read these tokens, one sequence for each utterance."""
        routers = self.routers if routers is None else routers
        stacks = {site.stack for site in self.routers.sites}
        trace: RoutingTrace = ()
        for name, decoder in self.decoders.items():
            if name in stacks:
                rows = [torch.tensor(tokens, dtype=torch.long, device=encoded.frames.device) for tokens in hypotheses]
                lengths = torch.tensor([len(row) for row in rows], device=encoded.frames.device)
                tokens = pad_sequence(rows, batch_first=True, padding_value=-1)
                inputs, _ = teacher_forcing(tokens, lengths, self.sos_eos, name == "right_to_left")
                trace += decoder(inputs, lengths + 1, decoder.memory(encoded), None, routers, side)[1]
        return trace

    def forward(
        self, batch: Batch, chunking: Chunking = FULL_CONTEXT, side: Side = NOTHING
    ) -> tuple[Losses, RoutingTrace]:
        raise NotImplementedError(f"{type(self).__name__} defines no loss.")

    def trained_sites(self) -> tuple[MoESite, ...]:
        """Those that `forward` traces."""
        return self.routers.sites

    def idle_trace(self, sites: Sequence[MoESite], zero: Tensor) -> RoutingTrace:
        """The trace of these sites if no position reached them; zero: a scalar, whose type and gradient it has."""
        if not sites:
            return ()
        wide, experts = torch.promote_types(zero.dtype, torch.float32), self.routers.routers[0].num_experts
        ids = torch.zeros(1, 0, 1, dtype=torch.long, device=zero.device)
        nothing = Routing(zero.to(wide).expand(1, 0, experts), ids, ids)
        return tuple(SiteTrace(site, nothing, ids[..., 0] > 0) for site in sites)

    def idle_loss(self) -> Tensor:
        """0, with a gradient of 0 for everything that is trained, and this process' part in sums over all of them.

        For a process that has nothing to put into a micro-batch of all processes.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss.")

    def idle_parts(self) -> list[nn.Module]:
        """What no loss reaches, and no training changes."""
        return []


class U2pp(AsrModel):
    """An AsrModel with the loss of `LossConfig`; no decoder runs whose loss has weight 0.

    expert_costs (E,): of each expert, relative to the widest, for the compute loss.
    """

    def __init__(
        self,
        encoder: Encoder,
        ctc: CtcHead,
        decoders: Mapping[str, Decoder],
        routers: RouterBank,
        sos_eos: int,
        loss: LossConfig,
        expert_costs: Tensor,
    ) -> None:
        super().__init__(encoder, ctc, decoders, routers, sos_eos)
        self.loss, self.expert_costs = loss, expert_costs

    def forward(
        self, batch: Batch, chunking: Chunking = FULL_CONTEXT, side: Side = NOTHING
    ) -> tuple[Losses, RoutingTrace]:
        """Raises InputError where an utterance is too short for CTC."""
        loss, encoded = self.loss, self.encode(batch.features, batch.feature_lengths, chunking, side=side)
        total, trace = encoded.frames.new_zeros(()), encoded.routing
        parts: dict[str, Tensor] = {}
        if loss.ctc_weight > 0:
            parts["ctc"] = self.ctc.loss(encoded.frames, encoded.frame_lengths, batch.tokens, batch.token_lengths)
            total = total + loss.ctc_weight * parts["ctc"]
        if shares := self.decoder_shares():
            attention = encoded.frames.new_zeros(())
            for name, share in shares.items():
                part, decided = self._decoder_loss(name, encoded, batch, side)
                parts["att_l2r" if name == "left_to_right" else "att_r2l"] = part
                attention, trace = attention + share * part, trace + decided
            parts["att"] = attention
            total = total + (1 - loss.ctc_weight) * attention
        for name, value in self._router_losses(trace).items():
            parts[name] = value
            total = total + getattr(loss, name) * value
        return Losses(total, parts), trace

    def decoder_shares(self) -> dict[str, float]:
        """Of each decoder that is trained, its share in the attention loss."""
        reverse = self.loss.reverse_weight
        shares = zip(DECODERS, (1 - reverse, reverse), strict=True)
        return {name: share for name, share in shares if share > 0 and self.loss.ctc_weight < 1}

    def idle_loss(self) -> Tensor:
        zero = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0
        return zero + 0.0 * sum(self._router_losses(self.idle_trace(self.trained_sites(), zero)).values())

    def trained_sites(self) -> tuple[MoESite, ...]:
        return tuple(site for site in self.routers.sites if site.stack in ("encoder", *self.decoder_shares()))

    def idle_parts(self) -> list[nn.Module]:
        """Decoders and a CTC head whose loss has weight 0, and routers that serve such decoders alone."""
        stacks = ("encoder", *self.decoder_shares())
        serving = {number for site, number in self.routers.table.items() if site.stack in stacks}
        return [
            *(decoder for name, decoder in self.decoders.items() if name not in stacks),
            *(router for number, router in enumerate(self.routers.routers) if number not in serving),
            *([self.ctc] if self.loss.ctc_weight == 0 else []),
        ]

    def _router_losses(self, trace: RoutingTrace) -> Mapping[str, Tensor]:
        """Unweighted, over the trace of all processes; asks nothing of the others where no such loss has a weight."""
        if not any(getattr(self.loss, name) for name in AUXILIARY) or (sums := routing_sums(trace)) is None:
            return {}
        if torch.is_grad_enabled() and not sums.values.requires_grad:  # on other ranks it may, and all add up gradients
            sums = RoutingSums(sums.sites, sums.values.requires_grad_())
        return auxiliary_losses(over_ranks(sums), self.loss, self.expert_costs)

    def _decoder_loss(self, name: str, encoded: EncoderOutput, batch: Batch, side: Side) -> tuple[Tensor, RoutingTrace]:
        decoder = self.decoders[name]
        reverse = name == "right_to_left"
        inputs, targets = teacher_forcing(batch.tokens, batch.token_lengths, self.sos_eos, reverse)
        memory = decoder.memory(encoded)
        logits, trace = decoder(inputs, batch.token_lengths + 1, memory, routers=self.routers, side=side)
        count = (targets >= 0).sum() if self.loss.length_normalized else len(targets)
        return label_smoothing_loss(logits, targets, self.loss.label_smoothing) / count, trace


def teacher_forcing(tokens: Tensor, token_lengths: Tensor, sos_eos: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """tokens (B,U) -> inputs and targets (B,U+1): sos y1..yn, padded with eos, and y1..yn eos, padded with -1.

    reverse: yn..y1 instead.
    """
    place, length = torch.arange(tokens.shape[1], device=tokens.device), token_lengths.unsqueeze(1)
    if reverse:
        tokens = tokens.gather(1, (length - 1 - place).clamp(min=0))
    beyond, edge = place >= length, torch.full_like(length, sos_eos)
    inputs = torch.cat([edge, tokens.masked_fill(beyond, sos_eos)], 1)
    targets = torch.cat([tokens.masked_fill(beyond, -1), torch.full_like(length, -1)], 1)
    return inputs, targets.scatter(1, length, sos_eos)


def label_smoothing_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """KL(q || softmax(logits)) summed over targets (B,U) that are not -1; logits (B,U,V).

    q is 1 - smoothing on the target and smoothing / (V - 1) on every other class; its entropy is included, so that
    the best possible loss is 0.
    """
    other = smoothing / (logits.shape[-1] - 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_norm = logits.logsumexp(-1)
    log_target = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) - log_norm
    log_all = logits.sum(-1) - logits.shape[-1] * log_norm
    negative_entropy = sum(p * math.log(q) for p, q in ((1 - smoothing, 1 - smoothing), (smoothing, other)) if p > 0)
    loss = negative_entropy - (1 - smoothing - other) * log_target - other * log_all
    return loss.masked_fill(targets < 0, 0.0).sum()


def draw_chunking(frames: int, config: ChunkConfig, generator: torch.Generator) -> Chunking:
    """The context of a training batch whose longest utterance has so many frames (U2, arXiv 2012.05481, section 3.2).

    A number in [1, frames - 1] is drawn: in its upper half it stands for full context, else for a chunk size, folded
    into [1, config.largest]. Utterances too short to be cut get full context.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))

    if not config.dynamic or frames < 2:
        return FULL_CONTEXT
    drawn = draw(1, frames - 1)
    if drawn > frames // 2:
        return FULL_CONTEXT
    size = drawn % config.largest + 1
    most = (frames - 1) // size - 1
    return Chunking(size, draw(0, most) if config.dynamic_left and most >= 0 else None)


def build_model(
    model: ModelConfig,
    moe: MoEConfig,
    router: RouterConfig,
    loss: LossConfig,
    *,
    vocab_size: int,
    mel_bins: int,
    blank: int = 0,
    sos_eos: int = 2,
) -> U2pp:
    """An untrained model, initialised from torch's global generator like torch's own layers."""
    encoder, decoder = model.encoder, model.decoder
    sites = moe_sites(model, moe.placement)

    def feed_forward(site: MoESite) -> nn.Module:
        shape = encoder if site.stack == "encoder" else decoder
        if site not in sites:
            return FeedForward(encoder.width, shape.ffn_width, shape.activation, shape.dropout)
        activation = shape.activation if moe.activation is None else moe.activation
        dropout = shape.dropout if moe.dropout is None else moe.dropout
        hidden = moe.expert_width or shape.ffn_width
        return MoEFeedForward(
            moe.expert_widths or [hidden] * moe.num_experts,
            lambda count, width: Experts(count, encoder.width, width, ACTIVATIONS[activation], dropout, moe.bias),
            FeedForward(encoder.width, moe.shared_experts * hidden, activation, dropout, moe.bias)
            if moe.shared_experts
            else None,
        )

    depths = zip(DECODERS, (decoder.layers, decoder.reverse_layers), strict=True)
    return U2pp(
        Encoder(encoder, mel_bins, feed_forward),
        CtcHead(encoder.width, vocab_size, blank),
        {
            name: Decoder(decoder, depth, encoder.width, vocab_size, name, feed_forward)
            for name, depth in depths
            if depth > 0
        },
        RouterBank(lambda: make_router(router, moe, encoder.width), sites, sharing_table(sites, moe)),
        sos_eos,
        loss,
        expert_costs(moe),
    )


def module_name(site: MoESite) -> str:
    """The name of the feed-forward layer of a site among the modules of a model."""
    stack = site.stack if site.stack == "encoder" else f"decoders.{site.stack}"
    return f"{stack}.layers.{site.layer}.{site.slot}"


def expert_costs(moe: MoEConfig) -> Tensor:
    """(E,) the width of each expert, relative to the widest."""
    widths = torch.tensor(moe.expert_widths or [1] * moe.num_experts, dtype=torch.float64)
    return widths / widths.max()


def parameter_counts(model: AsrModel) -> tuple[int, int]:
    """Trainable and frozen parameters: all, and those active at one position (top_k of num_experts, on average)."""
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for m in model.modules() if isinstance(m, Experts) for p in m.parameters())
    if experts == 0:
        return total, total
    router = model.routers.routers[0]
    return total, total - experts + experts * router.top_k // router.num_experts

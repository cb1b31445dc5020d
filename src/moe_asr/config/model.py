"""Options of the model: encoder, decoders, Mixture of Experts, router and losses. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite

from moe_asr.errors import InputError


class Activation(StrEnum):
    swish = "swish"
    relu = "relu"
    gelu = "gelu"


class Subsampling(StrEnum):
    """How feature frames (10 ms) become frames (40 ms)."""

    conv2d = "conv2d"
    """Two strided convolutions; a frame sees 7 feature frames."""
    stack = "stack"
    """Four feature frames side by side and a linear map (Omni-router)."""


class Positions(StrEnum):
    """How attention knows where a frame is."""

    relative = "relative"
    """A term of the attention for the position of the key, as in U2++."""
    sinusoidal = "sinusoidal"
    """Added to the input."""
    cape = "cape"
    """Added to the input, after random shifts and stretches in training (arXiv 2106.03143)."""
    rotary = "rotary"
    """Queries and keys are rotated by their position (arXiv 2104.09864)."""


class ConvNorm(StrEnum):
    layer_norm = "layer_norm"
    batch_norm = "batch_norm"


def require(condition: bool, sentence: str) -> None:
    """Refuses a contradictory or impossible option with one sentence that says what to write instead."""
    if not condition:
        raise InputError(sentence)


def check_rates(name: str, config: object) -> None:
    for field_name, value in vars(config).items():
        require(
            "dropout" not in field_name or 0.0 <= value < 1.0,
            f"{name}.{field_name}={value} must be at least 0 and less than 1.",
        )


@dataclass
class EncoderConfig:
    """A Conformer encoder (U2++, arXiv 2106.05642), unless values below make a Transformer of it (Omni-router).

    Without macaron and convolution its layers are those of a pre-norm Transformer.
    """

    layers: int = 6
    width: int = 144
    heads: int = 4
    ffn_width: int = 576
    subsampling: Subsampling = Subsampling.conv2d
    subsampling_channels: int | None = None
    """Channels of the two strided convolutions; null = width, as published. They dominate the cost of small models."""
    macaron: bool = True
    """Whether a layer begins with half a feed-forward layer, so that both halves count half."""
    kernel: int | None = 15
    """Taps of the depthwise convolution; null = no convolution."""
    causal: bool = True
    """Whether the convolution sees only the past; streaming needs it."""
    conv_norm: ConvNorm = ConvNorm.layer_norm
    positions: Positions = Positions.relative
    cape_shift: float = 1500.0
    """Training: the positions of an utterance shift by up to so many frames (40 ms), either way."""
    cape_scale: float = 1.1
    """Training: they stretch or shrink by up to this factor."""
    attention_bias: bool = True
    activation: Activation = Activation.swish
    dropout: float = 0.1
    position_dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        require(
            self.width % self.heads == 0,
            f"encoder.width={self.width} must be a multiple of encoder.heads={self.heads}.",
        )
        check_rates("encoder", self)
        require(self.heads > 0, f"encoder.heads={self.heads} must be at least 1.")
        require(self.layers > 0, f"encoder.layers={self.layers} must be at least 1.")
        require(
            self.kernel is None or self.kernel > 0,
            f"encoder.kernel={self.kernel} must be at least 1, or null for no convolution.",
        )
        require(
            self.attention_bias or self.positions is not Positions.relative,
            "encoder.attention_bias=false needs positions that are not terms of the attention: "
            "write encoder.positions=cape.",
        )
        require(
            self.positions is not Positions.rotary or self.width // self.heads % 2 == 0,
            f"encoder.positions=rotary needs heads of even width, not {self.width} / {self.heads}.",
        )
        require(self.cape_shift >= 0, f"encoder.cape_shift={self.cape_shift} must not be negative.")
        require(self.cape_scale >= 1, f"encoder.cape_scale={self.cape_scale} must be at least 1.")
        require(
            self.causal or self.kernel is None or self.kernel % 2 == 1,
            f"encoder.kernel={self.kernel} must be odd when encoder.causal=false (the convolution is centred).",
        )


@dataclass
class DecoderConfig:
    """Transformer decoders: `layers` left to right, `reverse_layers` right to left (0 = no such decoder)."""

    layers: int = 1
    reverse_layers: int = 1
    heads: int = 4
    ffn_width: int = 576
    activation: Activation = Activation.relu
    dropout: float = 0.1
    position_dropout: float = 0.1
    self_attention_dropout: float = 0.1
    cross_attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_rates("decoder", self)
        require(self.heads > 0, f"decoder.heads={self.heads} must be at least 1.")
        require(min(self.layers, self.reverse_layers) >= 0, "decoder.layers and reverse_layers cannot be negative.")


@dataclass
class ModelConfig:
    name: str = "u2pp"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)

    def __post_init__(self) -> None:
        require(self.name in ("u2pp", "omni"), f"model.name={self.name} is not known; write u2pp or omni.")
        require(
            self.encoder.width % self.decoder.heads == 0,
            f"model.encoder.width={self.encoder.width} must be a multiple of model.decoder.heads={self.decoder.heads}.",
        )
        require(
            self.decoder.reverse_layers == 0 or self.decoder.layers > 0,
            "model.decoder.reverse_layers needs a left-to-right decoder too: set model.decoder.layers to at least 1.",
        )


class Sharing(StrEnum):
    """Which router serves which site; a shared router is shared weights, applied to each layer's own input."""

    per_layer = "per_layer"
    """Each site has its own (Switch, U2++ MoE)."""
    shared = "shared"
    """One for all (Omni)."""
    per_stack = "per_stack"
    """One for the encoder, one for each decoder."""
    per_slot = "per_slot"
    """One for each kind of site: encoder ffn_in, encoder ffn_out, each decoder."""
    grouped = "grouped"
    """`groups` runs of neighbouring sites, in network order."""
    table = "table"
    """As `sharing_table` says."""


@dataclass
class MoEConfig:
    placement: str | None = None
    """Which feed-forward layers are MoE: none, encoder, decoder, both, or terms STACK[.LAYERS][.SLOT] joined by +."""
    sharing: Sharing = Sharing.per_layer
    groups: int = 2
    """Routers of sharing=grouped."""
    sharing_table: list[int] = field(default_factory=list)
    """The router of each site, for sharing=table, e.g. [0,0,1,1]."""
    num_experts: int = 8
    top_k: int = 2
    expert_width: int | None = None
    """Hidden width of each expert; null = ffn_width of its stack."""
    expert_widths: list[int] = field(default_factory=list)
    """One for each expert where they differ; 0 = a null expert, which contributes nothing and costs nothing."""
    shared_experts: int = 0
    """Experts beside these that every position visits, each as wide as ffn_width of its stack or expert_width."""
    bias: bool = True
    """Whether experts have biases."""
    activation: Activation | None = None
    """Of the experts; null = that of their stack."""
    dropout: float | None = None
    """Within the experts; null = that of their stack."""

    def __post_init__(self) -> None:
        require(self.num_experts >= 1, f"moe.num_experts={self.num_experts} must be at least 1.")
        require(
            1 <= self.top_k <= self.num_experts,
            f"moe.top_k={self.top_k} must lie between 1 and moe.num_experts={self.num_experts}.",
        )
        require(
            self.expert_width is None or self.expert_width >= 1,
            f"moe.expert_width={self.expert_width} must be at least 1, or null for the stack's ffn_width.",
        )
        require(
            not self.expert_widths or len(self.expert_widths) == self.num_experts,
            f"moe.expert_widths has {len(self.expert_widths)} numbers for moe.num_experts={self.num_experts}.",
        )
        require(
            not self.expert_widths or self.expert_width is None,
            "moe.expert_widths and moe.expert_width contradict each other; give one of them.",
        )
        require(
            all(width >= 0 for width in self.expert_widths) and (not self.expert_widths or any(self.expert_widths)),
            f"moe.expert_widths={self.expert_widths} must not be negative, nor all 0.",
        )
        require(self.shared_experts >= 0, f"moe.shared_experts={self.shared_experts} must not be negative.")
        require(self.groups >= 1, f"moe.groups={self.groups} must be at least 1.")
        require(
            (self.sharing is Sharing.table) == bool(self.sharing_table),
            "moe.sharing=table and moe.sharing_table belong together; give both, or neither.",
        )
        require(self.dropout is None or 0 <= self.dropout < 1, f"moe.dropout={self.dropout} must lie in [0, 1).")


class RouterLogits(StrEnum):
    """Where the preference of a position for each expert comes from."""

    linear = "linear"
    """A learned linear map of the layer's input."""
    frozen = "frozen"
    """A random linear map that is never trained: a control."""
    position = "position"
    """The position modulo the number of experts, whatever is said: a control."""


class RouterScore(StrEnum):
    softmax = "softmax"
    sigmoid = "sigmoid"
    """Each expert by itself (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""


@dataclass
class RouterConfig:
    logits: RouterLogits = RouterLogits.linear
    score: RouterScore = RouterScore.softmax
    normalize: bool = True
    """Weights of a position sum to 1: the softmax after the selection (U2++ MoE); false: raw, before it (Switch)."""
    scale: float = 1.0
    """Factor of all weights."""
    jitter: float = 0.0
    """Training: logits times a random number within 1 - jitter and 1 + jitter."""
    gumbel: float = 0.0
    """Training: temperature of Gumbel noise added to the logits before the selection."""
    capacity_factor: float | None = None
    """Training: an expert takes at most this times its even share of a batch, the rest is dropped; null = none is."""
    balance_rate: float = 0.0
    """Step of the balance bias of each site, which moves selection alone towards idle experts (arXiv 2408.15664)."""
    side_width: int = 0
    """Width of an embedding of the utterance, speaker or language that callers give the router beside its input."""

    def __post_init__(self) -> None:
        for name in ("jitter", "gumbel", "balance_rate"):
            require(getattr(self, name) >= 0, f"router.{name}={getattr(self, name)} must not be negative.")
        require(self.jitter < 1, f"router.jitter={self.jitter} must be less than 1.")
        require(self.scale > 0, f"router.scale={self.scale} must be above 0.")
        require(
            self.logits is not RouterLogits.position or self.balance_rate == 0,
            "router.logits=position decides by the position alone: write router.balance_rate=0.0.",
        )
        require(self.side_width >= 0, f"router.side_width={self.side_width} must not be negative.")
        require(
            self.capacity_factor is None or self.capacity_factor > 0,
            f"router.capacity_factor={self.capacity_factor} must be above 0, or null to drop nothing.",
        )


AUXILIARY = ("balance", "importance", "z", "entropy", "sparsity", "compute")
"""The router losses of `LossConfig`."""


@dataclass
class LossConfig:
    """``ctc_weight * CTC + (1 - ctc_weight) * ((1 - reverse_weight) * L2R + reverse_weight * R2L)`` (U2++).

    Plus, with their weights, the router losses, each averaged over sites.
    """

    ctc_weight: float = 0.3
    reverse_weight: float = 0.3
    label_smoothing: float = 0.1
    length_normalized: bool = False
    """Divide the attention loss by the target tokens instead of the utterances."""
    balance: float = 0.0
    """Weight of the Switch load-balance loss."""
    importance: float = 0.0
    """Of the mean-importance loss: squared mean probabilities."""
    z: float = 0.0
    """Of the router z-loss: squared log normaliser."""
    entropy: float = 0.0
    """Of the entropy of each decision; negative to favour unsure routers."""
    sparsity: float = 0.0
    """Of the L1 norm of each decision's probabilities, scaled to unit length."""
    compute: float = 0.0
    """Of the expected cost of a position beyond `compute_budget`."""
    compute_budget: float = 1.0
    """Share of the widest expert's cost that is free."""

    def __post_init__(self) -> None:
        for name in ("ctc_weight", "reverse_weight", "label_smoothing"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"loss.{name}={value} must lie between 0 and 1.")
        for name in ("balance", "importance", "z", "sparsity", "compute", "compute_budget"):
            require(getattr(self, name) >= 0, f"loss.{name}={getattr(self, name)} must not be negative.")
        require(isfinite(self.entropy), f"loss.entropy={self.entropy} must be a number.")


@dataclass
class ChunkConfig:
    """How the context of a training batch is drawn (U2, arXiv 2012.05481, section 3.2)."""

    dynamic: bool = True
    """Half of the batches see the full context, the others a random chunk size; false = always full context."""
    largest: int = 25
    """Upper end of the random chunk size, in encoder frames of 40 ms."""
    dynamic_left: bool = False
    """Draw the number of left chunks too, instead of all."""

    def __post_init__(self) -> None:
        require(self.largest >= 1, f"chunk.largest={self.largest} must be at least 1 frame.")

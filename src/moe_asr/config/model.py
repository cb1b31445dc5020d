"""Options of the model: encoder, decoders, Mixture of Experts, router and losses. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum

from moe_asr.errors import InputError


class Activation(StrEnum):
    swish = "swish"
    relu = "relu"
    gelu = "gelu"


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
    """A Conformer encoder (U2++, arXiv 2106.05642): conv2d x4 subsampling, macaron feed-forward, causal convolution."""

    layers: int = 6
    width: int = 144
    heads: int = 4
    ffn_width: int = 576
    subsampling_channels: int | None = None
    """Channels of the two strided convolutions; null = width, as published. They dominate the cost of small models."""
    kernel: int = 15
    """Taps of the depthwise convolution."""
    causal: bool = True
    """Whether the convolution sees only the past; streaming needs it."""
    conv_norm: ConvNorm = ConvNorm.layer_norm
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
        require(self.layers > 0 and self.kernel > 0, "encoder.layers and encoder.kernel must be at least 1.")
        require(
            self.causal or self.kernel % 2 == 1,
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
        require(self.name == "u2pp", f"model.name={self.name} is not known; write model.name=u2pp.")
        require(
            self.encoder.width % self.decoder.heads == 0,
            f"model.encoder.width={self.encoder.width} must be a multiple of model.decoder.heads={self.decoder.heads}.",
        )
        require(
            self.decoder.reverse_layers == 0 or self.decoder.layers > 0,
            "model.decoder.reverse_layers needs a left-to-right decoder too: set model.decoder.layers to at least 1.",
        )


class Placement(StrEnum):
    """Which feed-forward sites are MoE layers."""

    none = "none"
    encoder = "encoder"
    decoder = "decoder"
    both = "both"


class Sharing(StrEnum):
    """Which router serves which site: its own (Switch, U2++ MoE) or one for all of a stack (Omni)."""

    per_layer = "per_layer"
    shared = "shared"


@dataclass
class MoEConfig:
    placement: Placement = Placement.none
    sharing: Sharing = Sharing.per_layer
    num_experts: int = 8
    top_k: int = 2

    def __post_init__(self) -> None:
        require(self.num_experts >= 1, f"moe.num_experts={self.num_experts} must be at least 1.")
        require(
            1 <= self.top_k <= self.num_experts,
            f"moe.top_k={self.top_k} must lie between 1 and moe.num_experts={self.num_experts}.",
        )


class RouterSoftmax(StrEnum):
    before = "before"
    """Over all experts, before the top-k selection: the weights are the raw probabilities of the chosen (Switch)."""
    after = "after"
    """Over the chosen logits only (U2++ MoE): the weights of a position sum to 1."""


@dataclass
class RouterConfig:
    name: str = "topk"
    softmax: RouterSoftmax = RouterSoftmax.after

    def __post_init__(self) -> None:
        require(self.name == "topk", f"router.name={self.name} is not known; write router.name=topk.")


@dataclass
class LossConfig:
    """``ctc_weight * CTC + (1 - ctc_weight) * ((1 - reverse_weight) * L2R + reverse_weight * R2L)`` (U2++)."""

    ctc_weight: float = 0.3
    reverse_weight: float = 0.3
    label_smoothing: float = 0.1
    length_normalized: bool = False
    """Divide the attention loss by the target tokens instead of the utterances."""
    balance: float = 0.0
    """Weight of the Switch load-balance loss, averaged over sites."""

    def __post_init__(self) -> None:
        for name in ("ctc_weight", "reverse_weight", "label_smoothing"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"loss.{name}={value} must lie between 0 and 1.")
        require(self.balance >= 0, f"loss.balance={self.balance} must not be negative.")


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

"""Options of `moe-asr benchmark`. No torch here."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from omegaconf import MISSING

from moe_asr.config.model import LossConfig, ModelConfig, MoEConfig, RouterConfig, require


class Kind(StrEnum):
    profile = "profile"
    layer = "layer"


@dataclass
class LayerConfig:
    """The layers of `benchmark layer`; they have `moe.num_experts` experts, of which a frame needs `moe.top_k`."""

    width: int = 512
    ffn_width: int = 2048
    copies: int = 6
    """Layers that take turns, so that their weights come from memory as in a whole model; times are of one."""
    rows: list[int] = field(default_factory=lambda: [1, 4, 16, 64, 256, 1024])
    """Frames per call."""
    correlation: float = 0.98
    """Of neighbouring frames, as in speech: a few experts serve a chunk. Independent frames are timed too."""
    train_rows: int = 4096
    """Frames of a training step, against a dense layer of the same active FLOPs; 0 = no training."""
    backends: list[str] = field(default_factory=list)
    """Beside loop; empty = all there are."""

    def __post_init__(self) -> None:
        for name in ("width", "ffn_width", "copies"):
            require(getattr(self, name) >= 1, f"layer.{name}={getattr(self, name)} must be at least 1.")
        require(
            len(self.rows) > 0 and min(self.rows) >= 1, f"layer.rows={self.rows} must be counts of frames, as [1,16]."
        )
        require(self.train_rows >= 0, f"layer.train_rows={self.train_rows} must not be negative.")
        require(0.0 <= self.correlation < 1.0, f"layer.correlation={self.correlation} must be from 0 to below 1.")


@dataclass
class BenchmarkConfig:
    """What is common to all kinds, then the model and its audio, then the single layer."""

    kind: Kind = MISSING
    """profile: where the time of a model goes; layer: the backends of a MoE layer."""
    threads: int = 1
    """With 1, CPU time is measured, else wall time."""
    rounds: int = 9
    """Repetitions; medians and quartiles of them are told."""
    seed: int = 1
    """Of the random weights and inputs."""
    quick: bool = False
    """Tiny sizes: shows that it works, says nothing about speed."""
    out: str | None = None
    """Write machine, versions, options and every number to this JSON file too."""
    model: ModelConfig = field(default_factory=ModelConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    """Changes nothing here, but belongs to some models."""
    vocab_size: int = 8404
    seconds: float = 12.0
    """Audio of an utterance."""
    beam: int = 10
    """Hypotheses of the prefix beam, and rescored."""
    nonblank: float = 0.16
    """Share of frames in which CTC says something, as set by the bias of blank: what the searches have to do."""
    layer: LayerConfig = field(default_factory=LayerConfig)

    def __post_init__(self) -> None:
        for name in ("threads", "rounds", "beam"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
        require(self.vocab_size >= 4, f"vocab_size={self.vocab_size} must be at least 4, special tokens included.")
        require(self.seconds >= 0.1, f"seconds={self.seconds} must be at least 0.1.")
        require(0.0 < self.nonblank < 1.0, f"nonblank={self.nonblank} is a share of frames: write 0.16.")


def quickened(config: BenchmarkConfig) -> BenchmarkConfig:
    """The same in sizes that take an instant."""
    encoder = replace(config.model.encoder, layers=2, width=32, heads=2, ffn_width=64, subsampling_channels=None)
    depths = {name: min(1, getattr(config.model.decoder, name)) for name in ("layers", "reverse_layers")}
    decoder = replace(config.model.decoder, heads=2, ffn_width=64, **depths)
    model = replace(config.model, encoder=encoder, decoder=decoder)
    layer = replace(config.layer, width=32, ffn_width=64, copies=2, rows=[1, 16], train_rows=32)
    return replace(config, model=model, layer=layer, vocab_size=50, seconds=2.0, rounds=2)

"""The configuration of each command, and of training as a whole. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moe_asr.config.data import AugmentConfig, BatchConfig, DataConfig, FeaturesConfig, TokenizerConfig
from moe_asr.config.decode import DecodeConfig
from moe_asr.config.model import (
    AUXILIARY,
    ChunkConfig,
    ConvNorm,
    LossConfig,
    ModelConfig,
    MoEConfig,
    RouterConfig,
    RouterLogits,
    require,
)
from moe_asr.config.placement import moe_sites, sharing_table


class Accelerator(StrEnum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Precision(StrEnum):
    fp32 = "32-true"
    bf16 = "bf16-mixed"


class Keep(StrEnum):
    best = "best"
    last = "last"


class OptimizerName(StrEnum):
    adam = "adam"
    adamw = "adamw"


class Schedule(StrEnum):
    inverse_sqrt = "inverse_sqrt"
    """After the warm-up the rate falls with the inverse square root of the step (the U2++ recipes)."""
    linear = "linear"
    """After the warm-up the rate falls linearly to 0 at the last step; the better choice for short runs."""


class Match(StrEnum):
    """What a width is solved for."""

    total = "total"
    """Parameters."""
    active = "active"
    """Parameters active at a position, on average."""
    flops = "flops"
    """FLOPs per second of audio, as `inspect` counts them."""


class LoggerMode(StrEnum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class OptimConfig:
    name: OptimizerName = OptimizerName.adamw
    lr: float = 1e-3
    weight_decay: float = 1e-2
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    schedule: Schedule = Schedule.inverse_sqrt
    warmup_steps: int = 500
    """Optimiser steps of rising learning rate."""
    clip: float = 5.0
    """Largest gradient norm."""
    lr_scale: dict[str, float] = field(default_factory=dict)
    """Learning rate factors by parameter prefix, e.g. {encoder: 0.1}; the longest matching prefix wins."""

    def __post_init__(self) -> None:
        require(self.lr > 0 and self.clip > 0, "optim.lr and optim.clip must be above 0.")
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must not be negative.")
        require(len(self.betas) == 2, f"optim.betas={self.betas} must be two numbers, such as [0.9,0.98].")


@dataclass
class TrainerConfig:
    accelerator: Accelerator = Accelerator.auto
    devices: int = 1
    """Processes that train together, each on a GPU of its own, or all on the CPU."""
    precision: Precision = Precision.fp32
    epochs: int = 10
    max_steps: int = -1
    """Stop after so many optimiser steps; -1 = all epochs."""
    accumulate: int = 1
    """Micro-batches per optimiser step."""
    validate_every: int = 1
    """Epochs between validations."""
    recover_every: int = 200
    """Optimiser steps between recovery checkpoints (one is also written after every validation)."""
    average: int = 5
    """Checkpoints averaged into the final model."""
    keep: Keep = Keep.best
    """Which checkpoints are averaged: the best by dev error, or the last."""
    threads: int = 0
    """CPU threads, shared by all processes; 0 = torch's own choice."""
    max_skipped: int = 10
    """Optimiser steps running whose loss or gradient is not finite, and which are skipped, before training stops."""
    checkpoint_activations: bool = False
    """Compute encoder layers anew for the gradient instead of keeping what they held: less memory, more time."""
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("devices", "epochs", "accumulate", "validate_every", "recover_every", "average", "max_skipped"):
            require(getattr(self, name) >= 1, f"trainer.{name}={getattr(self, name)} must be at least 1.")
        require(
            self.max_steps == -1 or self.max_steps >= 1, f"trainer.max_steps={self.max_steps} must be -1 or above 0."
        )
        require(self.threads >= 0, f"trainer.threads={self.threads} must not be negative.")


@dataclass
class LoggerConfig:
    mode: LoggerMode = LoggerMode.offline
    project: str = "moe_asr"
    every: int = 10
    """Optimiser steps between rows of training metrics."""
    group: str = "default"
    """W&B group of the run; an experiment sets it to its own name, and a sweep to that of its directory."""
    tags: list[str] = field(default_factory=list)
    """W&B tags of the run; a sweep sets one for each axis, such as seed=1."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"logger.every={self.every} must be at least 1 step.")


class LauncherName(StrEnum):
    basic = "basic"
    """One job after the other."""
    joblib = "joblib"
    """Several at once on this machine."""
    submitit_local = "submitit_local"
    """The same, by the engine of submitit_slurm."""
    submitit_slurm = "submitit_slurm"
    """On the machines of a SLURM cluster that share this file system."""


@dataclass
class LauncherConfig:
    """How `train -m` runs the jobs of a sweep. Where several share a machine, they share its cores evenly."""

    name: LauncherName = LauncherName.basic
    jobs: int = 2
    """Jobs at once, except with basic."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of joblib or submitit, e.g. {partition: gpu, gpus_per_node: 1}."""

    def __post_init__(self) -> None:
        require(self.jobs >= 1, f"launcher.jobs={self.jobs} must be at least 1.")


@dataclass
class UpcycleConfig:
    """How the experts made of a dense feed-forward layer of `init_from` differ; with 0 they are equal copies of it."""

    noise: float = 0.0
    """Gaussian noise on every weight, relative to the root mean square of its tensor."""
    drop: float = 0.0
    """Share of hidden units drawn anew (Drop-Upcycling, arXiv 2502.19261)."""

    def __post_init__(self) -> None:
        require(self.noise >= 0, f"upcycle.noise={self.noise} must not be negative.")
        require(0 <= self.drop <= 1, f"upcycle.drop={self.drop} must lie between 0 and 1.")


@dataclass
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    chunk: ChunkConfig = field(default_factory=ChunkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    seed: int = 1
    init_from: str | None = None
    """A run or checkpoint whose weights start this one (fine-tuning); dense layers become experts where MoE is."""
    upcycle: UpcycleConfig = field(default_factory=UpcycleConfig)
    match: Match | None = None
    """Solve moe.expert_width (of a dense model ffn_width) so that this equals that of match_to; see `inspect`."""
    match_to: str | None = None
    """A run, a checkpoint, a model preset such as u2pp_tiny, or dense: this model without experts."""
    freeze: list[str] = field(default_factory=list)
    """Parameter prefixes that stay as they are, e.g. [encoder.subsampling]."""
    runs: str = "runs"
    """Folder of the run directories."""
    name: str | None = None
    """A readable link to the run directory; of a sweep, its directory in the folder `sweeps` of `runs`."""
    dry_run: bool = False
    """Train nothing: list what would be, with parameters and the time it takes."""

    def __post_init__(self) -> None:
        require(
            self.name is None or ("/" not in self.name and not self.name.startswith(".") and self.name != "sweeps"),
            f"name={self.name} becomes a link in the folder of runs: write a plain word.",
        )
        require(
            self.model.encoder.causal or not self.chunk.dynamic,
            "model.encoder.causal=false looks ahead, which chunks forbid: write chunk.dynamic=false too.",
        )
        require(
            (self.match is None) == (self.match_to is None),
            "match and match_to belong together: write match=active match_to=dense, say, or neither.",
        )
        require(
            self.init_from is not None or self.upcycle == UpcycleConfig(),
            "upcycle changes the experts that a dense model becomes: say of which one with init_from=RUN.",
        )
        require(
            not (self.trainer.checkpoint_activations and self.model.encoder.conv_norm is ConvNorm.batch_norm),
            "trainer.checkpoint_activations=true would count every batch twice in the statistics of a batch norm: "
            "write model.encoder.conv_norm=layer_norm.",
        )
        sites = moe_sites(self.model, self.moe.placement)
        sharing_table(sites, self.moe)
        auxiliary = any(getattr(self.loss, name) for name in AUXILIARY)
        configured = auxiliary or (self.moe, self.router) != (MoEConfig(), RouterConfig())
        require(
            self.moe.placement is not None or not configured,
            "A router is configured, but there is no MoE layer: say where with moe.placement=encoder, decoder or "
            "both, or moe.placement=none for a dense model.",
        )
        starved = self.moe.top_k == 1 and self.router.normalize and self.moe.num_experts > 1
        require(
            not (sites and starved and self.router.logits is RouterLogits.linear),
            "moe.top_k=1 with router.normalize=true gives every weight the value 1 and the router no gradient; "
            "write router.normalize=false (router=switch) or moe.top_k=2.",
        )
        require(
            self.loss.ctc_weight == 1.0 or self.model.decoder.layers > 0,
            "a model without decoders trains on CTC alone: write loss.ctc_weight=1.0 or model.decoder.layers=1.",
        )
        require(
            self.loss.ctc_weight == 1.0 or self.loss.reverse_weight == 0.0 or self.model.decoder.reverse_layers > 0,
            "loss.reverse_weight above 0 needs a right-to-left decoder: "
            "write loss.reverse_weight=0.0 or model.decoder.reverse_layers=1.",
        )

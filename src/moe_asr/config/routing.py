"""Options of `moe-asr trace`, and of forcing a trained model's routing. No torch here."""

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from moe_asr.config.decode import DecodeConfig
from moe_asr.config.inference import ExpertBackend, InferencePrecision, check_computing
from moe_asr.config.model import require


@dataclass
class RoutingConfig:
    """Who chooses the experts of a trained model, whose routers still weigh them (but in a replay)."""

    choose: str | None = None
    """random; expert_3 (with moe.top_k > 1 those that follow it, too); without_3 (the next best instead); permuted_1
    (every expert does another's work, as drawn from that seed); or replay."""
    trace: str | None = None
    """What choose=replay repeats, weights included: a folder that `moe-asr trace` wrote."""
    sites: str = "both"
    """Where, as in moe.placement. A replay is of encoder sites: what decoders read depends on the hypotheses."""

    def __post_init__(self) -> None:
        require(
            self.choose is None or bool(re.fullmatch(r"random|replay|(expert|without|permuted)_\d+", self.choose)),
            f"routing.choose={self.choose} is not known; write random, expert_3, without_3, permuted_1 or replay.",
        )
        require(
            (self.choose == "replay") == (self.trace is not None),
            "routing.choose=replay and routing.trace=FOLDER belong together; give both, or neither.",
        )


@dataclass
class TraceConfig:
    """Which routing is written; what is null is taken from the run."""

    run: str = MISSING
    """A run directory or a checkpoint."""
    data: str | None = None
    """A prepared corpus; null = that of the run."""
    sets: list[str] | None = None
    """Splits of the corpus; null = the run's test sets."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """decode.chunk=16 traces what a stream in such chunks decides."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    initial: bool = False
    """Trace the run's model as it was before training: what a router decides that has learnt nothing."""
    probabilities: bool = False
    """Write the probability of every expert too, which the drift between two checkpoints is measured by."""
    align: bool = False
    """Label words (of phone models: phones) whose times the corpus does not know, by forced alignment of its text."""
    limit: int | None = None
    """So many utterances of each set, drawn evenly from it; null = all."""
    shard_frames: int = 100_000
    """Frames (40 ms) per file of the trace, which bound the memory."""
    device: str = "cpu"
    threads: int = 1
    """CPU threads."""
    precision: InferencePrecision = InferencePrecision.fp32
    experts: ExpertBackend = ExpertBackend.auto
    out: str | None = None
    """A new folder; null = traces/<date>-<time> in the run directory."""

    def __post_init__(self) -> None:
        require(self.threads >= 1, f"threads={self.threads} must be at least 1.")
        check_computing(self.precision, self.experts)
        require(self.limit is None or self.limit >= 1, f"limit={self.limit} must be at least 1, or null.")
        require(self.shard_frames >= 1, f"shard_frames={self.shard_frames} must be at least 1.")

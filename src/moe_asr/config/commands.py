"""Options of the commands that use a trained model. No torch here."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from moe_asr.config.program import DecodeConfig, TrainConfig


@dataclass
class EvaluateConfig:
    """What a run is evaluated on; what is null is taken from the run."""

    run: str = MISSING
    """A run directory or a checkpoint."""
    data: str | None = None
    """A prepared corpus; null = that of the run."""
    sets: list[str] | None = None
    """Splits of the corpus; null = the run's test sets."""
    normalizer: str | None = None
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    device: str = "cpu"
    threads: int = 1
    """CPU threads; part of every RTF."""
    out: str | None = None
    """Folder of results.json and the hypotheses; null = evaluations/<date>-<time> in the run directory."""


@dataclass
class TranscribeConfig:
    run: str = MISSING
    audio: list[str] = field(default_factory=list)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    format: str = "text"
    """text, or jsonl with the time of every token."""
    device: str = "cpu"


@dataclass
class InspectConfig(TrainConfig):
    """The options of `train`, and the size of a vocabulary that need not exist yet."""

    vocab_size: int = 5000

"""Options of `moe-asr report` and `moe-asr explore`, which write HTML pages. No torch here."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from moe_asr.config.decode import DecodeConfig
from moe_asr.config.inference import ExpertBackend, InferencePrecision, check_computing
from moe_asr.config.model import require
from moe_asr.config.program import LoggerMode
from moe_asr.config.routing import RoutingConfig


@dataclass
class ReportConfig:
    paths: list[str] = field(default_factory=list)
    """A sweep, a folder of runs, or runs."""
    set: str | None = None
    """The test set that effects and figures are about; null = the last one, which the runs were not tuned on."""
    out: str | None = None
    """Folder of report.html, report.csv and report.json; null = the path, or of several the folder that
    holds the first."""
    wandb: LoggerMode = LoggerMode.disabled
    """Logs the table as a W&B table, too; offline keeps it in the folder of the report."""
    project: str = "moe_asr"
    """Of W&B."""


@dataclass
class ExploreConfig:
    run: str = MISSING
    """A run directory or a checkpoint."""
    audio: str = MISSING
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """decode.chunk=16 shows what a stream in such chunks decides."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    start: float = 0.0
    """Where in the recording the page begins (s)."""
    seconds: float = 60.0
    """How much of it the page holds at most."""
    device: str = "cpu"
    precision: InferencePrecision = InferencePrecision.fp32
    experts: ExpertBackend = ExpertBackend.auto
    out: str | None = None
    """The HTML file; null = explorer/<name of the audio>.html in the run directory."""

    def __post_init__(self) -> None:
        check_computing(self.precision, self.experts)
        require(self.start >= 0, f"start={self.start} must be at least 0 seconds.")
        require(0 < self.seconds <= 300, f"seconds={self.seconds} must be above 0, and a page holds no more than 300.")

"""Options of the commands that use a trained model. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.inference import ExpertBackend, InferencePrecision, check_computing
from moe_asr.config.model import require
from moe_asr.config.program import TrainConfig
from moe_asr.config.routing import RoutingConfig


@dataclass
class EvaluateConfig:
    """What a run is evaluated on; what is null is taken from the run."""

    run: str = MISSING
    """A run directory or a checkpoint."""
    data: str | None = None
    """A prepared corpus: its folder, or a name of configs/data such as domains; null = that of the run."""
    sets: list[str] | None = None
    """Splits of the corpus; null = the run's test sets, or those of the name, or all domains of a suite."""
    against: str | None = None
    """Results of another run on the same suite of domains, whose mean error rates divide these."""
    normalizer: str | None = None
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    tuned: bool = False
    """Use the weights that `moe-asr tune` chose for decode.mode."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    modes: list[DecodeMode] = field(default_factory=list)
    """Several decode modes in one call, instead of decode.mode; times decode.chunks they make a grid."""
    lefts: list[int | None] = field(default_factory=list)
    """Several left contexts of every chunk size, instead of decode.left; null = all: lefts=[2,8,null]."""
    latency: bool = False
    """Stream recordings too, and tell when their words are shown; needs a corpus that knows when each ends."""
    streams: int | None = None
    """With latency=true: the first so many recordings of every set; null = all."""
    figure: str | None = None
    """FILE.svg, FILE.png or FILE.pdf: error rates against latencies."""
    device: str = "cpu"
    precision: InferencePrecision = InferencePrecision.fp32
    """bf16 and int8 are faster on CPUs, and need a second copy of the weights."""
    experts: ExpertBackend = ExpertBackend.auto
    threads: int = 1
    """CPU threads; part of every RTF."""
    out: str | None = None
    """Folder of results.json and the hypotheses; null = evaluations/<date>-<time> in the run directory."""

    def __post_init__(self) -> None:
        check_computing(self.precision, self.experts)
        require(self.threads >= 1, f"threads={self.threads} must be at least 1.")
        require(self.streams is None or self.streams >= 1, f"streams={self.streams} must be at least 1, or null.")
        require(
            self.figure is None or self.figure.endswith((".svg", ".png", ".pdf")),
            f"figure={self.figure} is no name for a figure: end it in .svg, .png or .pdf.",
        )
        require(self.figure is None or self.latency, "figure= shows latencies: write latency=true too.")
        require(all(left is None or left >= 0 for left in self.lefts), "lefts must be at least 0, or null for all.")
        require(
            not self.lefts or self.decode.chunk is not None or bool(self.decode.chunks),
            "lefts are left contexts of chunks: write decode.chunks=[16] too.",
        )


class Format(StrEnum):
    text = "text"
    json = "json"
    """One list of all files."""
    jsonl = "jsonl"
    """A line per file."""
    srt = "srt"
    vtt = "vtt"


@dataclass
class EndpointConfig:
    """When an utterance of a stream is over, in seconds; decided at the end of every chunk."""

    blank: float = 0.8
    """A frame is silent where the probability of blank is above this."""
    silence_without_text: float = 5.0
    silence_after_text: float = 1.0
    longest: float = 20.0

    def __post_init__(self) -> None:
        require(0.0 <= self.blank < 1.0, f"endpoint.blank={self.blank} is a probability: write 0.8.")
        for name in ("silence_without_text", "silence_after_text", "longest"):
            require(getattr(self, name) > 0.0, f"endpoint.{name}={getattr(self, name)} must be above 0 seconds.")


@dataclass
class TranscribeConfig:
    run: str = MISSING
    audio: list[str] = field(default_factory=list)
    """Files; - reads raw 16-bit mono PCM from the standard input."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    tuned: bool = False
    """Use the weights that `moe-asr tune` chose for decode.mode."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    format: Format = Format.text
    """json and jsonl hold the n-best (decode.nbest), and the time and confidence of every token."""
    stream: bool = False
    """Decode chunk by chunk (needs decode.chunk); text and jsonl tell what is known so far."""
    segments: bool | None = None
    """Cut a stream into utterances at silence; null = only where the audio is long."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    long: float = 60.0
    """Longer audio (s) is streamed anyway, so that memory stays bounded: in chunks of 16 unless decode.chunk is set."""
    sample_rate: int = 16000
    """Of raw PCM."""
    device: str = "cpu"
    precision: InferencePrecision = InferencePrecision.fp32
    """bf16 and int8 are faster on CPUs, and need a second copy of the weights."""
    experts: ExpertBackend = ExpertBackend.auto

    def __post_init__(self) -> None:
        check_computing(self.precision, self.experts)
        require(
            not self.stream or self.decode.chunk is not None, "stream=true needs decode.chunk: write decode.chunk=16."
        )
        require(self.long > 0, f"long={self.long} must be above 0 seconds.")
        require(self.sample_rate > 0, f"sample_rate={self.sample_rate} must be above 0 Hz.")


@dataclass
class InspectConfig(TrainConfig):
    """The options of `train`, and the size of a vocabulary that need not exist yet."""

    run: str | None = None
    """A run directory or a checkpoint, whose model and vocabulary are shown instead."""
    vocab_size: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.vocab_size >= 4, f"vocab_size={self.vocab_size} must be at least 4, special tokens included.")

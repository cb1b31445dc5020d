"""Options of `moe-asr benchmark`. No torch here."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from omegaconf import MISSING

from moe_asr.config.data import AugmentConfig, BatchConfig
from moe_asr.config.decode import DecodeMode
from moe_asr.config.inference import ExpertBackend, InferencePrecision, check_computing
from moe_asr.config.model import LossConfig, ModelConfig, MoEConfig, RouterConfig, require


class Kind(StrEnum):
    profile = "profile"
    layer = "layer"
    rtf = "rtf"
    decode = "decode"
    data = "data"


class Choice(StrEnum):
    """Which experts a frame visits, and so how many weights a chunk needs."""

    own = "own"
    """Those of the model's routers, which in presets are random."""
    balanced = "balanced"
    """Drawn uniformly for every frame: the most memory traffic."""
    replay = "replay"
    """Those of stretches of a trained model's trace: its loads and run lengths."""


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
class SearchesConfig:
    """What `benchmark decode` tries every search with."""

    vocab_sizes: list[int] = field(default_factory=lambda: [500, 5000, 8404])
    beams: list[int] = field(default_factory=lambda: [4, 10])

    def __post_init__(self) -> None:
        for name, least in (("vocab_sizes", 4), ("beams", 1)):
            values = getattr(self, name)
            require(len(values) > 0 and min(values) >= least, f"searches.{name}={values} must be at least {least}.")
            require(len({*values}) == len(values), f"searches.{name}={values} names one twice.")


@dataclass
class BenchmarkConfig:
    """What is common to all kinds, then the model and its audio, the single layer, whole models, searches."""

    kind: Kind = MISSING
    """profile: where the time of a model goes; layer: the backends of a MoE layer; rtf: models against each other;
    decode: the searches; data: what training reads."""
    device: str = "cpu"
    """rtf: or cuda, with precisions fp32 and bf16; times are then of the wall until the GPU is done, memory is its."""
    threads: list[int] = field(default_factory=lambda: [1])
    """With 1, CPU time is measured, else wall time; several for rtf only."""
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
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    vocab_size: int = 8404
    seconds: float = 12.0
    """Audio of an utterance."""
    beam: int = 10
    """Hypotheses of the prefix beam, and rescored."""
    nonblank: float = 0.16
    """Share of frames in which CTC says something, as set by the bias of blank: what the searches have to do."""
    layer: LayerConfig = field(default_factory=LayerConfig)
    models: list[str] = field(default_factory=lambda: ["u2pp_225m", "u2pp_moe_1b", "u2pp_dense_344m", "u2pp_dense_1b"])
    """rtf: presets (with options: "u2pp_moe_1b moe.placement=decoder") or runs; ratios are to the first."""
    modes: list[DecodeMode] = field(default_factory=lambda: [DecodeMode.ctc_greedy, DecodeMode.attention_rescoring])
    chunks: list[int | None] = field(default_factory=lambda: [None, 16])
    """Frames (40 ms) per chunk of a stream; null = the whole utterance at once."""
    batches: list[int] = field(default_factory=lambda: [1])
    """Whole utterances recognised together."""
    streams: list[int] = field(default_factory=lambda: [1])
    """Streams that advance together, chunk by chunk."""
    precisions: list[InferencePrecision] = field(default_factory=lambda: [InferencePrecision.fp32])
    experts: ExpertBackend = ExpertBackend.auto
    routing: Choice = Choice.own
    trace: str | None = None
    """What routing=replay takes stretches of: a folder that `moe-asr trace` wrote, of as many experts."""
    data: str | None = None
    """A prepared corpus; null = that of the first run, and without runs noise."""
    sets: list[str] | None = None
    """Splits of the corpus; null = the first run's test sets, for data train. Every round takes other utterances."""
    figure: str | None = None
    """Draw the real-time factors of rtf into this SVG, PNG or PDF file too."""
    searches: SearchesConfig = field(default_factory=SearchesConfig)

    def __post_init__(self) -> None:
        for name in ("rounds", "beam"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("threads", "batches", "streams"):
            counts = getattr(self, name)
            require(len(counts) > 0 and min(counts) >= 1, f"{name}={counts} must be at least 1 each: write {name}=[1].")
        require(
            self.kind == Kind.rtf or len(self.threads) == 1,
            f"threads={self.threads} are for `benchmark rtf`: write threads=[{self.threads[0]}].",
        )
        require(
            self.device == "cpu" or self.kind == Kind.rtf, f"device={self.device} is for `benchmark rtf`: leave it out."
        )
        require(
            self.figure is None or self.kind == Kind.rtf, "figure=FILE is drawn by `benchmark rtf` only: leave it out."
        )
        require(
            self.figure is None or self.figure.endswith((".svg", ".png", ".pdf")),
            f"figure={self.figure} must end in .svg, .png or .pdf.",
        )
        require(
            (self.routing is Choice.replay) == (self.trace is not None),
            "routing=replay and trace=FOLDER belong together; give both, or neither.",
        )
        require(self.vocab_size >= 4, f"vocab_size={self.vocab_size} must be at least 4, special tokens included.")
        require(self.seconds >= 0.1, f"seconds={self.seconds} must be at least 0.1.")
        require(0.0 < self.nonblank < 1.0, f"nonblank={self.nonblank} is a share of frames: write 0.16.")
        for name, example in {"models": "u2pp_225m", "modes": "ctc_greedy", "chunks": 16, "precisions": "fp32"}.items():
            require(len(getattr(self, name)) > 0, f"{name} is empty: write {name}=[{example}].")
        require(
            all(chunk is None or chunk >= 1 for chunk in self.chunks),
            f"chunks={self.chunks} must be at least 1 frame, or null for whole utterances.",
        )
        for precision in self.precisions:
            check_computing(precision, self.experts)


def quickened(config: BenchmarkConfig) -> BenchmarkConfig:
    """The same in sizes that take an instant."""
    encoder = replace(config.model.encoder, layers=2, width=32, heads=2, ffn_width=64, subsampling_channels=None)
    depths = {name: min(1, getattr(config.model.decoder, name)) for name in ("layers", "reverse_layers")}
    decoder = replace(config.model.decoder, heads=2, ffn_width=64, **depths)
    model = replace(config.model, encoder=encoder, decoder=decoder)
    layer = replace(config.layer, width=32, ffn_width=64, copies=2, rows=[1, 16], train_rows=32)
    searches = replace(config.searches, vocab_sizes=[50], beams=config.searches.beams[:2])
    return replace(config, model=model, layer=layer, searches=searches, vocab_size=50, seconds=2.0, rounds=2)

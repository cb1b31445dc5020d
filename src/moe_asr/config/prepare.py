"""Options of `moe-asr prepare`: which corpus, where it lies, what is made of it. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from moe_asr.config.model import require
from moe_asr.config.synthetic import Recipe, SyntheticConfig


class Corpus(StrEnum):
    synthetic = "synthetic"
    fsdd = "fsdd"
    speechocean762 = "speechocean762"
    librispeech = "librispeech"
    aishell = "aishell"
    kaldi = "kaldi"
    jsonl = "jsonl"
    compose = "compose"
    """A prepared corpus with its utterances joined to long recordings."""
    lhotse = "lhotse"
    """Any corpus that lhotse has a recipe for: TED-LIUM, AMI, Common Voice, ..."""
    domains = "domains"
    """The robustness suite: test sets of new voices, fast, slow, in noise and rooms, with accents, ..."""
    tokenizer = "tokenizer"
    """No corpus, but word pieces of a prepared one: a sentencepiece model, for tokenizer.file= of `train`."""


@dataclass
class FsddConfig:
    """Connected-digit strings composed of one speaker's isolated digits, one fold per held-out speaker."""

    train_strings: int = 3000
    dev_strings: int = 300
    test_strings: int = 500
    min_digits: int = 1
    max_digits: int = 7
    min_gap: float = 0.02
    """Shortest pause between two digits, in seconds."""
    max_gap: float = 0.25

    def __post_init__(self) -> None:
        require(
            1 <= self.min_digits <= self.max_digits,
            f"fsdd.min_digits={self.min_digits} must lie between 1 and fsdd.max_digits={self.max_digits}.",
        )
        require(
            0 <= self.min_gap <= self.max_gap,
            f"fsdd.min_gap={self.min_gap} must lie between 0 and fsdd.max_gap={self.max_gap}.",
        )
        require(
            min(self.train_strings, self.dev_strings, self.test_strings) >= 1,
            "fsdd.train_strings, fsdd.dev_strings and fsdd.test_strings must be at least 1.",
        )


@dataclass
class Speechocean762Config:
    dev_speakers: int = 20
    """Drawn from the train half, in proportion to gender and age, where no manifest.jsonl names them."""

    def __post_init__(self) -> None:
        require(self.dev_speakers >= 1, "speechocean762.dev_speakers must be at least 1.")


@dataclass
class KaldiConfig:
    audio_root: str | None = None
    """Where relative paths of wav.scp start; null = the data dir, the folder above it or the current one."""


@dataclass
class ComposeConfig:
    """Long recordings: utterances of one speaker, each used once, joined with pauses between them."""

    seconds: list[float] = field(default_factory=lambda: [15.0, 30.0])
    """Shortest and longest recording; each one's length is drawn between them."""
    pause: list[float] = field(default_factory=lambda: [0.1, 0.6])
    """Shortest and longest pause between two utterances, in seconds."""
    splits: list[str] | None = None
    """Which splits; null = all."""
    recordings: int | None = None
    """At most so many of each split, speakers taking turns; null = all."""

    def __post_init__(self) -> None:
        for name, low in (("seconds", 0.1), ("pause", 0.0)):
            span = getattr(self, name)
            require(
                len(span) == 2 and low <= span[0] <= span[1],
                f"compose.{name}={span} must be a shortest and a longest length, such as [{low},{low + 1}].",
            )
        require(self.recordings is None or self.recordings >= 1, "compose.recordings must be at least 1, or null.")


@dataclass
class LhotseConfig:
    name: str = "cuts"
    """Of the recipe, as in lhotse.recipes.prepare_<name>: ami, chime6, commonvoice, fleurs, switchboard, tedlium,
    voxpopuli, ...; cuts = a folder of lhotse's manifests of cuts, as those of Libriheavy."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the recipe, e.g. {mic: sdm, annotations_dir: DIR}; without the latter some download."""


@dataclass
class DomainsConfig:
    """Ten test sets of the same sentences; what is done to them is fixed, and stated in the corpus' card."""

    recipe: Recipe = Recipe.digits
    """digits or grammar; with seed= that of the training corpora, neither voices nor sentences are in those."""
    utterances: int = 1500
    """Of each domain; those of `long` are joined to recordings of 30 to 120 s."""
    voices: int = 40
    fsdd: str | None = None
    """A corpus made by `prepare fsdd`: its test strings become an eleventh domain, real speech."""

    def __post_init__(self) -> None:
        require(
            self.recipe in (Recipe.digits, Recipe.grammar),
            f"domains.recipe={self.recipe} has no domains; write digits or grammar.",
        )
        require(
            self.fsdd is None or self.recipe is Recipe.digits, "domains.fsdd are digits; write domains.recipe=digits."
        )
        require(self.utterances >= 1, f"domains.utterances={self.utterances} must be at least 1.")
        require(
            1 <= self.voices <= self.utterances,
            f"domains.voices={self.voices} must lie between 1 and domains.utterances={self.utterances}.",
        )


@dataclass
class PiecesConfig:
    """Word pieces that several runs or other programs can share; `train` learns its own unless it is given some."""

    vocab_size: int = 500
    splits: list[str] = field(default_factory=lambda: ["train"])
    """Whose texts they are learnt from."""


@dataclass
class PrepareConfig:
    corpus: Corpus = MISSING
    source: str = ""
    """Where the corpus lies: a folder, or for jsonl also a file."""
    out: str | None = None
    """Folder of the prepared corpus; null = data/<corpus>, data/<recipe> (synthetic), data/<name> (lhotse), and for
    tokenizer the file SOURCE-bpe<vocab_size>.model."""
    overwrite: bool = False
    """Replace what was prepared there with other options."""
    lower: bool = False
    """Write transcripts in lower case (fsdd, speechocean762 and librispeech always are)."""
    phones: str | None = None
    """An accent of espeak-ng (en-us): gives every transcript IPA phones, for tokenizer.unit=phone."""
    decode_check: bool = True
    """Decode everything once, so that no damaged file stops a training run; false = trust the headers."""
    workers: int = 0
    """Threads that read audio; 0 = one per core."""
    seed: int = 1
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    fsdd: FsddConfig = field(default_factory=FsddConfig)
    speechocean762: Speechocean762Config = field(default_factory=Speechocean762Config)
    kaldi: KaldiConfig = field(default_factory=KaldiConfig)
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    lhotse: LhotseConfig = field(default_factory=LhotseConfig)
    domains: DomainsConfig = field(default_factory=DomainsConfig)
    tokenizer: PiecesConfig = field(default_factory=PiecesConfig)

    def __post_init__(self) -> None:
        seed = self.synthetic.seed
        require(seed == SyntheticConfig.seed, f"synthetic.seed={seed} would be overruled; write seed={seed}.")
        require(self.workers >= 0, f"workers={self.workers} must not be negative; 0 = one per core.")
        require(
            self.corpus != Corpus.tokenizer or (self.out or ".model").endswith(".model"),
            f"out={self.out} becomes a sentencepiece model, which train knows by its name: write out={self.out}.model.",
        )

    @property
    def folder(self) -> str:
        if self.corpus is Corpus.tokenizer:
            return self.out or f"{self.source.rstrip('/')}-bpe{self.tokenizer.vocab_size}.model"
        grammar = "-grammar" if self.domains.recipe is Recipe.grammar else ""
        names = {Corpus.synthetic: self.synthetic.recipe, Corpus.domains: f"domains{grammar}"}
        names[Corpus.lhotse] = "lhotse" if self.lhotse.name == "cuts" else self.lhotse.name
        return self.out or f"data/{names.get(self.corpus, self.corpus)}"

"""Options of the data: corpora, features, tokenizer, augmentation, batches. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum

from moe_asr.config.model import require
from moe_asr.config.score import Unit


class TokenUnit(StrEnum):
    char = "char"
    word = "word"
    bpe = "bpe"
    phone = "phone"
    """IPA phones of the synthetic corpus instead of its words; scored as PER."""


@dataclass
class TokenizerConfig:
    unit: TokenUnit = TokenUnit.char
    vocab_size: int = 500
    """Word pieces, for unit=bpe only."""
    file: str | None = None
    """A run or checkpoint whose tokenizer is used instead of a new one, or, for unit=bpe, a sentencepiece *.model."""


class Window(StrEnum):
    povey = "povey"
    hamming = "hamming"


@dataclass
class FeaturesConfig:
    """Kaldi-compatible log-mel filter bank."""

    sample_rate: int = 16000
    mel_bins: int = 80
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    window: Window = Window.povey
    cmvn_utterances: int = 5000
    """Training utterances, drawn by seed, that the global mean and variance are estimated from."""
    dither: float = 0.0
    """Standard deviation of the noise added to 16-bit samples, in training only, keyed by utterance and epoch."""


class Codec(StrEnum):
    """What speech is sent through."""

    telephone = "telephone"
    """300 to 3400 Hz at 8 kHz, in mu-law."""
    ulaw = "ulaw"
    alaw = "alaw"
    gsm = "gsm"
    vorbis = "vorbis"
    """At its strongest compression, as are opus and mp3."""
    opus = "opus"
    mp3 = "mp3"


@dataclass
class AugmentConfig:
    """Training-time augmentation; every draw is keyed by (seed, epoch, utterance). The U2++ recipe's shapes."""

    speeds: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    """Speed factors drawn with equal probability (pitch changes with them); [1.0] = off."""
    gain_db: float = 0.0
    """Loudness is changed by a uniform draw from [-gain_db, gain_db]."""
    reverb_share: float = 0.0
    """Share of the utterances, drawn anew every epoch, that are heard in a room."""
    reverb_seconds: list[float] = field(default_factory=lambda: [0.2, 0.8])
    """Shortest and longest time in which a generated room falls by 60 dB."""
    reverb_source: str | None = None
    """Room impulse responses instead of generated ones: a folder of audio, or a JSONL manifest."""
    babble_share: float = 0.0
    """Share with 3 to 8 other training utterances in the background."""
    babble_db: list[float] = field(default_factory=lambda: [5.0, 30.0])
    """Lowest and highest ratio of speech to babble."""
    noise_share: float = 0.0
    """Share with noise added."""
    noise_db: list[float] = field(default_factory=lambda: [5.0, 30.0])
    """Lowest and highest ratio of speech to noise."""
    noise_source: str | None = None
    """Recorded noises: a folder of audio, or a JSONL manifest; null = white, pink and brown noise."""
    codec_share: float = 0.0
    """Share sent through one of `codecs`."""
    codecs: list[Codec] = field(default_factory=lambda: list(Codec))
    mask_value: float = 0.0
    """What masked features become, in raw log-mel before CMVN. The reference's 0 is neither silence nor the mean."""
    time_masks: int = 2
    time_mask_frames: int = 50
    """Longest SpecAugment time mask, in feature frames of 10 ms."""
    time_mask_share: float = 1.0
    """No time mask is longer than this share of the utterance."""
    mel_masks: int = 2
    mel_mask_bins: int = 10
    substitutions: int = 3
    """SpecSub: spans replaced by earlier spans of the same utterance."""
    substitution_frames: int = 30
    trim_frames: int = 0
    """SpecTrim: at most so many feature frames are cut from the end."""

    def __post_init__(self) -> None:
        require(
            bool(self.speeds) and min(self.speeds) > 0,
            "augment.speeds needs at least one factor above 0; [1.0] turns it off.",
        )
        counts = (
            "time_masks",
            "time_mask_frames",
            "mel_masks",
            "mel_mask_bins",
            "substitutions",
            "substitution_frames",
            "trim_frames",
        )
        for name in ("reverb", "babble", "noise", "codec"):
            share = getattr(self, f"{name}_share")
            require(0 <= share <= 1, f"augment.{name}_share={share} must lie between 0 and 1; 0 turns it off.")
        for name in ("reverb_seconds", "babble_db", "noise_db"):
            span = getattr(self, name)
            require(
                len(span) == 2 and span[0] <= span[1],
                f"augment.{name}={span} must be a lowest and a highest value, such as [0.2,30.0].",
            )
        require(self.reverb_seconds[0] > 0, f"augment.reverb_seconds={self.reverb_seconds} must be above 0 seconds.")
        require(bool(self.codecs), "augment.codecs must name at least one codec; augment.codec_share=0 turns them off.")
        for name in (*counts, "gain_db"):
            require(
                getattr(self, name) >= 0,
                f"augment.{name}={getattr(self, name)} must not be negative; 0 turns it off.",
            )
        require(
            0 <= self.time_mask_share <= 1,
            f"augment.time_mask_share={self.time_mask_share} must lie between 0 and 1.",
        )


@dataclass
class DataConfig:
    """A corpus made by `moe-asr prepare`: a folder with one manifest of lhotse cuts per split."""

    path: str = "data/digits"
    fold: str | None = None
    """A part of the corpus with splits of its own, e.g. the held-out speaker of fsdd."""
    train: list[str] = field(default_factory=lambda: ["train"])
    dev: list[str] = field(default_factory=lambda: ["dev"])
    test: list[str] = field(default_factory=lambda: ["test"])
    """Splits; each of `test` is a test set of its own in the results."""
    normalizer: str = "none"
    """How hypotheses and references are normalised before scoring; see `moe_asr.measure.normalize`."""
    error_unit: Unit = Unit.word
    """Which error rate selects checkpoints and is printed first; with phone targets a word is a phone."""
    min_seconds: float = 0.1
    max_seconds: float = 30.0
    """Utterances outside are left out of training, and listed."""
    max_tokens: int = 400
    limit: int | None = None
    """Use only so many training utterances (drawn once by seed), for learning curves and quick tests."""

    hours: float | None = None
    """Use only so much training speech (drawn by seed; what fewer hours hold, more hold too)."""

    def __post_init__(self) -> None:
        require(self.hours is None or self.hours > 0, f"data.hours={self.hours} must be above 0, or null for all.")
        require(self.limit is None or self.limit >= 1, f"data.limit={self.limit} must be at least 1, or null for all.")
        require(
            0 <= self.min_seconds <= self.max_seconds,
            f"data.min_seconds={self.min_seconds} must lie between 0 and data.max_seconds={self.max_seconds}.",
        )
        for name in ("train", "dev", "test"):
            require(bool(getattr(self, name)), f"data.{name} must name at least one split.")


@dataclass
class BatchConfig:
    seconds: float = 60.0
    """Audio of a micro-batch, padding included."""
    utterances: int = 64
    """Utterances of a micro-batch at most."""
    bucket_ratio: float = 1.3
    """Longest to shortest utterance of a bucket, whose members are reshuffled every epoch; bounds the padding."""
    workers: int = 0
    """Processes that read and augment."""

    def __post_init__(self) -> None:
        require(self.seconds > 0 and self.utterances > 0, "batch.seconds and batch.utterances must be above 0.")
        require(self.bucket_ratio >= 1, f"batch.bucket_ratio={self.bucket_ratio} must be at least 1.")
        require(self.workers >= 0, f"batch.workers={self.workers} must not be negative.")

"""Options of decoding. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum

from moe_asr.config.model import require


class DecodeMode(StrEnum):
    ctc_greedy = "ctc_greedy"
    """The best CTC path."""
    ctc_prefix_beam = "ctc_prefix_beam"
    """The best texts, summed over their CTC paths; with hotwords and language model if asked."""
    attention = "attention"
    """Beam search of the left-to-right decoder."""
    attention_rescoring = "attention_rescoring"
    """The n-best of the prefix beam, scored anew by the decoders (U2++, arXiv 2106.05642, section 2.3)."""


PREFIX_MODES = (DecodeMode.ctc_prefix_beam, DecodeMode.attention_rescoring)


@dataclass
class DecodeConfig:
    mode: DecodeMode = DecodeMode.ctc_greedy
    chunk: int | None = None
    """Encoder frames (40 ms) per chunk; null = full context."""
    left: int | None = None
    """Chunks of left context; null = all."""
    chunks: list[int] = field(default_factory=list)
    """Further chunk sizes that every validation and evaluation reports: `val/wer_c16` for 16."""
    batch: int = 16
    """Utterances decoded together."""
    batch_seconds: float = 300.0
    """Audio decoded together, padding included: bounds the memory where recordings are long."""
    beam: int = 10
    """Hypotheses kept by the searches, and rescored."""
    nbest: int = 1
    """Hypotheses returned, at most."""
    ctc_weight: float = 0.5
    """Weight of the CTC score in rescoring, beside decoder scores of weight 1."""
    reverse_weight: float = 0.3
    """Share of the right-to-left decoder in rescoring."""
    length_penalty: float = 0.0
    """Attention: scores are divided by tokens ** length_penalty."""
    blank_penalty: float = 0.0
    """Subtracted from the CTC logit of blank: fewer deletions, more insertions."""
    hotwords: list[str] = field(default_factory=list)
    """Phrases that the prefix beam favours."""
    hotwords_file: str | None = None
    """More of them, one per line."""
    hotword_bonus: float = 3.0
    """Log score of every token of a hotword."""
    lm: str | None = None
    """An n-gram model over tokens (ARPA or KenLM) for the prefix beam."""
    lm_weight: float = 0.3
    token_bonus: float = 0.0
    """Log score of every token beside a language model, which favours short texts."""

    def __post_init__(self) -> None:
        require(
            all(c is None or c >= 1 for c in [*self.chunks, self.chunk]),
            "decode.chunk and decode.chunks count frames and must be at least 1.",
        )
        require(self.batch_seconds > 0, f"decode.batch_seconds={self.batch_seconds} must be above 0.")
        require(self.left is None or self.left >= 0, "decode.left must be at least 0, or null for all.")
        require(
            self.left is None or self.chunk is not None or bool(self.chunks),
            f"decode.left={self.left} counts chunks: say how long with decode.chunk=16.",
        )
        for name in ("batch", "beam", "nbest"):
            require(getattr(self, name) >= 1, f"decode.{name}={getattr(self, name)} must be at least 1.")
        require(
            self.nbest <= self.beam or self.mode == DecodeMode.ctc_greedy,
            f"decode.beam={self.beam} gives no decode.nbest={self.nbest} hypotheses: write decode.beam={self.nbest}.",
        )
        require(
            0.0 <= self.reverse_weight <= 1.0,
            f"decode.reverse_weight={self.reverse_weight} is a share: write a number from 0 to 1.",
        )
        for name in ("ctc_weight", "hotword_bonus", "lm_weight"):
            require(getattr(self, name) >= 0.0, f"decode.{name}={getattr(self, name)} must be at least 0.")
        require(
            self.mode in PREFIX_MODES or not (self.hotwords or self.hotwords_file or self.lm),
            "decode.hotwords and decode.lm need the prefix beam: "
            "write decode.mode=ctc_prefix_beam or decode.mode=attention_rescoring.",
        )

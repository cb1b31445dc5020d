"""Options of `moe-asr score`, and the units an error rate can count. No torch here."""

from dataclasses import dataclass
from enum import StrEnum

FEWEST_SPEAKERS = 5
"""With fewer, an error rate is told speaker by speaker and has no interval for new speakers."""


class Unit(StrEnum):
    """What counts as one token of a text."""

    word = "word"
    """Separated by white space."""
    char = "char"
    """Code points; a single space between words counts as one, as in jiwer."""
    phone = "phone"
    """Phone symbols separated by white space."""
    mixed = "mixed"
    """Every Han character or kana on its own, everything else as words (Mandarin-English code switching)."""

    @property
    def rate(self) -> str:
        """The name of the error rate, which is also its key in results: wer, cer, per or mixed_er."""
        return {"word": "wer", "char": "cer", "phone": "per", "mixed": "mixed_er"}[self.value]


@dataclass
class ScoreConfig:
    hypothesis: str = ""
    """What was recognised: Kaldi text (`id words...`), CTM, or JSONL with `id` and `hypothesis` or `text`."""
    reference: str = ""
    """What was said, in any of these forms."""
    unit: Unit = Unit.word
    """What an error rate counts."""
    normalizer: str = "none"
    """How both sides are normalised first; see `moe_asr.measure.normalize`."""
    utt2spk: str | None = None
    """A file of `utterance speaker` lines; without it, the `speaker` fields of a JSONL reference are used."""
    by_speaker: bool = False
    """Print the rate of every speaker; always done where there are fewer than 5."""
    phones: str | None = None
    """An accent of espeak-ng (en-us): score the pronunciations of both texts instead of their spelling (PER)."""
    partial: bool = False
    """Score the utterances that both files have, instead of refusing different sets of utterances."""
    alignments: bool = False
    """Print every wrong utterance aligned with its reference."""
    json: str | None = None
    """Write the result to this file too."""

"""Options of `moe-asr compare`. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum

from moe_asr.config.model import require
from moe_asr.config.score import Unit


class Question(StrEnum):
    methods = "methods"
    """Would training again, and testing on others, show it too? Needs several seeds of each."""
    checkpoints = "checkpoints"
    """These trained models, whatever other seeds would give."""


class TableFormat(StrEnum):
    text = "text"
    json = "json"


@dataclass
class CompareConfig:
    """Runs that differ in nothing but the seed are one method; the first is what all others are compared with."""

    systems: list[str] = field(default_factory=list)
    """Runs, folders of `evaluate`, sweeps, or files of hypotheses (Kaldi text, CTM, JSONL) with reference=FILE."""
    a: list[str] = field(default_factory=list)
    """Instead of systems: what belongs to method A, seed by seed, and below to B; files too."""
    b: list[str] = field(default_factory=list)
    question: Question | None = None
    """null = methods where each has several seeds, checkpoints where each has one."""
    sets: list[str] | None = None
    """Names as in results.json, of dev too; null = the test sets that all have."""
    unit: Unit | None = None
    """What an error rate counts; null = what selected the first run, of files words."""
    normalizer: str | None = None
    """null = that of the first run, of files none."""
    reference: str | None = None
    """What was said; null = the references among the hypotheses."""
    utt2spk: str | None = None
    """A file of `utterance speaker` lines; null = the speakers among the hypotheses or references."""
    power: float | None = None
    """Also tell how many seeds and speakers a difference of so many percent needs; without systems, on defaults."""
    format: TableFormat = TableFormat.text
    out: str | None = None
    """Write the result to this JSON file too."""
    simulate: int = 0
    """Instead of all this: the coverage of the intervals in so many simulated data sets a cell."""

    def __post_init__(self) -> None:
        require(bool(self.a) == bool(self.b), "a= and b= belong together: write a=[RUN,RUN] b=[RUN,RUN].")
        require(not (self.systems and self.a), "a= and b= name everything: leave out the plain words.")
        require(self.power is None or 0 < self.power < 100, f"power={self.power} is a difference in percent: write 5.")
        require(self.simulate >= 0, f"simulate={self.simulate} must not be negative.")

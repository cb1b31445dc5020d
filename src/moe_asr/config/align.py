"""Options of `moe-asr align`. No torch here."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from moe_asr.config.model import require


class AlignFormat(StrEnum):
    ctm = "ctm"
    """`file 1 start duration word confidence`, a line per word; file = its name without folder and ending."""
    jsonl = "jsonl"
    """An object per file: its words and tokens, each as [text, start, end, confidence], and the path's score."""


@dataclass
class AlignConfig:
    run: str = MISSING
    audio: list[str] = field(default_factory=list)
    text: str | None = None
    """What is said in a single AUDIO; null = what stands in the file beside each AUDIO that ends in .txt or .lab."""
    format: AlignFormat = AlignFormat.ctm
    device: str = "cpu"

    def __post_init__(self) -> None:
        require(self.text is None or len(self.audio) <= 1, "text=... is said in one file: give a single AUDIO.")

"""Options of `moe-asr import-checkpoint`. No torch here."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING


class Source(StrEnum):
    """Whose checkpoints can be imported."""

    wenet = "wenet"


@dataclass
class ImportConfig:
    source: Source = MISSING
    dir: str = MISSING
    """The folder with train.yaml (or config.yaml), the checkpoint, units.txt and global_cmvn."""
    out: str = MISSING
    """The run directory to write."""
    checkpoint: str | None = None
    """File name of the checkpoint; null = final.pt, else the only *.pt."""

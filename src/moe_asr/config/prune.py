"""Options of `moe-asr prune`. No torch here."""

from dataclasses import dataclass
from enum import StrEnum

from omegaconf import MISSING

from moe_asr.config.model import require


class Method(StrEnum):
    """What becomes of the experts beyond the most used."""

    drop = "drop"
    """They are left out."""
    merge = "merge"
    """Each joins the kept expert whose router row is the most alike, weighted by load."""


@dataclass
class PruneConfig:
    run: str = MISSING
    """A run directory or a checkpoint, with experts of one width."""
    out: str = MISSING
    """The run directory to write."""
    num_experts: int = MISSING
    """Experts to keep at each site: those with the largest load, summed over the sites that share a router."""
    method: Method = Method.drop
    data: str | None = None
    """A prepared corpus to measure the load on; null = that of the run."""
    sets: list[str] | None = None
    """Its splits; null = the run's dev sets."""
    device: str = "cpu"
    threads: int = 1
    """CPU threads."""

    def __post_init__(self) -> None:
        require(self.num_experts >= 1, f"num_experts={self.num_experts} must be at least 1.")
        require(self.threads >= 1, f"threads={self.threads} must be at least 1.")

"""What a search returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """Token ids, their log score, and the frame at which each token was emitted."""

    tokens: tuple[int, ...]
    score: float
    frames: tuple[int, ...]

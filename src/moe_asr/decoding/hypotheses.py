"""What a search returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """Token ids, their log score, and the frame at which each token was emitted.

    frames is empty where CTC cannot align the tokens. confidence, in [0, 1], is the probability of the tokens, as the
    (tokens + 1)-th root of it: without hotwords and language model. token_confidences are the probabilities of each
    token: at its frame for CTC, given the others for decoders. None and () where nobody asked.
    """

    tokens: tuple[int, ...]
    score: float
    frames: tuple[int, ...]
    confidence: float | None = None
    token_confidences: tuple[float, ...] = ()

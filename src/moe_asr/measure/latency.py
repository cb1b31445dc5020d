"""When the words of a stream are seen: the audio heard until then, less the true end of the word.

Only audio counts, no time to compute. A word is the n-th of the text that is shown: it is first shown when that place
first holds it, settled from when on the place holds it to the end, and certain when nothing to come could change it.
Words that are right (in a minimal alignment with the reference) and whose true end is known have latencies; these are
negative where a word is guessed before it has ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy

from moe_asr.measure.errors import hits


@dataclass(frozen=True)
class Shown:
    """A text, in words, the first `certain` of which will stay, and the seconds of audio heard when it was shown."""

    seconds: float
    words: tuple[str, ...]
    certain: int


@dataclass(frozen=True)
class Latencies:
    """Of one utterance: first, settled, certain in seconds after the end of each word that counts.

    appeared: words shown, counted whenever a place comes to hold another one; revised: those that did not stay.
    That the last word shown grows is no revision: it was not finished.
    """

    first: tuple[float, ...]
    settled: tuple[float, ...]
    certain: tuple[float, ...]
    appeared: int
    revised: int


def latencies(ends: Sequence[tuple[str, float | None]], shown: Sequence[Shown]) -> Latencies:
    """ends: the words of the reference and when each ends (s; None = not known). shown: in order, the last is final."""
    since: list[float] = []  # when each place came to hold its word
    first: dict[tuple[int, str], float] = {}
    appeared = 0
    for old, new in pairwise([Shown(0.0, (), 0), *shown]):
        for place, word in enumerate(new.words):
            before = old.words[place] if place < len(old.words) else None
            if word != before:
                since[place : place + 1] = [new.seconds]
                first.setdefault((place, word), new.seconds)
                appeared += before is None or place < len(old.words) - 1 or not word.startswith(before)
        del since[len(new.words) :]
    final = shown[-1].words
    right = [(ends[r][1], place) for r, place in hits([word for word, _ in ends], final)]
    counted = [(end, place) for end, place in right if end is not None]
    return Latencies(
        first=tuple(first[place, final[place]] - end for end, place in counted),
        settled=tuple(since[place] - end for end, place in counted),
        certain=tuple(next(s.seconds for s in shown if s.certain > place) - end for end, place in counted),
        appeared=appeared,
        revised=appeared - len(final),
    )


def latency_result(utterances: Sequence[Latencies]) -> dict[str, Any]:
    """The words of all utterances together, as plain values: medians and 90 % quantiles in seconds, share revised."""
    result: dict[str, Any] = {"words": sum(len(u.settled) for u in utterances)}
    for kind in ("first", "settled", "certain"):
        values = [value for u in utterances for value in getattr(u, kind)]
        for name, share in (("p50", 0.5), ("p90", 0.9)):
            result[f"{kind}_{name}"] = round(float(numpy.quantile(values, share)), 4) if values else None
    appeared = sum(u.appeared for u in utterances)
    return {**result, "revised": round(sum(u.revised for u in utterances) / max(1, appeared), 5)}

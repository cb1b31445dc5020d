"""What results.json says about one test set: the error rate with everything needed to trust or repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.measure.errors import EditCounts, edit_counts, total
from moe_asr.measure.intervals import error_interval
from moe_asr.measure.normalize import Normalizer

if TYPE_CHECKING:  # reading two text files needs no torch
    from moe_asr.measure.rtf import SpeedReceipt


@dataclass(frozen=True)
class Scored:
    """An utterance as recognised; texts are raw, normalisation comes with the scoring."""

    id: str
    reference: str
    hypothesis: str
    speaker: str | None = None
    sources: tuple[str, ...] = ()
    """The recordings it is composed of, if it is."""


def test_set_result(
    utterances: Sequence[Scored],
    normalizer: Normalizer,
    units: Sequence[Unit],
    speed: SpeedReceipt | None,
) -> dict[str, Any]:
    """The result of a test set as plain JSON values; rates are fractions.

    For each unit its rate and 95 % interval (``wer``, ``wer_ci95``; null where none can be stated); tokens,
    edits, interval method and the table by speaker are those of the first unit.
    Raises InputError when there is no utterance, one is there twice, or only some have a speaker.
    """
    if not utterances:
        raise InputError("There is no utterance to score.")
    if len({u.id for u in utterances}) < len(utterances):
        seen: set[str] = set()
        twice = next(u.id for u in utterances if u.id in seen or seen.add(u.id))  # type: ignore[func-returns-value]
        raise InputError(f"The utterance {twice} was scored twice; every utterance counts once.")
    speakers = [u.speaker for u in utterances if u.speaker is not None]
    if speakers and len(speakers) < len(utterances):
        silent = next(u.id for u in utterances if u.speaker is None)
        raise InputError(f"The speaker of {silent} is not known; name the speaker of all utterances or of none.")

    references = [normalizer(u.reference) for u in utterances]
    hypotheses = [normalizer(u.hypothesis) for u in utterances]
    rates: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for unit in dict.fromkeys(units):
        counts = edit_counts(references, hypotheses, unit)
        interval = error_interval(counts, speakers or None, [u.sources for u in utterances])
        summed = total(counts)
        rates |= {unit.rate: summed.rate, f"{unit.rate}_ci95": interval.bounds and list(interval.bounds)}
        if not details:
            details = {
                "unit": unit.value,
                "num_utterances": len(utterances),
                "num_tokens": summed.tokens,
                "substitutions": summed.substitutions,
                "deletions": summed.deletions,
                "insertions": summed.insertions,
                "num_speakers": len(set(speakers)) or None,
                "interval": {"method": interval.method, "clusters": interval.clusters},
            }
            if speakers:
                details["per_speaker"] = _by_speaker(speakers, counts, unit)
    receipt = {"rtf": speed.rtf, "speed": asdict(speed)} if speed else {}
    return {**rates, **details, "normalizer": normalizer.receipt(), **receipt}


def _by_speaker(speakers: Sequence[str], counts: Sequence[EditCounts], unit: Unit) -> dict[str, dict[str, Any]]:
    table = {}
    for speaker in sorted(set(speakers)):
        own = [c for s, c in zip(speakers, counts, strict=True) if s == speaker]
        summed = total(own)
        table[speaker] = {unit.rate: summed.rate, "num_utterances": len(own), "num_tokens": summed.tokens}
    return table

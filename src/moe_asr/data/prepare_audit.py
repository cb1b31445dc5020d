"""Checks every utterance on its way into the manifests; what is left out is listed, never lost."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lhotse import MonoCut, MultiCut, SupervisionSegment

from moe_asr.data.manifest import Problem, recording
from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio, read_header

TOLERANCE = 0.01
"""Seconds by which a stated end may miss the end of the file: manifests round."""


@dataclass(frozen=True)
class Item:
    """An utterance as its corpus describes it, before anything has been read."""

    id: str
    audio: Path
    text: str
    speaker: str | None = None
    start: float = 0.0
    seconds: float | None = None
    """None = to the end of the file."""
    gender: str | None = None
    language: str | None = None
    custom: dict[str, Any] = field(default_factory=dict)


class Audit:
    """Turns items into cuts and remembers what it had to leave out and what deserves a note."""

    def __init__(self, decode: bool = True, workers: int = 0, lower: bool = False) -> None:
        self.decode, self.workers, self.lower = decode, workers or os.cpu_count() or 1, lower
        self.problems: list[Problem] = []
        self.multichannel = 0
        self._ids: set[str] = set()

    def cuts(self, items: Iterable[Item | Problem]) -> Iterator[MonoCut | MultiCut]:
        """The usable items in their order; files are read by several threads, a window of items at a time."""
        items = iter(items)
        with ThreadPoolExecutor(self.workers) as pool:
            while window := list(islice(items, 256)):
                for result in pool.map(partial(_check, decode=self.decode, lower=self.lower), window):
                    if isinstance(result, Problem):
                        self.problems.append(result)
                    elif result.id in self._ids:
                        source = result.recording.sources[0].source
                        self.problems.append(Problem(result.id, "duplicate id", f"again at {source}"))
                    else:
                        self._ids.add(result.id)
                        self.multichannel += result.num_channels > 1
                        yield result


def _check(item: Item | Problem, decode: bool, lower: bool) -> MonoCut | MultiCut | Problem:
    if isinstance(item, Problem):
        return item
    text = " ".join(item.text.split())
    if not text:
        return Problem(item.id, "empty text", f"{item.audio} has no transcript")
    if not item.audio.is_file():
        return Problem(item.id, "missing audio", f"there is no file {item.audio}")
    try:
        header = read_header(item.audio)
        end = header.seconds if item.seconds is None else item.start + item.seconds
        if abs(end - header.seconds) < TOLERANCE:
            end = header.seconds
        if not 0 <= item.start <= end - 1 / header.sample_rate or end > header.seconds:
            span = f"{item.start} s to {end} s of {item.audio}, which lasts {header.seconds} s"
            return Problem(item.id, "outside the audio", span)
        first, last = round(item.start * header.sample_rate), round(end * header.sample_rate)
        start, seconds = first / header.sample_rate, (last - first) / header.sample_rate
        if decode:
            read_audio(item.audio, None, start, seconds)
    except InputError as error:
        return Problem(item.id, "unreadable audio", str(error))
    channel = 0 if header.channels == 1 else list(range(header.channels))
    path = os.path.abspath(item.audio)  # noqa: PTH100 (keeps symbolic links)
    audio = recording(item.audio.stem, path, header.sample_rate, header.frames, header.channels)
    supervision = SupervisionSegment(
        id=item.id,
        recording_id=audio.id,
        start=0.0,
        duration=seconds,
        channel=channel,
        text=text.lower() if lower else text,
        language=item.language,
        speaker=item.speaker,
        gender=item.gender,
        custom=item.custom or None,
    )
    cut = MonoCut if channel == 0 else MultiCut
    return cut(item.id, start, seconds, channel, [supervision], recording=audio)

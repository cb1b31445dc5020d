"""Long recordings made of short ones: utterances of one speaker, joined with pauses between them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy
import soundfile
from lhotse import MonoCut, SupervisionSegment
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem

from moe_asr.config.prepare import ComposeConfig, PrepareConfig
from moe_asr.data.manifest import Problem, describe, load_samples, read_card, read_split, recording
from moe_asr.data.prepare_audit import Audit
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import join_han
from moe_asr.randomness import numpy_rng

QUIETEST = 1e-4
"""Amplitude (-80 dB) that no pause falls below: digital silence would rule the statistics of log features."""


def compose(config: PrepareConfig, audit: Audit, folder: Path) -> Mapping[str, Iterator[Cut]]:
    """Splits of a prepared corpus with its utterances joined; raises InputError for a split that is not there.

    Each speaker's utterances are used once, in a random order keyed by (seed, split, speaker). What cannot be read, is
    longer than a recording, or too short for another one, is listed as a problem.
    """
    splits = config.compose.splits or list(read_card(config.source).splits)
    cuts = {split: read_split(config.source, split) for split in splits}
    return {split: compose_split(split, members, config, audit, folder) for split, members in cuts.items()}


def compose_split(split: str, cuts: Sequence[Cut], config: PrepareConfig, audit: Audit, folder: Path) -> Iterator[Cut]:
    """The recordings of one split, by the options config.compose; their audio goes to folder/audio/<split>."""
    by_speaker: dict[str, list[Cut]] = defaultdict(list)
    for cut in cuts:
        if cut.sampling_rate != cuts[0].sampling_rate:
            raise InputError(f"{cut.id} differs in sampling rate from {cuts[0].id}, so they cannot be joined.")
        by_speaker[describe(cut).speaker or "nobody"].append(cut)
    planned = []
    for place, (speaker, own) in enumerate(sorted(by_speaker.items())):
        rng = numpy_rng("compose", config.seed, split, speaker)
        for index, group in enumerate(_groups(own, config.compose, audit, rng)):
            name = f"{split.replace('/', '-')}-{speaker}-{index:04d}"
            planned.append((index, place, partial(_recording, name, split, group, config, audit, folder)))
    for _, _, record in sorted(planned, key=lambda plan: plan[:2])[: config.compose.recordings]:  # speakers take turns
        if (cut := record()) is not None:
            yield cut


def _groups(
    cuts: Sequence[Cut], options: ComposeConfig, audit: Audit, rng: numpy.random.Generator
) -> Iterator[list[tuple[Cut, float]]]:
    """The utterances of every recording of a speaker, each with the pause before it (s)."""
    (low, high), (short, long) = options.seconds, options.pause
    groups: list[list[tuple[Cut, float]]] = [[]]
    seconds, wanted = 0.0, rng.uniform(low, high)
    for i in rng.permutation(len(cuts)):
        pause = rng.uniform(short, long)
        if groups[-1] and (seconds >= wanted or seconds + pause + cuts[i].duration > high):
            groups.append([])
            seconds, wanted = 0.0, rng.uniform(low, high)
        pause = pause if groups[-1] else 0.0
        groups[-1].append((cuts[i], pause))
        seconds += pause + cuts[i].duration
    for group in groups:
        seconds = sum(pause + cut.duration for cut, pause in group)
        if low <= seconds <= high:
            yield group
        else:
            reason, detail = "makes no recording", f"{seconds:.2f} s together"
            audit.problems += [Problem(cut.id, reason, detail) for cut, _ in group]


def _recording(
    name: str, split: str, group: Sequence[tuple[Cut, float]], config: PrepareConfig, audit: Audit, folder: Path
) -> Cut | None:
    """Writes the audio; a pause is noise as loud as the quietest tenth of the utterance after it. None: unreadable."""
    members = [cut for cut, _ in group]
    rate, rng = members[0].sampling_rate, numpy_rng("compose pauses", config.seed, name)
    parts: list[numpy.ndarray] = []
    starts: list[float] = []
    for cut, pause in group:
        try:
            samples = load_samples(cut, rate)
        except InputError as error:
            audit.problems.append(Problem(cut.id, "unreadable audio", str(error)))
            return None
        parts += [rng.normal(0, _floor(samples, rate), round(pause * rate)), samples]
        starts.append(sum(map(len, parts[:-1])) / rate)
    path = f"audio/{split}/{name}.flac"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    joined = numpy.concatenate(parts)
    soundfile.write(folder / path, joined, rate, subtype="PCM_16")
    seconds, facts = len(joined) / rate, [describe(cut) for cut in members]
    text = join_han(" ".join(fact.text for fact in facts))
    phones = [fact.phones for fact in facts if fact.phones]
    supervision = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=seconds,
        text=text.lower() if config.lower else text,
        speaker=facts[0].speaker,
        gender=facts[0].gender,
        language=facts[0].language,
        custom={"phones": " ".join(phones)} if len(phones) == len(facts) else None,
        alignment=_alignment(members, starts),
    )
    sources = [source for fact in facts for source in fact.sources]
    audio = recording(name, path, rate, len(joined))
    return MonoCut(name, 0.0, seconds, 0, [supervision], recording=audio, custom={"sources": sources})


def _floor(samples: numpy.ndarray, rate: int) -> float:
    """The amplitude that a tenth of the 10 ms frames stay below."""
    frames = samples[: len(samples) // (rate // 100) * (rate // 100)].reshape(-1, rate // 100)
    return max(QUIETEST, float(numpy.quantile(numpy.sqrt((frames**2).mean(1)), 0.1))) if len(frames) else QUIETEST


def _alignment(members: Sequence[Cut], starts: Sequence[float]) -> dict[str, list[AlignmentItem]] | None:
    """What all utterances know of when something was said, shifted to where each of them starts."""
    placed = zip(members, starts, strict=True)
    known = [(start, part.alignment or {}) for cut, start in placed for part in cut.supervisions]
    kinds = set.intersection(*(set(own) for _, own in known))
    shifted = {kind: [item.with_offset(start) for start, own in known for item in own[kind]] for kind in sorted(kinds)}
    return shifted or None

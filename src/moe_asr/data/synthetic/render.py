"""From a voice and its sentences to one recording session: FLAC files and exact phone times.

A session is the unit of work of a process and a pure function of its fields, hence so is the corpus: the
number of workers and their order cannot matter. This module stays light (no torch, no lhotse): every worker
imports it.
"""

import itertools
import multiprocessing
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy
import soundfile
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from moe_asr.config.synthetic import SyntheticConfig
from moe_asr.data.synthetic.recipes import Sentence, sentences

Array = NDArray[Any]
Task = TypeVar("Task")
Result = TypeVar("Result")
SAMPLE_RATE = 16000
UTTERANCES_PER_FILE = 64  # reading by offset costs 0.05 ms more than a file of its own; 64 times fewer files


@dataclass(frozen=True)
class Phone:
    """symbol: IPA without stress marks; start and end in seconds; word: where its word begins in the text.

    Words that a voice joins ("of the") begin where the first of them does, counted in characters.
    """

    symbol: str
    start: float
    end: float
    word: int


@dataclass(frozen=True)
class Speech:
    """samples: (S,) float64 at 16 kHz, full scale 1. No phones: the text had no sound."""

    samples: Array
    phones: tuple[Phone, ...]


@dataclass(frozen=True)
class Voice(ABC):
    """A speaker, the same in every process that it is sent to."""

    name: str
    language: str

    @abstractmethod
    def speak(self, text: str, seed: int) -> Speech:
        """A pure function of the voice and the arguments."""


@dataclass(frozen=True)
class Session:
    """One voice in one split. It ends after `utterances` or at least `seconds` of audio.

    lines: what recipe=text has for this voice here, in order; the other recipes draw their sentences.
    """

    folder: str
    split: str
    voice: Voice
    config: SyntheticConfig
    seed: int
    utterances: int | None
    seconds: float | None
    lines: tuple[Sentence, ...] = ()


@dataclass(frozen=True)
class Utterance:
    """A stretch of a FLAC file (path relative to the corpus), in samples; its phone times start with it."""

    id: str
    audio: str
    start: int
    length: int
    sentence: Sentence
    phones: tuple[Phone, ...]


def in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int | None = None, chunk: int = 1
) -> Iterator[Result]:
    """The results in order. Fresh processes (spawn) even for one worker: espeak-ng never enters this one."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _follow_parent) as pool:
        try:
            yield from pool.map(function, tasks, chunksize=chunk)
        except BrokenProcessPool as error:
            remedy = "a script that makes a corpus needs `if __name__ == '__main__':`"
            raise RuntimeError(f"a synthesizer process died; {remedy}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Make this worker end with the process that started it, even if that was killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def render(session: Session) -> tuple[list[Utterance], list[Sentence]]:
    """Speak and write a session: what the voice said, and what it could not say."""
    utterances: list[Utterance] = []
    silent: list[Sentence] = []
    speech = _speak_all(session, silent)
    while batch := list(itertools.islice(speech, UTTERANCES_PER_FILE)):
        path = f"audio/{session.split}/{session.voice.name}-{len(utterances) // UTTERANCES_PER_FILE:03d}.flac"
        start = 0
        for sentence, spoken in batch:
            name = f"{session.split}-{session.voice.name}-{len(utterances):05d}"
            utterances.append(Utterance(name, path, start, len(spoken.samples), sentence, spoken.phones))
            start += len(spoken.samples)
        file = Path(session.folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        samples = numpy.concatenate([spoken.samples for _, spoken in batch])
        soundfile.write(file, numpy.rint(samples * 32767).astype(numpy.int16), SAMPLE_RATE, subtype="PCM_16")
    return utterances, silent


def _speak_all(session: Session, silent: list[Sentence]) -> Iterator[tuple[Sentence, Speech]]:
    rng = Generator(PCG64(session.seed))
    source: Iterator[Sentence] = iter(session.lines)
    if not session.lines:
        source = sentences(session.config, session.split, session.voice.language, rng)
    elif session.utterances is None:  # training may hear a line again, the other splits may not
        source = itertools.cycle(session.lines)
    count, seconds, silent_run = 0, 0.0, 0
    for sentence in source:
        speech = record(session.voice, sentence.spoken, int(rng.integers(2**31)))
        if not speech.phones:
            silent.append(sentence)
            silent_run += 1
            if silent_run > len(session.lines) + 100:
                return  # nothing here has a sound
            continue
        yield sentence, speech
        count, seconds, silent_run = count + 1, seconds + len(speech.samples) / SAMPLE_RATE, 0
        if count == session.utterances or (session.seconds is not None and seconds >= session.seconds):
            return


def record(voice: Voice, text: str, seed: int) -> Speech:
    """The voice as a microphone hears it: silence around it, a level, and a noise floor.

    Without noise the pauses would be exact zeros, which no recording has and whose logarithm would rule the
    statistics of the features.
    """
    clean = voice.speak(text, seed)
    if not clean.phones:
        return clean
    rng = Generator(PCG64(seed))
    lead, tail = (int(rng.uniform(*span) * SAMPLE_RATE) for span in ((0.05, 0.15), (0.1, 0.25)))
    level, floor = rng.uniform(-28, -18), rng.uniform(-75, -60)  # dB below full scale
    rms, peak = numpy.sqrt(numpy.mean(clean.samples**2)), numpy.abs(clean.samples).max()
    samples = rng.normal(0, 10 ** (floor / 20), lead + len(clean.samples) + tail)
    samples[lead : lead + len(clean.samples)] += min(10 ** (level / 20) / rms, 0.95 / peak) * clean.samples
    shift = lead / SAMPLE_RATE
    phones = tuple(replace(p, start=p.start + shift, end=p.end + shift) for p in clean.phones)
    return Speech(samples.clip(-1, 1), phones)

"""Reading audio: what libsndfile knows (wav, flac, ogg/opus, mp3) -> mono float32 at one sampling rate."""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy
import soundfile
import torch
from torchaudio.transforms import Resample

from moe_asr.errors import InputError

LARGEST_KERNEL = 20_000_000
"""Values of a resampling filter; only rates without a small common ratio (15999 -> 16000) need more."""

LONGEST_KNOWN = 2**31 - 2**16
"""Bytes; a WAV header that names more was written before the length was known, to a pipe say."""
SLACK = 64
"""Bytes that the header of a whole WAV may name too many: some writers count the header as audio."""


@dataclass(frozen=True)
class Audio:
    samples: numpy.ndarray
    """(S,) float32, mono, nominally in [-1, 1]."""
    sample_rate: int
    notes: tuple[str, ...] = ()
    """What was changed on the way, for the user to read."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True)
class Header:
    """What a file says about itself before anything is decoded; frames = samples per channel."""

    sample_rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def read_header(path: Path) -> Header:
    """Raises InputError for a missing, unreadable or empty file."""
    with _open(path) as file:
        return _header(file, str(path))


def read_audio(
    source: str | Path | BinaryIO,
    sample_rate: int | None = 16000,
    start: float = 0.0,
    duration: float | None = None,
) -> Audio:
    """Reads `duration` seconds (None = to the end) from `start`; averages channels, resamples other rates.

    sample_rate: of the result, in Hz; None = as stored. Silence is allowed. Raises InputError for a file that
    is missing, not audio, empty, damaged (shorter than its header says), not finite, or lacks that part.
    """
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "the audio stream"))
    with _open(source) as file:
        header = _header(file, name)
        first = round(start * header.sample_rate)
        last = header.frames if duration is None else round((start + duration) * header.sample_rate)
        if not 0 <= first < last <= header.frames:
            raise InputError(
                f"{name} lasts {header.seconds:.3f} s, so there is nothing to read from {start} s"
                + (" to its end." if duration is None else f" for {duration} s.")
            )
        try:
            file.seek(first)
            samples = file.read(last - first, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise InputError(f"{name} is damaged ({_reason(error)}); replace the file.") from None
    if len(samples) < last - first:
        raise InputError(
            f"{name} is damaged: it ends after {(first + len(samples)) / header.sample_rate:.3f} s "
            f"although its header says {header.seconds:.3f} s; replace the file."
        )
    if not numpy.isfinite(samples).all():
        raise InputError(f"{name} holds values that are not finite (NaN or infinite); replace the file.")
    notes = []
    if header.channels > 1:
        notes.append(f"{header.channels} channels averaged to one")
    if sample_rate not in (None, header.sample_rate):
        notes.append(f"resampled from {header.sample_rate} to {sample_rate} Hz")
    rate = sample_rate or header.sample_rate
    return Audio(resample(mix_down(samples.T), header.sample_rate, rate, name), rate, tuple(notes))


def mix_down(channels: numpy.ndarray) -> numpy.ndarray:
    """(C, S) -> (S,): the mean of the channels."""
    return channels[0] if len(channels) == 1 else channels.mean(axis=0)


def resample(samples: numpy.ndarray, old_rate: int, new_rate: int, name: str = "the audio") -> numpy.ndarray:
    """(S,) float32 at old_rate -> (ceil(S * new_rate / old_rate),) float32 at new_rate (windowed sinc)."""
    if old_rate == new_rate:
        return samples
    if old_rate * new_rate // math.gcd(old_rate, new_rate) ** 2 > LARGEST_KERNEL:
        raise InputError(
            f"{name} has {old_rate} Hz, too odd a ratio to {new_rate} Hz; convert it with another program."
        )
    return _resampler(old_rate, new_rate)(torch.from_numpy(numpy.ascontiguousarray(samples))).numpy()


@lru_cache(maxsize=16)
def _resampler(old_rate: int, new_rate: int) -> Resample:
    return Resample(old_rate, new_rate)


def _open(source: str | Path | BinaryIO) -> soundfile.SoundFile:
    if isinstance(source, str | Path) and Path(source).is_dir():
        raise InputError(f"{source} is a folder; name its audio files, such as {source}/*.wav.")
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise InputError(f"there is no audio file {source}; check the path.")
    try:
        return soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        empty = isinstance(source, str | Path) and Path(source).stat().st_size == 0
        reason = "it is empty" if empty else _reason(error)
        raise InputError(f"{source} is not readable audio ({reason}); give wav, flac, ogg or mp3.") from None


def _header(file: soundfile.SoundFile, name: str) -> Header:
    if file.frames <= 0:
        raise InputError(f"{name} holds no samples; replace the file or leave it out.")
    # libsndfile takes what is left of a WAV that was cut off for the whole, and tells only its log.
    if lengths := re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE):
        named, there = map(int, lengths.groups())
        if there + SLACK < named < LONGEST_KNOWN:
            raise InputError(f"{name} is damaged: {there} of its {named} bytes of audio are there; replace the file.")
    return Header(file.samplerate, file.channels, file.frames)


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return text.strip().rstrip(".").lower()

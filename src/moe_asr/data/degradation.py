"""What rooms, crowds and channels do to speech: functions of (samples, strength, keyed rng) that keep time as it is.

Samples are (S,) float arrays, full scale 1; every result has their number, so known times of words stay true. Level
ratios (SNR) are those of mean powers over the whole utterance, pauses included.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import soundfile
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, sosfilt

from moe_asr.config.data import Codec
from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio, read_header, resample

Array = NDArray[Any]

COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
"""Generated noises: power falls with frequency to this exponent, from `_FLAT_BELOW` Hz on."""
_FLAT_BELOW = 50.0
DIRECT_DB = (-3.0, 6.0)
"""Energy of the direct sound over that of all reflections in a generated room (dB), drawn uniformly."""
_FIRST_REFLECTION = 0.003  # seconds after the direct sound
_BAND = (300.0, 3400.0)  # Hz of a telephone line
_CONTAINERS: dict[Codec, tuple[str, str, int, float | None]] = {
    # container and subtype of libsndfile, sampling rate, compression from 0 to 1
    Codec.ulaw: ("WAV", "ULAW", 8000, None),
    Codec.alaw: ("WAV", "ALAW", 8000, None),
    Codec.gsm: ("WAV", "GSM610", 8000, None),
    Codec.vorbis: ("OGG", "VORBIS", 16000, 1.0),
    Codec.opus: ("OGG", "OPUS", 16000, 1.0),
    Codec.mp3: ("MP3", "MPEG_LAYER_III", 16000, 0.99),
}


def mix(samples: Array, noise: Array, snr_db: float) -> Array:
    """noise: (S,), made `snr_db` weaker than the samples; nothing is added to, or by, silence."""
    power, own = numpy.mean(samples**2), numpy.mean(noise**2)
    return samples + noise * numpy.sqrt(power / own) * 10 ** (-snr_db / 20) if power and own else samples


def coloured_noise(length: int, rate: int, colour: str, rng: Generator) -> Array:
    """(length,) of a colour of `COLOURS`, of mean power 1."""
    spectrum = numpy.fft.rfft(rng.standard_normal(length))
    frequencies = numpy.maximum(numpy.fft.rfftfreq(length, 1 / rate), _FLAT_BELOW)
    noise = numpy.fft.irfft(spectrum * frequencies ** (-COLOURS[colour] / 2), length)
    return noise / numpy.sqrt(numpy.mean(noise**2))


def babble(talkers: Sequence[Array], length: int, rng: Generator) -> Array:
    """(length,) of people who talk at once, equally loud; each begins somewhere in what he says, and repeats it."""
    total = numpy.zeros(length)
    for said in talkers:
        if loudness := numpy.sqrt(numpy.mean(said**2)):
            total += numpy.resize(numpy.roll(said, -int(rng.integers(len(said)))), length) / loudness
    return total


def room(rate: int, rt60: float, rng: Generator) -> Array:
    """An impulse response: the direct sound, then noise that falls by 60 dB in `rt60` s (Polack's model)."""
    times = numpy.arange(max(2, round(rt60 * rate))) / rate
    response = rng.standard_normal(len(times)) * 10 ** (-3 * times / rt60) * (times >= _FIRST_REFLECTION)
    energy = numpy.sum(response**2)
    response *= 10 ** (-rng.uniform(*DIRECT_DB) / 20) / numpy.sqrt(energy) if energy else 0.0
    response[0] = 1.0
    return response


def reverberate(samples: Array, response: Array) -> Array:
    """As loud as before; time starts with the largest value of the response, the direct sound."""
    start = int(numpy.abs(response).argmax())
    wet = fftconvolve(samples, response)[start : start + len(samples)]
    after = numpy.mean(wet**2)
    return wet * numpy.sqrt(numpy.mean(samples**2) / after) if after else samples


def through(samples: Array, rate: int, codec: Codec) -> Array:
    """What is left after a codec, written to and read from memory; beyond full scale is clipped, as codecs do."""
    if codec is Codec.telephone:
        narrow = _at(samples, rate, 8000)
        band = sosfilt(butter(4, _BAND, "bandpass", fs=8000, output="sos"), narrow)
        return _fit(_at(through(band, 8000, Codec.ulaw), 8000, rate), len(samples))
    container, subtype, own_rate, compression = _CONTAINERS[codec]
    file = io.BytesIO()
    sent = _at(samples, rate, own_rate).clip(-1, 1)
    soundfile.write(file, sent, own_rate, subtype, format=container, compression_level=compression)
    file.seek(0)
    return _fit(_at(soundfile.read(file, dtype="float32")[0], own_rate, rate), len(samples))


def recordings(source: str) -> list[Path]:
    """Audio files anywhere in a folder, or those a JSONL manifest names in lines of {"audio": path}.

    Raises InputError where there is none.
    """
    path = Path(source)
    if path.is_file():
        try:
            found = [path.parent / json.loads(line)["audio"] for line in path.read_text("utf8").splitlines() if line]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{source} is no JSONL manifest with {{"audio": path}} lines ({error!r}).') from None
    else:
        found = [file for file in sorted(path.rglob("*")) if file.suffix in (".wav", ".flac", ".ogg", ".opus", ".mp3")]
    if not found:
        raise InputError(f"{source} holds no recordings; give a folder of audio files or a JSONL manifest of them.")
    return found


def stretch(path: Path, length: int, rate: int, rng: Generator) -> Array:
    """(length,) from anywhere in a recording, which is repeated if it is shorter. Raises InputError if unreadable."""
    spare = read_header(path).seconds - length / rate
    if spare <= 0.1:
        return numpy.resize(read_audio(path, rate).samples, length)
    return _fit(read_audio(path, rate, rng.uniform(0, spare - 0.05), length / rate + 0.02).samples, length)


def _at(samples: Array, rate: int, new_rate: int) -> Array:
    return resample(numpy.asarray(samples, numpy.float32), rate, new_rate)


def _fit(samples: Array, length: int) -> Array:
    return numpy.pad(samples[:length], (0, max(0, length - len(samples))))

"""Degradations do what their strength says, keep time and length, and are pure functions of what they are given."""

import json
from pathlib import Path

import numpy
import pytest
import soundfile

from moe_asr.config.data import Codec
from moe_asr.data.degradation import (
    COLOURS,
    DIRECT_DB,
    babble,
    coloured_noise,
    mix,
    recordings,
    reverberate,
    room,
    stretch,
    through,
)
from moe_asr.errors import InputError
from moe_asr.randomness import numpy_rng

RATE = 16000
TIMES = numpy.arange(RATE) / RATE
SPEECH = 0.1 * sum(numpy.sin(2 * numpy.pi * f * TIMES) for f in (200, 500, 1000)) * (TIMES > 0.3) * (TIMES < 0.7)


def db(power: float) -> float:
    return float(10 * numpy.log10(power))


def power_between(samples: numpy.ndarray, low: float, high: float) -> float:
    spectrum = numpy.abs(numpy.fft.rfft(samples)) ** 2
    hertz = numpy.fft.rfftfreq(len(samples), 1 / RATE)
    return float(spectrum[(hertz >= low) & (hertz < high)].sum())


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_is_as_loud_as_asked(snr_db: float) -> None:
    noise = numpy_rng("test").normal(3, 7, len(SPEECH))
    added = mix(SPEECH, noise, snr_db) - SPEECH
    assert db(numpy.mean(SPEECH**2) / numpy.mean(added**2)) == pytest.approx(snr_db, abs=1e-6)
    assert numpy.corrcoef(added, noise)[0, 1] == pytest.approx(1.0)


def test_silence_neither_gets_nor_is_noise() -> None:
    silence = numpy.zeros(100)
    assert numpy.array_equal(mix(silence, numpy.ones(100), 0.0), silence)
    assert numpy.array_equal(mix(SPEECH[:100] + 1, silence, 0.0), SPEECH[:100] + 1)
    assert numpy.array_equal(reverberate(silence, room(RATE, 0.3, numpy_rng("test"))), silence)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_of_noise_is_its_slope(colour: str) -> None:
    noise = coloured_noise(20 * RATE, RATE, colour, numpy_rng("test", colour))
    assert numpy.mean(noise**2) == pytest.approx(1.0)
    octaves = [power_between(noise, f, 2 * f) for f in (100, 200, 400, 800, 1600, 3200)]
    slopes = numpy.diff([db(p) for p in octaves])  # an octave of white noise has 3 dB more than the one below
    assert slopes == pytest.approx([db(2.0) * (1 - COLOURS[colour])] * 5, abs=0.7)


def test_all_talkers_are_heard_alike() -> None:
    loud, quiet = (numpy.sin(2 * numpy.pi * f * TIMES[:5000]) for f in (320, 640))
    crowd = babble([9 * loud, 0.01 * quiet, numpy.zeros(10)], RATE, numpy_rng("test"))
    assert len(crowd) == RATE
    assert power_between(crowd, 300, 340) == pytest.approx(power_between(crowd, 620, 660), rel=0.1)


@pytest.mark.parametrize("rt60", [0.2, 0.6, 1.0])
def test_a_room_rings_as_long_as_asked(rt60: float) -> None:
    """The energy that is still to come (Schroeder's integral) falls by 60 dB in `rt60` s: here, from -5 to -25 dB."""
    response = room(RATE, rt60, numpy_rng("test", str(rt60)))
    tail = response[1:]
    decay = 10 * numpy.log10(numpy.cumsum(tail[::-1] ** 2)[::-1] / (tail**2).sum())
    first, last = (int(numpy.argmax(decay < level)) for level in (-5, -25))
    assert (last - first) / RATE * 3 == pytest.approx(rt60, rel=0.1)
    assert DIRECT_DB[0] - 1e-6 <= -db((tail**2).sum()) <= DIRECT_DB[1] + 1e-6
    assert response[0] == 1.0


def test_reverberation_keeps_level_and_time_also_of_late_responses() -> None:
    response = room(RATE, 0.4, numpy_rng("test"))
    wet = reverberate(SPEECH, response)
    assert numpy.mean(wet**2) == pytest.approx(numpy.mean(SPEECH**2))
    assert numpy.allclose(reverberate(SPEECH, numpy.concatenate([numpy.zeros(500), response])), wet)
    assert numpy.abs(wet[: int(0.29 * RATE)]).max() < 1e-9  # nothing is heard before it is said
    assert numpy.mean(wet[int(0.71 * RATE) :] ** 2) > 1e-3 * numpy.mean(wet**2)  # but after


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("length", [37, 16000, 15321])
def test_codecs_change_speech_but_not_its_length_or_time(codec: Codec, length: int) -> None:
    heard = through(SPEECH[:length], RATE, codec)
    assert heard.shape == (length,)
    if length == 16000:
        error = heard - SPEECH
        assert numpy.mean(error**2) > 0
        lags = numpy.correlate(heard, SPEECH[4800:11200], "valid")
        assert abs(int(lags.argmax()) - 4800) < 0.002 * RATE
        assert numpy.corrcoef(numpy.abs(heard), numpy.abs(SPEECH))[0, 1] > 0.45
        assert numpy.array_equal(through(SPEECH, RATE, codec), heard)


def test_a_telephone_has_a_narrow_band() -> None:
    noise = coloured_noise(4 * RATE, RATE, "white", numpy_rng("test")) * 0.1
    heard = through(noise, RATE, Codec.telephone)
    inside = power_between(heard, 400, 3200) / 2800
    assert power_between(heard, 0, 150) / 150 < 0.02 * inside
    assert power_between(heard, 4200, 8000) / 3800 < 0.001 * inside


def test_recordings_come_from_folders_and_manifests(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.wav", "deep/a.flac"):
        soundfile.write(tmp_path / name, SPEECH, RATE)
    (tmp_path / "notes.txt").write_text("no audio")
    both = [tmp_path / "b.wav", tmp_path / "deep" / "a.flac"]
    assert recordings(str(tmp_path)) == both
    manifest = tmp_path / "noises.jsonl"
    manifest.write_text("".join(json.dumps({"audio": str(file.relative_to(tmp_path))}) + "\n" for file in both))
    assert recordings(str(manifest)) == both
    manifest.write_text("b.wav\n")
    with pytest.raises(InputError, match="is no JSONL manifest"):
        recordings(str(manifest))
    with pytest.raises(InputError, match="holds no recordings"):
        recordings(str(tmp_path / "nowhere"))


def test_a_stretch_of_a_recording_comes_from_anywhere_in_it(tmp_path: Path) -> None:
    ramp = numpy.arange(3 * RATE) / (4 * RATE)
    soundfile.write(tmp_path / "ramp.wav", ramp, RATE, subtype="FLOAT")
    starts = []
    for i in range(20):
        part = stretch(tmp_path / "ramp.wav", RATE, RATE, numpy_rng("test", i))
        starts.append(part[0] * 4)
        assert numpy.allclose(part, part[0] + ramp[:RATE], atol=1e-5)
    assert max(starts) - min(starts) > 1.0
    assert numpy.array_equal(
        stretch(tmp_path / "ramp.wav", 7 * RATE, RATE, numpy_rng("test")), numpy.resize(ramp.astype("f4"), 7 * RATE)
    )

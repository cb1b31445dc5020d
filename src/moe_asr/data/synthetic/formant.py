"""A small formant synthesizer for the English digits: source and filter in pure numpy.

A glottal pulse train and white noise pass through a time-varying filter of four formants (the cascade branch
of Klatt, JASA 1980) and one frication resonance, frame by frame in the spectral domain. Good enough to train
on, with exact phone times by construction.
"""

from dataclasses import dataclass

import numpy
from numpy.random import PCG64, Generator

from moe_asr.data.synthetic.recipes import DIGITS
from moe_asr.data.synthetic.render import SAMPLE_RATE, Array, Phone, Speech, Voice

_HOP, _WINDOW, _FFT = 128, 256, 512  # samples: 8, 16 and 32 ms
_FRAME_RATE = SAMPLE_RATE / _HOP


# A segment is a row of numbers: milliseconds; formants F1-F3 in Hz; amplitudes of voice, breath and frication; centre
# and width of the frication in Hz. What is not given is as in silence.
_SILENCE = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4000.0, 2000.0)
# Formants after Peterson & Barney (JASA 1952) for vowels; a stop is closure, burst and breath.
_PHONES = """
iː: 140 290 2300 3000 1.0
ɪ: 90 400 1990 2550 1.0
ɛ: 100 540 1840 2480 1.0
ə: 65 500 1400 2400 0.8
ʌ: 120 640 1190 2390 1.0
ɔː: 150 570 840 2410 1.0
uː: 150 310 900 2240 1.0
oʊ: 90 500 950 2400 1.0|80 350 850 2300 0.9
aɪ: 100 730 1200 2450 1.0|90 400 2000 2600 0.9
eɪ: 90 500 1900 2500 1.0|80 350 2200 2800 0.9
ɹ: 80 330 1100 1550 0.7
w: 75 300 650 2200 0.6
n: 85 260 1500 2600 0.4
v: 70 280 1100 2300 0.3 0 0.15 5000 4000
z: 95 280 1600 2500 0.3 0 0.4 5800 1500
s: 120 320 1600 2500 0 0 0.9 5800 1500
f: 110 320 1100 2300 0 0.05 0.25 4500 6000
θ: 105 320 1300 2500 0 0.05 0.2 6500 3000
t: 50 350 1700 2600|14 350 1700 2600 0 0 1.2 4800 2500|30 400 1700 2600 0 0.3
k: 50 350 1900 2400|18 350 1900 2400 0 0 1.0 2200 800|30 400 1900 2400 0 0.3
"""


def _segment(text: str) -> tuple[float, ...]:
    given = tuple(map(float, text.split()))
    return given + _SILENCE[len(given) :]


_SEGMENTS = {
    symbol: [_segment(row) for row in rows.split("|")]
    for symbol, rows in (line.split(": ") for line in _PHONES.strip().splitlines())
}
_SOUNDS = "z ɪ ɹ oʊ|w ʌ n|t uː|θ ɹ iː|f ɔː ɹ|f aɪ v|s ɪ k s|s ɛ v ə n|eɪ t|n aɪ n"
PRONUNCIATIONS = {word: sounds.split() for word, sounds in zip(DIGITS, _SOUNDS.split("|"), strict=True)}


@dataclass(frozen=True)
class FormantVoice(Voice):
    """pitch in Hz; tract: factor on formants (above 1 = a short vocal tract); rate: factor on the speed;
    breath: share of noise in the voice; tilt: fall of the voice's spectrum in dB per kHz."""

    pitch: float
    tract: float
    rate: float
    breath: float
    tilt: float

    def speak(self, text: str, seed: int) -> Speech:
        """Digit words separated by spaces; raises KeyError for any other."""
        rng = Generator(PCG64(seed))
        phones, segments, ends = _schedule(self, text.split(), rng)
        tracks = _tracks(segments, ends)
        return Speech(_filter(self, tracks, _pitch(self, len(tracks), rng), rng), phones)


def draw_voices(names: list[str], rng: Generator) -> list[FormantVoice]:
    """Voices of adults and children: high voices tend to short tracts."""

    def draw(name: str) -> FormantVoice:
        height = rng.uniform()
        pitch = 90 * 2.7**height * rng.uniform(0.85, 1.15)
        tract = 0.92 + 0.26 * height + rng.uniform(-0.04, 0.04)
        rate, breath, tilt = (rng.uniform(*span) for span in ((0.75, 1.3), (0.02, 0.15), (0, 4)))
        return FormantVoice(name, "en", pitch, tract, rate, breath, tilt)

    return [draw(name) for name in names]


def _schedule(
    voice: FormantVoice, words: list[str], rng: Generator
) -> tuple[tuple[Phone, ...], list[tuple[float, ...]], list[float]]:
    """The phones, and the segments with their end times in seconds, pauses between words included."""
    phones: list[Phone] = []
    segments: list[tuple[float, ...]] = []
    ends: list[float] = []
    time, begin = 0.0, 0
    for word in words:
        stretch = rng.uniform(0.85, 1.15) / voice.rate / 1000
        if segments and rng.random() < 0.5:
            time += rng.uniform(0.02, 0.15)
            segments.append((*segments[-1][:4], *_SILENCE[4:]))
            ends.append(time)
        for symbol in PRONUNCIATIONS[word]:
            start = time
            for segment in _SEGMENTS[symbol]:
                time += segment[0] * stretch * rng.uniform(0.9, 1.1)
                segments.append(segment)
                ends.append(time)
            phones.append(Phone(symbol, start, time, begin))
        begin += len(word) + 1
    return tuple(phones), segments, ends


def _tracks(segments: list[tuple[float, ...]], ends: list[float]) -> Array:
    """(frames, 8) targets of each frame, smoothed: formants glide over 60 ms, amplitudes over 25 ms."""
    times = (numpy.arange(int(ends[-1] * _FRAME_RATE) + 1) + 0.5) / _FRAME_RATE
    index = numpy.searchsorted(ends, times).clip(max=len(segments) - 1)
    targets = numpy.array(segments)[index, 1:]
    for columns, width in ((range(3), 7), (range(3, 6), 3)):
        window = numpy.hanning(width + 2)[1:-1] / numpy.hanning(width + 2).sum()
        for column in columns:
            padded = numpy.pad(targets[:, column], width // 2, mode="edge")
            targets[:, column] = numpy.convolve(padded, window, "valid")
    return targets


def _pitch(voice: FormantVoice, frames: int, rng: Generator) -> Array:
    """(frames * hop,) Hz at each sample: a falling line with slow random movement."""
    count = 2 + frames // 20
    knots = rng.normal(0, 0.03, count).cumsum() + numpy.linspace(0.08, -0.12, count)
    contour = numpy.interp(numpy.linspace(0, count - 1, frames * _HOP), numpy.arange(count), knots)
    return voice.pitch * numpy.exp(contour)


def _filter(voice: FormantVoice, tracks: Array, pitch: Array, rng: Generator) -> Array:
    """(samples,) the two sources through the filters of each frame, by windowed overlap-add."""
    cycles = numpy.floor(numpy.cumsum(pitch) / SAMPLE_RATE)
    # One pulse a cycle, the higher the rarer: the energy does not depend on the pitch.
    pulses = numpy.diff(cycles, prepend=0.0) * numpy.sqrt(SAMPLE_RATE / pitch)
    sources = numpy.stack([pulses, rng.normal(0, 1, len(pitch))])
    padded = numpy.pad(sources, ((0, 0), (_HOP // 2, _WINDOW)))
    window = numpy.hanning(_WINDOW + 1)[:-1]  # shifted by half its length it adds to one
    index = numpy.arange(len(tracks))[:, None] * _HOP + numpy.arange(_WINDOW)
    pulse, noise = numpy.fft.rfft(padded[:, index] * window, _FFT)  # (frames, bins) each

    hertz = numpy.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    voicing, breath, friction, centre, width = (tracks[:, i : i + 1] for i in range(3, 8))
    # The glottis falls by 12 dB per octave, the lips rise by 6.
    source = 10 ** (-voice.tilt * hertz / 20000) / (1 + hertz / 300)
    glottal = source * (voicing * (pulse + voice.breath * noise) + breath * noise)
    fricative = 0.3 * friction * noise / (1 + ((hertz - centre * voice.tract) / width) ** 2)
    spectrum = glottal * _tract(hertz, tracks[:, :3], voice.tract) + fricative

    steps = _FFT // _HOP
    pieces = numpy.fft.irfft(spectrum, _FFT).reshape(len(tracks), steps, _HOP)
    output = numpy.zeros((len(tracks) + steps, _HOP))
    for i in range(steps):
        output[i : i + len(tracks)] += pieces[:, i]
    return output.reshape(-1)[_HOP // 2 : _HOP // 2 + len(pitch)]


def _tract(hertz: Array, formants: Array, scale: float) -> Array:
    """(frames, bins) response of resonators in cascade, each of gain 1 at 0 Hz (Klatt 1980, section II)."""
    delay = numpy.exp(-2j * numpy.pi * hertz / SAMPLE_RATE)
    response = numpy.ones((len(formants), len(hertz)), numpy.complex128)
    for centre in (*formants.T[:, :, None], numpy.full((len(formants), 1), 3500.0)):
        radius = numpy.exp(-numpy.pi * (50 + 0.06 * centre * scale) / SAMPLE_RATE)
        b, c = 2 * radius * numpy.cos(2 * numpy.pi * centre * scale / SAMPLE_RATE), -(radius**2)
        response *= (1 - b - c) / (1 - b * delay - c * delay**2)
    return response

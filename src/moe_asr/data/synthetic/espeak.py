"""espeak-ng behind ctypes: many voices, many languages, exact phone times.

espeak-ng is GPL-3 and therefore an optional extra (`synthetic`) that only ever lives in a worker process of
its own; nothing of it is part of this program. Its state outlives an utterance and it crashes under threads,
so the library is unloaded, loaded and seeded anew for each utterance (0.7 ms): only then is the audio a pure
function of (voice, text, seed).
"""

import _ctypes
import ctypes
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy
from numpy.random import Generator

from moe_asr.data.synthetic.render import SAMPLE_RATE, Array, Phone, Speech, Voice, in_processes
from moe_asr.errors import InputError

# espeak-ng's names of the accents of each language; some have only one.
ACCENTS = {
    "en": "en-us en en-gb-scotland en-029 en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-us-nyc",
    **{language: language for language in ("cmn", "de", "fr", "it", "ru")},
    "es": "es es-419",
    "pt": "pt pt-br",
}
# The voice variants that sound like a person: no whispers, robots or cartoons; nor caleb and Reed, whose audio differs
# from process to process.
VARIANTS = """
    f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 Alex Alicia Andrea Andy Annie Denis Diogo Gene Henrique Hugo Lee
    Marco Mario Michael Mike Nguyen adam anika aunty belinda benjamin boris david ed edward edward2
    grandma grandpa gustave ian john kaukovalta klatt4 klatt5 linda marcelo max michel miguel mike2 norbert
    pablo paul pedro quincy rob robert sandro shelby steph travis victor zac"""

# From speak_lib.h: espeak_PARAMETER, then arguments of Initialize and Synth, then an event type.
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_SYNCHRONOUS, _PHONE_EVENTS_IN_IPA, _BY_CHARACTER, _PHONE_EVENT = 2, 0x8003, 1, 7
_UTF8_AND_PHONEMES = 0x101  # what stands in [[...]] are names of phonemes


class _Name(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("pointer", ctypes.c_void_p), ("text", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("type", "message", "position", "length", "milliseconds", "sample")),
        ("user_data", ctypes.c_void_p),
        ("name", _Name),
    ]


Spoken = tuple[int, str, int]
_Samples, _Events = ctypes.POINTER(ctypes.c_short), ctypes.POINTER(_Event)
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, _Samples, ctypes.c_int, _Events)


def available() -> bool:
    return find_spec("espeakng_loader") is not None


@dataclass(frozen=True)
class EspeakVoice(Voice):
    """kind: accent+variant; pitch and spread (of the intonation) 0-100; rate in words per minute."""

    kind: str
    pitch: int
    spread: int
    rate: int

    def speak(self, text: str, seed: int) -> Speech:
        """Raises RuntimeError if espeak-ng lacks the voice."""
        samples, events, rate = _synthesize(self, text, seed)
        return Speech(_resample(samples, rate), _phones(events, len(samples), rate))


def kinds_of(language: str) -> list[str]:
    """Every accent+variant: what tells two voices apart whatever their pitch and rate."""
    return [f"{accent}+{variant}" for accent in ACCENTS[language].split() for variant in VARIANTS.split()]


def draw_voices(language: str, names: list[str], rng: Generator) -> list[EspeakVoice]:
    """Distinct voices: every accent x variant is used before one returns with another pitch and rate."""
    kinds = kinds_of(language)
    order = rng.permutation(len(kinds))

    def draw(i: int, name: str) -> EspeakVoice:
        pitch, spread, rate = (int(rng.integers(*span)) for span in ((25, 76), (30, 71), (130, 216)))
        return EspeakVoice(name, language, kinds[order[i % len(kinds)]], pitch, spread, rate)

    return [draw(i, name) for i, name in enumerate(names)]


def phonemize(texts: Sequence[str], accent: str) -> list[str]:
    """IPA phones of each text, separated by spaces; `accent` is espeak-ng's name, such as "en-us".

    Raises InputError if espeak-ng is not installed or has no such accent.
    """
    if not available():
        raise InputError("phones= needs espeak-ng: install it with `pip install 'moe-asr[synthetic]'`.")
    voice = EspeakVoice("pronunciation", accent, accent, pitch=50, spread=50, rate=175)
    try:
        return list(in_processes(partial(_pronounce, voice), texts, chunk=64))
    except RuntimeError as error:
        raise InputError(f"phones={accent} is no accent of espeak-ng; write phones=en-us, for example.") from error


def _pronounce(voice: EspeakVoice, text: str) -> str:
    return " ".join(phone.symbol for phone in voice.speak(text, seed=0).phones)


def _synthesize(voice: EspeakVoice, text: str, seed: int) -> tuple[Array, list[Spoken], int]:
    """(S,) 16-bit samples, (sample, phone name, character where its word begins) events and the sample rate."""
    import espeakng_loader

    chunks: list[Array] = [numpy.zeros(0, numpy.int16)]
    events: list[Spoken] = []

    def receive(samples, count, event) -> int:  # type: ignore[no-untyped-def]
        if samples and count:
            chunks.append(numpy.ctypeslib.as_array(samples, (count,)).copy())
        for i in range(1 << 16):
            if not event[i].type:  # the end of the list
                break
            if event[i].type == _PHONE_EVENT:
                name = event[i].name.text.decode("utf-8", "ignore")
                events.append((event[i].sample, name, event[i].position - 1))
        return 0

    callback = _Callback(receive)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        data = espeakng_loader.get_data_path().encode()
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONE_EVENTS_IN_IPA)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        library.espeak_SetSynthCallback(callback)
        if rate <= 0 or library.espeak_SetVoiceByName(voice.kind.encode()):
            raise RuntimeError(f"espeak-ng has no voice {voice.kind!r}")
        # The default volume of 100 clips the louder variants.
        settings = {_RATE: voice.rate, _PITCH: voice.pitch, _RANGE: voice.spread, _VOLUME: 60}
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        raw = text.encode() + b"\0"
        library.espeak_Synth(raw, ctypes.c_size_t(len(raw)), 0, _BY_CHARACTER, 0, _UTF8_AND_PHONEMES, None, None)
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    return numpy.concatenate(chunks), events, rate


def _phones(events: list[Spoken], length: int, rate: int) -> tuple[Phone, ...]:
    """A phone lasts until the next event. Pauses have no name; a modifier alone belongs to its neighbour."""
    phones: list[Phone] = []
    ends = [*(start for start, _, _ in events[1:]), length]
    for (start, name, word), end in zip(events, ends, strict=False):
        symbol = name.strip("ˈˌ-")
        if phones and symbol and all(unicodedata.category(c) in ("Lm", "Mn", "Sk") for c in symbol):
            last = phones.pop()
            phones.append(Phone(last.symbol + symbol, last.start, end / rate, last.word))
        elif symbol:
            phones.append(Phone(symbol, start / rate, end / rate, word))
    return tuple(phones)


def _resample(samples: Array, rate: int) -> Array:
    """(S,) 16-bit samples at `rate` -> (S * 16000 / rate,) at full scale 1, by cutting the spectrum."""
    divisor = numpy.gcd(rate, SAMPLE_RATE)
    block_in, block_out = rate // divisor, SAMPLE_RATE // divisor
    # Blocks of 441 samples become 320. Two blocks of silence keep the circular wrap away from the speech;
    # a multiple of four has small factors, which makes the transform fast.
    blocks = 4 * (-(-len(samples) // block_in // 4) + 1)
    spectrum = numpy.fft.rfft(samples / 32768, block_in * blocks)[: block_out * blocks // 2 + 1]
    spectrum[-1] = 0
    resampled = numpy.fft.irfft(spectrum, block_out * blocks) * (block_out / block_in)
    return resampled[: len(samples) * block_out // block_in]

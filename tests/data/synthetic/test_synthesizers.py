import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy
import pytest

from moe_asr.data.synthetic import espeak, formant
from moe_asr.data.synthetic.espeak import ACCENTS, VARIANTS, EspeakVoice
from moe_asr.data.synthetic.formant import DIGITS, PRONUNCIATIONS, FormantVoice
from moe_asr.data.synthetic.render import SAMPLE_RATE, Speech, Voice, record

EN = EspeakVoice("v", "en", "en-us+f2", 50, 50, 170)
LOW = FormantVoice("v", "en", 110.0, 0.95, 1.0, 0.05, 1.0)
HIGH = FormantVoice("w", "en", 220.0, 1.15, 1.0, 0.05, 1.0)


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    """espeak-ng lives in a process of its own here too."""
    if not espeak.available():
        pytest.skip("espeak-ng is not installed (extra `synthetic`)")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def equal(a: Speech, b: Speech) -> bool:
    return a.phones == b.phones and numpy.array_equal(a.samples, b.samples)


def speak_16(voice: Voice) -> Speech:
    return voice.speak("16", 1)


def share_of_hiss(speech: Speech, symbol: str) -> float:
    """The share of energy above 3.5 kHz within the phones of that name."""
    spectra = [
        numpy.abs(numpy.fft.rfft(speech.samples[int(p.start * SAMPLE_RATE) : int(p.end * SAMPLE_RATE)], 8192)) ** 2
        for p in speech.phones
        if p.symbol == symbol
    ]
    total = numpy.sum(spectra, axis=0)
    return float(total[3500 * 8192 // SAMPLE_RATE :].sum() / total.sum())


def check_times(speech: Speech) -> None:
    ends = [phone.end for phone in speech.phones]
    assert all(phone.start <= phone.end for phone in speech.phones)
    assert all(before <= phone.start + 1e-9 for before, phone in zip(ends, speech.phones[1:], strict=False))
    assert ends[-1] <= len(speech.samples) / SAMPLE_RATE + 1e-3


def test_espeak_says_the_same_whatever_was_said_before(worker: ProcessPoolExecutor) -> None:
    other = EspeakVoice("w", "de", "de+m3", 30, 60, 200)
    calls: list[tuple[Voice, str, int]] = [
        (EN, "six seven", 5),
        (other, "guten Tag", 1),
        (EN, "six seven", 5),
        (EN, "six seven", 6),
    ]
    first, _, again, reseeded = (worker.submit(v.speak, text, seed).result() for v, text, seed in calls)
    assert equal(first, again)
    assert not equal(first, reseeded)


def test_espeak_phones_sit_where_they_sound(worker: ProcessPoolExecutor) -> None:
    speech = worker.submit(EN.speak, "six seven six", 1).result()
    assert [p.symbol for p in speech.phones] == list("sɪkssɛvənsɪks")
    check_times(speech)
    assert share_of_hiss(speech, "s") > 0.6
    assert share_of_hiss(speech, "ɪ") < 0.1


def test_espeak_has_every_accent_and_variant(worker: ProcessPoolExecutor) -> None:
    kinds = [f"{accent}+f1" for accents in ACCENTS.values() for accent in accents.split()]
    kinds += [f"en-us+{variant}" for variant in VARIANTS.split()]
    spoken = [worker.submit(EspeakVoice("v", "", kind, 50, 50, 180).speak, "2", 1) for kind in kinds]
    samples = [s.result().samples for s in spoken]
    assert len({s.tobytes() for s in samples}) == len(kinds) - 1  # en-us+f1 is named twice
    assert max(numpy.abs(s).max() for s in samples) < 0.99
    missing = EspeakVoice("v", "", "xx-nowhere+f1", 50, 50, 180)
    with pytest.raises(RuntimeError, match="no voice"):
        worker.submit(missing.speak, "2", 1).result()


def test_espeak_variants_say_the_same_in_every_process(worker: ProcessPoolExecutor) -> None:
    voices = [EspeakVoice("v", "", f"en-us+{variant}", 50, 50, 180) for variant in VARIANTS.split()]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        said = [pool.map(speak_16, voices) for pool in (worker, other)]
        differing = [voice.kind for voice, *pair in zip(voices, *said, strict=True) if not equal(*pair)]
    assert differing == []


def test_espeak_joins_modifiers_and_hears_nothing_in_silence(worker: ProcessPoolExecutor) -> None:
    russian = worker.submit(EspeakVoice("v", "ru", "ru+f1", 50, 50, 180).speak, "25", 1).result()
    assert "pʲ" in [p.symbol for p in russian.phones]
    assert not any(p.symbol == "ʲ" for p in russian.phones)
    assert worker.submit(record, EN, "...", 1).result().phones == ()


def test_espeak_voices_are_distinct() -> None:
    voices = espeak.draw_voices("en", [f"v{i}" for i in range(200)], numpy.random.default_rng(0))
    assert len({voice.kind for voice in voices}) == 200
    few = espeak.draw_voices("it", [f"v{i}" for i in range(200)], numpy.random.default_rng(0))
    assert len({(v.kind, v.pitch, v.spread, v.rate) for v in few}) == 200


def test_resampling_keeps_tones_below_8_khz_and_removes_the_rest() -> None:
    times = numpy.arange(22050) / 22050
    low, high = (10000 * numpy.sin(2 * numpy.pi * hertz * times) for hertz in (1000, 9000))
    resampled = espeak._resample((low + high).astype(numpy.int16), 22050)
    expected = 10000 / 32768 * numpy.sin(2 * numpy.pi * 1000 * numpy.arange(16000) / 16000)
    assert len(resampled) == 16000
    assert numpy.abs(resampled - expected)[800:-800].max() < 0.01


def test_formant_speech_is_a_function_of_voice_text_and_seed() -> None:
    speech = LOW.speak("four two", 1)
    assert equal(speech, LOW.speak("four two", 1))
    assert not equal(speech, LOW.speak("four two", 2))
    assert not equal(speech, HIGH.speak("four two", 1))
    with pytest.raises(KeyError):
        LOW.speak("eleven", 1)


def test_formant_phones_sit_where_they_sound() -> None:
    for voice in (LOW, HIGH):
        speech = voice.speak("six seven six", 1)
        assert [p.symbol for p in speech.phones] == [s for w in ("six", "seven", "six") for s in PRONUNCIATIONS[w]]
        check_times(speech)
        assert share_of_hiss(speech, "s") > 0.6
        assert share_of_hiss(speech, "ɪ") < 0.1


@pytest.mark.parametrize("voice", [LOW, HIGH])
def test_formant_pitch_is_the_voices(voice: FormantVoice) -> None:
    speech = voice.speak("nine one nine", 3)
    vowel = next(p for p in speech.phones if p.symbol == "aɪ")
    x = speech.samples[int(vowel.start * SAMPLE_RATE) : int(vowel.end * SAMPLE_RATE)]
    correlation = numpy.correlate(x, x, "full")[len(x) - 1 :]
    shortest = SAMPLE_RATE // 300
    period = shortest + int(correlation[shortest : SAMPLE_RATE // 80].argmax())
    assert SAMPLE_RATE / period == pytest.approx(voice.pitch, rel=0.2)


def test_formant_digits_of_new_voices_are_told_apart_by_a_linear_classifier() -> None:
    def features(speech: Speech) -> numpy.ndarray:
        """Log energies of 24 bands at 12 moments between the first and the last phone."""
        x = speech.samples[int(speech.phones[0].start * SAMPLE_RATE) : int(speech.phones[-1].end * SAMPLE_RATE)]
        starts = numpy.linspace(0, len(x) - 401, 12).astype(int)
        power = numpy.abs(numpy.fft.rfft(x[starts[:, None] + numpy.arange(400)] * numpy.hanning(400), 512)) ** 2
        edges = (256 * (numpy.linspace(0.15, 1, 25) ** 2)).astype(int)
        bands = numpy.log(numpy.add.reduceat(power, edges[:-1], axis=1) + 1e-6)
        return (bands - bands.mean()).ravel()

    voices = formant.draw_voices([f"v{i}" for i in range(40)], numpy.random.default_rng(0))
    x = numpy.array([features(record(v, w, 7 * i)) for i, v in enumerate(voices) for w in DIGITS])
    y = numpy.tile(numpy.arange(10), 40)
    weights = numpy.linalg.solve(x[:300].T @ x[:300] + 100 * numpy.eye(x.shape[1]), x[:300].T @ numpy.eye(10)[y[:300]])
    assert ((x[300:] @ weights).argmax(1) == y[300:]).mean() > 0.95


def test_a_recording_has_margins_a_level_and_no_digital_silence() -> None:
    clean, recorded = LOW.speak("one", 1), record(LOW, "one", 1)
    lead = recorded.phones[0].start - clean.phones[0].start
    assert 0.05 <= lead <= 0.15
    assert len(recorded.samples) > len(clean.samples) + 0.15 * SAMPLE_RATE
    assert 0 < numpy.abs(recorded.samples[: int(0.04 * SAMPLE_RATE)]).mean() < 0.002
    speech = recorded.samples[int(lead * SAMPLE_RATE) :][: len(clean.samples)]
    assert -29 < 20 * numpy.log10(numpy.sqrt(numpy.mean(speech**2))) < -17
    assert numpy.abs(recorded.samples).max() <= 1

import io

import numpy
import pytest
import soundfile

from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio, read_header, resample


def tone(rate, seconds=0.5, hertz=440.0):
    return (0.3 * numpy.sin(2 * numpy.pi * hertz * numpy.arange(int(rate * seconds)) / rate)).astype("float32")


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "FLOAT"}, 0.0),
        ("a.flac", {"subtype": "PCM_16"}, 2**-15),
        ("a.ogg", {"subtype": "VORBIS"}, 0.02),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.05),
        ("a.mp3", {"format": "MP3"}, 0.05),
    ],
)
def test_formats_give_the_written_samples(tmp_path, name, options, tolerance):
    samples = tone(16000)
    soundfile.write(tmp_path / name, samples, 16000, **options)
    audio = read_audio(tmp_path / name)
    assert (audio.samples.dtype, audio.samples.shape, audio.sample_rate, audio.notes) == (
        numpy.float32,
        (8000,),
        16000,
        (),
    )
    error = numpy.abs(audio.samples - samples)
    # A lossy codec rings where the tone is cut off.
    assert (error if tolerance < 0.01 else error[800:-800]).max() <= tolerance
    assert audio.seconds == 0.5


def test_any_rate_is_resampled_with_a_note(tmp_path):
    for rate in (8000, 22050, 48000):
        soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
        audio = read_audio(tmp_path / "a.wav")
        middle = slice(800, -800)  # the ends of a cut tone are not a tone
        assert len(audio.samples) == 8000
        assert numpy.abs(audio.samples - tone(16000))[middle].max() < 2e-3
        assert audio.notes == (f"resampled from {rate} to 16000 Hz",)
    assert read_audio(tmp_path / "a.wav", sample_rate=None).sample_rate == 48000


def test_resampling_removes_what_the_new_rate_cannot_hold_and_refuses_hopeless_ratios():
    assert numpy.abs(resample(tone(16000, hertz=6000), 16000, 8000))[100:-100].max() < 2e-3
    assert resample(tone(8000)[:3], 8000, 22050).shape == (9,)
    with pytest.raises(InputError, match=r"clip\.wav has 15999 Hz"):
        resample(tone(15999), 15999, 16000, "clip.wav")


def test_channels_are_averaged_with_a_note(tmp_path):
    left, right = tone(16000), tone(16000, hertz=300)
    soundfile.write(tmp_path / "a.wav", numpy.stack([left, right], 1), 16000, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav")
    assert numpy.allclose(audio.samples, (left + right) / 2, atol=1e-7)
    assert audio.notes == ("2 channels averaged to one",)


def test_a_part_of_a_file_and_a_stream(tmp_path):
    samples = tone(16000)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    stream = io.BytesIO((tmp_path / "a.wav").read_bytes())
    assert numpy.array_equal(read_audio(stream, start=0.1, duration=0.2).samples, samples[1600:4800])
    assert numpy.array_equal(read_audio(str(tmp_path / "a.wav"), start=0.4).samples, samples[6400:])
    for start, duration in ((0.5, None), (0.4, 0.2), (0.1, 0.0), (-0.1, None)):
        with pytest.raises(InputError, match="nothing to read"):
            read_audio(tmp_path / "a.wav", start=start, duration=duration)


def test_silence_is_allowed(tmp_path):
    soundfile.write(tmp_path / "a.flac", numpy.zeros(1600), 16000)
    assert read_audio(tmp_path / "a.flac").samples.tolist() == [0.0] * 1600


def damaged(folder, kind):
    noise = numpy.random.default_rng(0).normal(0, 0.1, 48000)
    path = folder / ("bad.ogg" if kind == "hole" else "bad.flac")
    soundfile.write(path, noise, 16000)
    whole = path.read_bytes()
    half = len(whole) // 2
    contents = {
        "missing": None,
        "0 bytes": b"",
        "text": b"not audio at all",
        "truncated": whole[:half],
        "hole": whole[:half] + bytes(2000) + whole[half + 2000 :],
    }
    path.unlink()
    if contents[kind] is not None:
        path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "there is no audio file"),
        ("0 bytes", "it is empty"),
        ("text", "not readable audio"),
        ("truncated", "damaged"),
        ("hole", "damaged"),
    ],
)
def test_bad_files_are_named_in_one_sentence(tmp_path, kind, says):
    path = damaged(tmp_path, kind)
    with pytest.raises(InputError, match=says) as error:
        read_audio(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wav_that_was_cut_off_is_damaged_unless_its_length_was_never_known(tmp_path):
    path = tmp_path / "cut.wav"
    soundfile.write(path, numpy.zeros(4000), 16000)
    whole = path.read_bytes()
    path.write_bytes(whole[:4044])
    with pytest.raises(InputError, match=r"cut\.wav is damaged: 4000 of its 8000 bytes of audio are there"):
        read_header(path)
    for size, there in ((2**32 - 1, 8000), (8044, 8000), (8000, 8000)):  # a pipe, the header counted, whole
        path.write_bytes(whole[:40] + size.to_bytes(4, "little") + whole[44 : 44 + there])
        assert len(read_audio(path).samples) == 4000


def test_no_samples_and_no_numbers_are_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", numpy.zeros(0), 16000)
    with pytest.raises(InputError, match=r"none\.wav holds no samples"):
        read_header(tmp_path / "none.wav")
    for value in (numpy.nan, numpy.inf):
        soundfile.write(tmp_path / "nan.wav", numpy.array([0.0, value]), 16000, subtype="FLOAT")
        with pytest.raises(InputError, match=r"nan\.wav holds values that are not finite"):
            read_audio(tmp_path / "nan.wav")


def test_the_header_says_what_is_inside(tmp_path):
    soundfile.write(tmp_path / "a.wav", numpy.zeros((400, 2)), 8000)
    header = read_header(tmp_path / "a.wav")
    assert (header.sample_rate, header.channels, header.frames, header.seconds) == (8000, 2, 400, 0.05)

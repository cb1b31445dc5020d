"""A stream says what the chunk-masked pass says, however its samples come, and ends utterances by the rules."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch

from moe_asr.config.commands import EndpointConfig
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio, resample
from moe_asr.runs import streaming
from moe_asr.runs.recognizer import Recognizer, Transcript
from moe_asr.runs.streaming import Greedy, Session, file_blocks, resampled


@pytest.fixture(scope="module")
def recognizer(untrained: Path) -> Recognizer:
    return Recognizer.load(untrained)


@pytest.fixture(scope="module")
def speech(digits: Path) -> torch.Tensor:
    """About 2 seconds."""
    cut = max(read_split(digits, "seen"), key=lambda c: c.duration)
    return torch.from_numpy(load_samples(cut))[:33_333]


def told(transcript: Transcript) -> tuple[object, ...]:
    h = transcript.hypothesis
    return transcript.text, h.tokens, h.frames, transcript.seconds, pytest.approx(h.score, abs=1e-3)


def pushed(session: Session, samples: torch.Tensor, size: int) -> tuple[Transcript, list[streaming.Partial]]:
    partials = [session.push(part) for part in samples.split(size)]
    return session.finish(), partials


@pytest.mark.parametrize(("chunk", "left"), [(1, 0), (4, 2), (16, None), (1000, None)])
def test_a_stream_says_what_the_chunk_mask_says(
    recognizer: Recognizer, speech: torch.Tensor, chunk: int, left: int | None
) -> None:
    whole = recognizer.transcribe(speech, DecodeConfig(chunk=chunk, left=left))
    assert len(whole.hypothesis.tokens) > 5
    session = recognizer.stream(chunk, left)
    for size in (37, 1600, len(speech)):
        transcript, _ = pushed(session, speech, size)
        assert told(transcript) == told(whole)


MODES = [
    {"mode": DecodeMode.ctc_prefix_beam, "beam": 4, "nbest": 3, "blank_penalty": 1.0},
    {"mode": DecodeMode.ctc_prefix_beam, "beam": 4, "hotwords": ["nine nine", "five one"]},
    {"mode": DecodeMode.attention_rescoring, "beam": 4, "nbest": 2, "ctc_weight": 0.1},
    {"mode": DecodeMode.attention, "beam": 3},
]


@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(map(str, options.values())))
def test_every_mode_says_in_a_stream_what_it_says_offline(
    recognizer: Recognizer, speech: torch.Tensor, options: dict[str, Any]
) -> None:
    speech = speech[:20_000]
    decode = DecodeConfig(**options, chunk=4, left=2)
    whole = recognizer.transcribe(speech, decode)
    session = recognizer.stream(4, 2, decode)
    transcript, partials = pushed(session, speech, 640)
    assert told(transcript) == told(whole)
    assert [h.tokens for h in transcript.nbest] == [h.tokens for h in whole.nbest]
    assert transcript.hypothesis.confidence == pytest.approx(whole.hypothesis.confidence, abs=1e-4)
    assert transcript.hypothesis.token_confidences == pytest.approx(whole.hypothesis.token_confidences, abs=1e-4)
    assert whole.hypothesis.tokens
    for partial in partials:
        assert partial.tokens[: partial.stable] == transcript.hypothesis.tokens[: partial.stable]
    assert (max(partial.stable for partial in partials) > 0) == (decode.mode is not DecodeMode.attention)
    again, _ = pushed(session, speech, 20_000)
    assert again == transcript


def test_greedy_goes_on_where_it_stopped() -> None:
    """Runs that cross a border are one token, as certain as in their best frame; a blank between makes two."""
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(60, 3, generator=generator).mul(2).log_softmax(-1)
    whole = ctc_greedy(log_probs.unsqueeze(0), torch.tensor([60]), blank=1)[0]
    assert len(whole.tokens) > 15
    for size in (1, 2, 7):
        search = Greedy(blank=1)
        state = search.start()
        for part in log_probs.split(size):
            state = search.advance(state, part)
        (found,) = search.finish(state)
        assert (found.tokens, found.frames, found.token_confidences) == (
            whole.tokens,
            whole.frames,
            whole.token_confidences,
        )
        assert (found.score, found.confidence) == pytest.approx((whole.score, whole.confidence))


def test_what_the_mode_needs_is_asked_for_before_the_stream(untrained: Path) -> None:
    recognizer = Recognizer.load(untrained)
    del recognizer.model.decoders["left_to_right"]
    with pytest.raises(InputError, match="no left-to-right decoder"):
        recognizer.stream(4, decode=DecodeConfig(mode=DecodeMode.attention))
    with pytest.raises(InputError, match="no left-to-right decoder"):
        recognizer.stream(4, decode=DecodeConfig(mode=DecodeMode.attention_rescoring))
    with pytest.raises(InputError, match="hotword 'xyz'"):
        recognizer.stream(4, decode=DecodeConfig(mode=DecodeMode.ctc_prefix_beam, hotwords=["xyz"]))


def test_samples_one_by_one(recognizer: Recognizer, speech: torch.Tensor) -> None:
    speech = speech[:8000]
    session = recognizer.stream(4, 1)
    one_by_one, partials = pushed(session, speech, 1)
    assert one_by_one == pushed(session, speech, len(speech))[0]  # to the last bit
    assert told(one_by_one) == told(recognizer.transcribe(speech, DecodeConfig(chunk=4, left=1)))
    changes = [i for i, (a, b) in enumerate(pairwise(partials), 1) if a != b]
    # A chunk needs 4 * 4 + 3 feature frames, i.e. (19 - 1) * 160 + 400 samples, each further one 2560 more.
    assert {(i + 1 - 3280) % 2560 for i in changes} == {0}


def test_partials_grow_and_what_is_stable_stays(recognizer: Recognizer, speech: torch.Tensor) -> None:
    transcript, partials = pushed(recognizer.stream(2), speech, 640)
    assert len({partial.text for partial in partials}) > 5
    final = transcript.hypothesis.tokens
    for partial in partials:
        assert partial.tokens[: partial.stable] == final[: partial.stable]
        assert partial.text == recognizer.tokenizer.decode(partial.tokens)
        assert partial.seconds[: partial.stable] == transcript.seconds[: partial.stable]
        assert len(partial.seconds) == len(partial.tokens)
    assert partials[-1].stable > 5


def test_sixteen_bits_and_floats_are_the_same(recognizer: Recognizer, speech: torch.Tensor) -> None:
    integers = (speech.numpy() * 32767).astype(numpy.int16)
    session = recognizer.stream(8)
    assert session.push(integers).text
    first = session.finish()
    assert pushed(session, torch.from_numpy(integers / 32768.0), 5000)[0] == first
    frozen = numpy.frombuffer(integers.tobytes(), numpy.int16)  # may not be written to
    session.push(frozen)
    assert session.finish() == first


def test_a_buffer_may_be_used_again(recognizer: Recognizer, speech: torch.Tensor) -> None:
    session, buffer = recognizer.stream(4), torch.zeros(1000)
    for part in speech[:20_000].split(1000):
        buffer.copy_(part)
        session.push(buffer)
        buffer.fill_(1.0)
    assert session.finish() == pushed(session, speech[:20_000], 20_000)[0]


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 1359, 1360, 1361])
def test_a_stream_shorter_than_a_frame_is_empty(recognizer: Recognizer, speech: torch.Tensor, samples: int) -> None:
    session = recognizer.stream(4)
    transcript, partials = pushed(session, speech[:samples], 100)
    whole = recognizer.transcribe(speech[:samples], DecodeConfig(chunk=4))
    assert told(transcript) == told(whole)
    assert transcript.segments[0].end == (0.04 if samples >= 1360 else 0.0)
    assert all(partial.text == "" for partial in partials)


def test_what_is_no_stream_of_samples_is_refused(recognizer: Recognizer) -> None:
    session = recognizer.stream(4)
    for bad in (numpy.zeros((10, 2)), numpy.zeros(10, numpy.int32), numpy.array(0.5)):
        with pytest.raises(InputError, match=r"a stream takes one channel of samples, floats in \[-1, 1\] or 16-bit"):
            session.push(bad)
    with pytest.raises(InputError, match="not finite"):
        session.push(numpy.array([0.0, numpy.nan]))
    assert session.finish().text == ""
    with pytest.raises(InputError, match=r"decode\.chunk=16"):
        Session(recognizer, DecodeConfig())


def scripted(monkeypatch: pytest.MonkeyPatch, recognizer: Recognizer, classes: list[int]) -> None:
    """Lets the model say one class per frame, in the order in which frames are asked for; blanks with p = 0.9."""
    script = iter(classes)

    def log_probs(frames: torch.Tensor) -> torch.Tensor:
        rows = [next(script) for _ in range(frames.shape[1])]
        size = len(recognizer.tokenizer)
        probs = torch.full((1, len(rows), size), 0.1 / (size - 1))
        probs[0, torch.arange(len(rows)), torch.tensor(rows)] = 0.9
        return probs.log()

    monkeypatch.setattr(recognizer.model, "ctc_log_probs", log_probs)


def frames_of(seconds: float) -> int:
    return round(seconds / 0.04)


def silence(frames: int) -> torch.Tensor:
    """As many samples as give so many frames."""
    return torch.zeros((4 * frames + 2) * 160 + 400)


RULES = [
    # After text a second of silence ends an utterance, but not 24 frames; without text 5 seconds do, silently.
    ([3, 3, 0, 4] + [0] * 25 + [5] + [0] * 10, [(0, 29, [3, 4]), (29, 40, [5])]),
    ([3] + [0] * 24 + [5] + [0] * 24, [(0, 50, [3, 5])]),
    ([0] * 124 + [7] + [0] * 3, [(0, 128, [7])]),
    ([0] * 126 + [7] + [0] * 3, [(125, 130, [7])]),
    # Nothing is longer than 4 seconds: a token that lasts beyond the cut is said in both.
    ([3, 4] * 55, [(0, 100, [3, 4] * 50), (100, 110, [3, 4] * 5)]),
    ([3] * 105, [(0, 100, [3]), (100, 105, [3])]),
]


@pytest.mark.parametrize(("classes", "expected"), RULES)
def test_endpoints(
    recognizer: Recognizer,
    monkeypatch: pytest.MonkeyPatch,
    classes: list[int],
    expected: list[tuple[int, int, list[int]]],
) -> None:
    session = recognizer.stream(1, 0, endpoint=EndpointConfig(longest=4.0 if len(classes) < 120 else 20.0))
    scripted(monkeypatch, recognizer, classes)
    transcript, partials = pushed(session, silence(len(classes)), 1280)
    found = [(frames_of(s.start), frames_of(s.end), list(s.transcript.hypothesis.tokens)) for s in transcript.segments]
    assert found == expected
    early = [segment for partial in partials for segment in partial.segments]
    assert early == list(transcript.segments)[: len(early)]
    assert len(early) >= len(expected) - 1
    assert transcript.hypothesis.tokens == tuple(token for _, _, tokens in expected for token in tokens)
    assert transcript.text == " ".join(recognizer.tokenizer.decode(tokens) for _, _, tokens in expected)
    begins = [i for i, c in enumerate(classes) if c and (i in (0, 100) or classes[i - 1] != c)]
    assert [frames_of(at) for at in transcript.seconds] == begins == list(transcript.hypothesis.frames)


def test_rules_are_judged_at_the_end_of_a_chunk_and_can_be_set(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = [3] + [0] * 14 + [4] + [0] * 16
    cases = [
        (EndpointConfig(silence_after_text=0.4), [32]),  # frame 15 speaks again before the first chunk ends
        (EndpointConfig(silence_after_text=0.4, blank=0.95), [32]),  # never sure of silence: the stream ends first
        (EndpointConfig(longest=0.6), [16]),  # nothing is said in the second chunk
    ]
    sessions = [recognizer.stream(16, endpoint=rules) for rules, _ in cases]
    for session, (rules, ends) in zip(sessions, cases, strict=True):
        scripted(monkeypatch, recognizer, classes)
        transcript, partials = pushed(session, silence(32), 4000)
        assert [frames_of(s.end) for s in transcript.segments] == ends
        assert sum(len(partial.segments) for partial in partials) == (rules.blank < 0.9)


def test_each_segment_says_what_its_samples_say(recognizer: Recognizer, speech: torch.Tensor) -> None:
    """An endpoint loses no feature frame: the next utterance begins with the frame after the last one."""
    transcript, _ = pushed(recognizer.stream(4, 2, endpoint=EndpointConfig(longest=0.5)), speech, 777)
    assert len(transcript.segments) == 5
    for segment in transcript.segments:
        first, last = frames_of(segment.start), frames_of(segment.end)
        samples = speech[first * 640 : (last * 4 + 2) * 160 + 400]
        alone = recognizer.transcribe(samples, DecodeConfig(chunk=4, left=2))
        assert segment.transcript.hypothesis.tokens == alone.hypothesis.tokens
        assert [frame - first for frame in segment.transcript.hypothesis.frames] == list(alone.hypothesis.frames)


def test_memory_stays_the_same(recognizer: Recognizer) -> None:
    def held(session: Session) -> int:
        now = session._utterance
        tensors = [*(t for layer in now.encoder.layers for t in layer), now.encoder.pending, *session._waiting]
        return sum(t.untyped_storage().nbytes() if t.ndim == 1 else t.numel() * 4 for t in tensors)

    for session in (recognizer.stream(4, 2), recognizer.stream(4, endpoint=EndpointConfig(longest=0.64))):
        sizes = []
        for _ in range(24):
            session.push(torch.zeros(2560))
            sizes.append(held(session))
        assert sizes[12:16] == sizes[20:]


def in_blocks(samples: numpy.ndarray, sizes: list[int]) -> Iterator[numpy.ndarray]:
    first = 0
    while first < len(samples):
        size = sizes[first % len(sizes)]
        yield samples[first : first + size]
        first += size


@pytest.mark.parametrize("old", [8000, 44100, 48000, 11025, 16000])
@pytest.mark.parametrize("sizes", [[100, 1, 333, 5000], [7], [10**6]])
def test_resampling_in_blocks_is_resampling_the_whole(old: int, sizes: list[int]) -> None:
    samples = numpy.random.default_rng(0).standard_normal(9_999).astype(numpy.float32)
    blocks = list(resampled(in_blocks(samples, sizes), old, 16000))
    whole = resample(samples, old, 16000)
    assert numpy.concatenate(blocks).shape == whole.shape
    assert numpy.abs(numpy.concatenate(blocks) - whole).max() < 1e-5
    assert (len(blocks) > 2) == (max(sizes) < 10**6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_files_come_in_blocks(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK_SECONDS", 1)
    samples = 0.1 * numpy.random.default_rng(0).standard_normal((80_001, 2))
    soundfile.write(tmp_path / f"a.{suffix}", samples, 32_000)
    blocks, whole = list(file_blocks(tmp_path / f"a.{suffix}")), read_audio(tmp_path / f"a.{suffix}", None).samples
    assert [len(block) for block in blocks[:-1]] == [32_000] * (len(blocks) - 1)
    assert len(blocks) >= 3
    assert numpy.concatenate(blocks) == pytest.approx(whole, abs=1e-4)

"""Streams that advance together say what each says alone."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.runs.recognizer import Recognizer
from moe_asr.runs.streams import Streams
from moe_asr.runs.transcripts import Transcript


@pytest.fixture(scope="module")
def recognizer(untrained: Path) -> Recognizer:
    return Recognizer.load(untrained)


@pytest.fixture(scope="module")
def speech(digits: Path) -> list[torch.Tensor]:
    """From 0.3 to 2 seconds."""
    cuts = read_split(digits, "seen")[:4]
    return [torch.from_numpy(load_samples(cut))[: 8000 * (i + 1)] for i, cut in enumerate(cuts)]


def told(transcript: Transcript) -> list[object]:
    return [(h.tokens, h.frames, pytest.approx(h.score, abs=1e-3)) for h in transcript.nbest]


@pytest.mark.parametrize("mode", DecodeMode)
@pytest.mark.parametrize(("chunk", "left"), [(4, 2), (16, None)])
def test_each_says_what_it_says_alone(
    recognizer: Recognizer, speech: list[torch.Tensor], mode: DecodeMode, chunk: int, left: int | None
) -> None:
    decode = DecodeConfig(mode=mode, chunk=chunk, left=left, beam=4, nbest=1 if mode is DecodeMode.ctc_greedy else 3)
    alone = []
    for samples in speech:
        session = recognizer.stream(chunk, left, decode)
        session.push(samples)
        alone.append(told(session.finish()))
    assert len({str(found) for found in alone}) == len(speech)
    streams = recognizer.streams(len(speech), chunk, left, decode)
    portions = [samples.split(size) for samples, size in zip(speech, (1000, 7000, 33_333, 2345), strict=True)]
    final = {}
    for turn in range(max(map(len, portions))):
        new = [rows[turn] if turn < len(rows) else torch.zeros(0) for rows in portions]
        ended = [i for i, rows in enumerate(portions) if turn == len(rows) - 1]
        said = streams.push(new, ended)
        final |= {i: told(said[i]) for i in ended}
    assert [final[i] for i in range(len(speech))] == alone
    # All have ended: their places serve other streams.
    assert [told(said) for said in streams.push(speech[::-1], range(4))] == alone[::-1]


def test_what_is_said_grows_and_may_be_nothing(recognizer: Recognizer, speech: list[torch.Tensor]) -> None:
    streams = Streams(recognizer, DecodeConfig(chunk=4), ["a", "b"])
    said = [streams.push([part, torch.zeros(0)]) for part in speech[3].split(4000)]
    texts = [first.text for first, _ in said]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert len({*texts}) > 2
    assert {second.text for _, second in said} == {""}
    silent = streams.push([torch.zeros(0), torch.zeros(0)], [1])[1]
    assert (silent.text, silent.hypothesis.tokens) == ("", ())


def test_chunks_are_needed(recognizer: Recognizer) -> None:
    with pytest.raises(InputError, match=r"streams are decoded in chunks: write decode\.chunk=16"):
        Streams(recognizer, DecodeConfig(), [""])

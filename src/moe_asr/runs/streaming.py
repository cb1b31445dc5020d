"""A stream of audio, decoded as it comes: samples in any portions in, the text so far and ended utterances out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil, gcd
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from moe_asr.config.commands import EndpointConfig
from moe_asr.config.program import DecodeConfig
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio, read_header, resample
from moe_asr.models.encoder import EncoderState
from moe_asr.modules.subsampling import FACTOR, OVERLAP
from moe_asr.runs.transcripts import FRAME_SECONDS, Segment, Transcript, joined
from moe_asr.tensors import Chunking

if TYPE_CHECKING:
    from moe_asr.runs.recognizer import Recognizer

INT16 = 32768.0
NOTHING = Hypothesis((), 0.0, ())
BLOCK_SECONDS = 20
"""How much of a file is held at once."""


@dataclass(frozen=True)
class Partial:
    """What is known of the utterance that is being spoken.

    text; tokens; seconds: when each was emitted; stable: how many of the first tokens nothing to come can change;
    segments: the utterances that ended since the last push.
    """

    text: str
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    stable: int
    segments: tuple[Segment, ...] = ()


@dataclass
class _Utterance:
    """The utterance in progress: its first frame in the stream, its frames so far, how many at its end are silent."""

    encoder: EncoderState
    first: int = 0
    frames: int = 0
    silent: int = 0
    best: Hypothesis = NOTHING
    last: int = -1
    """The class of the last frame."""


class Session:
    """One stream. Every chunk is computed from the same samples, however they were cut into pushes.

    With an `endpoint`, utterances end in silence and the next one begins with the frame after: each says what the
    samples of its own frames say offline under the same chunks. Memory is constant if the left context is limited or
    there are endpoints. Raises InputError for a model that looks ahead and for decode.chunk=null.
    """

    def __init__(self, recognizer: "Recognizer", decode: DecodeConfig, endpoint: EndpointConfig | None = None) -> None:
        if decode.chunk is None:
            raise InputError("a stream is decoded in chunks: write decode.chunk=16.")
        self._recognizer, self._decode, self._endpoint, self._chunk = recognizer, decode, endpoint, decode.chunk
        self._blank = (endpoint or EndpointConfig()).blank
        self._start()

    def _start(self) -> None:
        self._waiting: list[Tensor] = []
        self._count = 0  # samples waiting
        self._segments: list[Segment] = []
        self._utterance = _Utterance(self._fresh())
        self._known = Partial("", (), (), 0)

    def _fresh(self) -> EncoderState:
        return self._recognizer.model.encoder.start(1, Chunking(self._chunk, self._decode.left))

    @torch.inference_mode()
    def push(self, samples: numpy.ndarray | Tensor) -> Partial:
        """samples (S,), any number, at the model's sample rate: floats in [-1, 1] or int16; else raises InputError."""
        new, log_mel, ended = _as_float(samples), self._recognizer.log_mel, len(self._segments)
        self._waiting.append(new)
        self._count += len(new)
        if self._count < log_mel.samples_needed(self._lacking()):
            return self._known
        rest = torch.cat(self._waiting)
        while len(rest) >= log_mel.samples_needed(lacking := self._lacking()):
            self._encode(rest, lacking)
            rest = rest[log_mel.shift * lacking :]
            if self._is_over():
                self._close()
        self._waiting, self._count = [rest.clone()], len(rest)
        now = self._transcript()
        self._known = Partial(now.text, now.hypothesis.tokens, now.seconds, len(now.seconds))
        return replace(self._known, segments=tuple(self._segments[ended:]))

    @torch.inference_mode()
    def finish(self) -> Transcript:
        """The end of the stream: what all of it says. The session is then fresh, for another stream."""
        rest = torch.cat([torch.zeros(0), *self._waiting])
        self._encode(rest, int(self._recognizer.log_mel.feature_lengths(torch.tensor(len(rest)))), finish=True)
        self._close()
        transcript = joined(self._segments)
        self._start()
        return transcript

    def _lacking(self) -> int:
        """Feature frames that the next chunk waits for."""
        return FACTOR * self._chunk + OVERLAP - self._utterance.encoder.pending.shape[1]

    def _encode(self, samples: Tensor, feature_frames: int, finish: bool = False) -> None:
        """Adds the frames that so many feature frames from the beginning of the samples complete."""
        recognizer, utterance = self._recognizer, self._utterance
        model, device = recognizer.model, recognizer.device
        samples = samples[: recognizer.log_mel.samples_needed(feature_frames)].to(device)
        features, lengths = recognizer.log_mel(samples.unsqueeze(0), torch.tensor([len(samples)], device=device))
        ending = torch.tensor([finish], device=device)
        output, utterance.encoder = model.encoder.step(features, lengths, utterance.encoder, model.routers, ending)
        if output.frames.shape[1] == 0:
            return
        log_probs, blank = model.ctc_log_probs(output.frames), recognizer.tokenizer.blank
        utterance.best, utterance.last = _extend(utterance.best, utterance.last, utterance.frames, log_probs, blank)
        loud = (log_probs[0, :, blank].exp() <= self._blank).nonzero()
        count = log_probs.shape[1]
        utterance.silent = count - 1 - int(loud[-1]) if len(loud) else utterance.silent + count
        utterance.frames += count

    def _is_over(self) -> bool:
        rules, now = self._endpoint, self._utterance
        if rules is None:
            return False
        silence = min(rules.silence_without_text, rules.silence_after_text if now.best.tokens else float("inf"))
        return now.silent >= round(silence / FRAME_SECONDS) or now.frames >= round(rules.longest / FRAME_SECONDS)

    def _close(self) -> None:
        """Ends the utterance; what it left over of the features is the beginning of the next one."""
        old = self._utterance
        if old.best.tokens or self._endpoint is None:
            end = old.first + old.frames
            self._segments.append(Segment(old.first * FRAME_SECONDS, end * FRAME_SECONDS, self._transcript()))
        fresh = replace(self._fresh(), pending=old.encoder.pending, pending_lengths=old.encoder.pending_lengths)
        self._utterance = _Utterance(fresh, old.first + old.frames)

    def _transcript(self) -> Transcript:
        best, first = self._utterance.best, self._utterance.first
        return self._recognizer.transcript(replace(best, frames=tuple(first + frame for frame in best.frames)))


def _extend(best: Hypothesis, last: int, first: int, log_probs: Tensor, blank: int) -> tuple[Hypothesis, int]:
    """The greedy path over the frames from `first` on, log_probs (1,N,V), after a path whose last class was `last`."""
    size = log_probs.shape[1]
    new = ctc_greedy(log_probs, torch.tensor([size], device=log_probs.device), blank)[0]
    ids = log_probs[0].argmax(-1)
    again = int(int(ids[0]) == last != blank)  # its first token is the last one, still going on
    frames = tuple(first + frame for frame in new.frames[again:])
    return Hypothesis(best.tokens + new.tokens[again:], best.score + new.score, best.frames + frames), int(ids[-1])


def _as_float(samples: numpy.ndarray | Tensor) -> Tensor:
    """A copy, (S,) float32 in [-1, 1]: the caller may use the memory again."""
    array = samples.cpu().numpy() if isinstance(samples, Tensor) else numpy.asarray(samples)
    if array.ndim != 1 or (array.dtype.kind != "f" and array.dtype != numpy.int16):
        raise InputError(
            "a stream takes one channel of samples, floats in [-1, 1] or 16-bit integers, "
            f"not {array.dtype} of shape {array.shape}."
        )
    if not numpy.isfinite(array).all():
        raise InputError("the samples hold values that are not finite (NaN or infinite); leave them out.")
    return torch.from_numpy(array.astype(numpy.float32) / (INT16 if array.dtype == numpy.int16 else 1.0))


def file_blocks(path: str | Path) -> Iterator[numpy.ndarray]:
    """A file of any length as blocks (S,) at its own sampling rate. Raises InputError like `read_audio`."""
    seconds = read_header(Path(path)).seconds
    for start in range(0, ceil(seconds), BLOCK_SECONDS):
        yield read_audio(path, None, start, min(BLOCK_SECONDS, seconds - start)).samples


def resampled(blocks: Iterable[numpy.ndarray], old_rate: int, new_rate: int) -> Iterator[numpy.ndarray]:
    """Blocks at one rate -> blocks at another; together they are what `resample` makes of the whole."""
    if old_rate == new_rate:
        yield from blocks
        return
    old, new = (rate // gcd(old_rate, new_rate) for rate in (old_rate, new_rate))
    margin = old * ceil(8 * max(1 / old, 1 / new))  # more than the filter, 6 zero crossings wide, sees on each side
    held, done = numpy.zeros(0, numpy.float32), 0  # `done` of the held samples are already resampled
    for block in blocks:
        held = numpy.concatenate([held, block])
        ready = (len(held) - margin) // old * old
        if ready > max(done, margin):
            yield resample(held[: ready + margin], old_rate, new_rate)[done // old * new : ready // old * new]
            held, done = held[ready - margin :], margin
    if len(held) > done:
        yield resample(held, old_rate, new_rate)[done // old * new :]

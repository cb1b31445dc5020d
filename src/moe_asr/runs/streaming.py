"""A stream of audio, decoded as it comes: samples in any portions in, the text so far and ended utterances out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import ceil, exp, gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy
import torch
from torch import Tensor

from moe_asr.config.commands import EndpointConfig
from moe_asr.config.decode import PREFIX_MODES, DecodeConfig, DecodeMode
from moe_asr.decoding.attention import attention_rescoring
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.decoding.search import ctc_log_probs, prefix_beam, search
from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio, read_header, resample
from moe_asr.models.encoder import EncoderOutput, EncoderState
from moe_asr.modules.subsampling import FACTOR
from moe_asr.runs.transcripts import FRAME_SECONDS, Segment, Transcript, joined
from moe_asr.tensors import Chunking

if TYPE_CHECKING:
    from moe_asr.runs.recognizer import Recognizer

INT16 = 32768.0
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


class Search(Protocol):
    """A search that goes on from a state, as `CtcPrefixBeam` does."""

    def start(self) -> Any: ...

    def advance(self, state: Any, log_probs: Tensor) -> Any:
        """The state after more frames, log_probs (N,V)."""
        ...

    def partial(self, state: Any) -> list[Hypothesis]: ...

    def finish(self, state: Any) -> list[Hypothesis]: ...


@dataclass(frozen=True)
class Greedy:
    """`ctc_greedy` as a search that goes on: a state is the path so far, its frames, and the class of the last one."""

    blank: int

    def start(self) -> tuple[Hypothesis, int, int]:
        return Hypothesis((), 0.0, (), 1.0), 0, self.blank

    def advance(self, state: tuple[Hypothesis, int, int], log_probs: Tensor) -> tuple[Hypothesis, int, int]:
        old, count, last = state
        new = ctc_greedy(log_probs.unsqueeze(0), torch.tensor([len(log_probs)], device=log_probs.device), self.blank)[0]
        ids = log_probs.argmax(-1)
        peaks, again = old.token_confidences, 0
        if int(ids[0]) == last != self.blank:  # its first token is our last one, still going on
            peaks, again = (*peaks[:-1], max(peaks[-1], new.token_confidences[0])), 1
        tokens, score = old.tokens + new.tokens[again:], old.score + new.score
        frames = old.frames + tuple(count + frame for frame in new.frames[again:])
        confidence, peaks = exp(score / (len(tokens) + 1)), peaks + new.token_confidences[again:]
        return Hypothesis(tokens, score, frames, confidence, peaks), count + len(log_probs), int(ids[-1])

    def partial(self, state: tuple[Hypothesis, int, int]) -> list[Hypothesis]:
        return [state[0]]

    finish = partial


@dataclass
class _Utterance:
    """The utterance in progress: its first frame in the stream, its frames so far, how many at its end are silent.

    kept: its frames (1,N,d), where decoders will want them.
    """

    encoder: EncoderState
    search: Any
    first: int = 0
    frames: int = 0
    silent: int = 0
    kept: list[Tensor] = field(default_factory=list)


class Session:
    """One stream. Every chunk is computed from the same samples, however they were cut into pushes.

    With an `endpoint`, utterances end in silence and the next one begins with the frame after: each says what the
    samples of its own frames say offline under the same chunks. Decoders have their say when an utterance ends.
    Memory is constant if the left context is limited or there are endpoints, but for the text, and for the frames of
    the utterance in the modes with decoders. Raises InputError for a model that looks ahead or lacks what the mode
    needs, and for decode.chunk=null.
    """

    def __init__(
        self, recognizer: "Recognizer", decode: DecodeConfig, endpoint: EndpointConfig | None = None, name: str = ""
    ) -> None:
        if decode.chunk is None:
            raise InputError("a stream is decoded in chunks: write decode.chunk=16.")
        self._recognizer, self._decode, self._endpoint, self._chunk = recognizer, decode, endpoint, decode.chunk
        self._blank, self._side = (endpoint or EndpointConfig()).blank, recognizer.side([name])
        model, tokenizer = recognizer.model, recognizer.tokenizer
        beam = decode.mode in PREFIX_MODES
        self._search: Search = prefix_beam(model, decode, tokenizer) if beam else Greedy(tokenizer.blank)
        self._start()
        with torch.inference_mode():  # one frame of nothing shows now, and not at the end, what the model lacks
            nothing = self._encoded(torch.zeros(1, 1, model.encoder.config.width))
            search(model, nothing, decode, tokenizer, recognizer.routers, self._side)

    def _encoded(self, frames: Tensor) -> EncoderOutput:
        device = self._recognizer.device
        return EncoderOutput(frames.to(device), torch.tensor([frames.shape[1]], device=device), ())

    def _start(self) -> None:
        self._waiting: list[Tensor] = []
        self._count = 0  # samples waiting
        self._segments: list[Segment] = []
        self._utterance = _Utterance(self._fresh(), self._search.start())
        self._known = Partial("", (), (), 0)

    def _fresh(self) -> EncoderState:
        return self._recognizer.model.encoder.start(1, Chunking(self._chunk, self._decode.left))

    @torch.inference_mode()
    def push(self, samples: numpy.ndarray | Tensor) -> Partial:
        """samples (S,), any number, at the model's sample rate: floats in [-1, 1] or int16; else raises InputError."""
        new, log_mel, ended = as_float(samples), self._recognizer.log_mel, len(self._segments)
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
        found = self._search.partial(self._utterance.search)
        now, certain = self._transcript(found), 0
        if self._decode.mode is not DecodeMode.attention:  # which does not choose among the beam
            columns = zip(*(hypothesis.tokens for hypothesis in found), strict=False)
            certain = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        self._known = Partial(now.text, now.hypothesis.tokens, now.seconds, certain)
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
        return FACTOR * self._chunk + self._recognizer.model.encoder.overlap - self._utterance.encoder.pending.shape[1]

    def _encode(self, samples: Tensor, feature_frames: int, finish: bool = False) -> None:
        """Adds the frames that so many feature frames from the beginning of the samples complete."""
        recognizer, now = self._recognizer, self._utterance
        model, device = recognizer.model, recognizer.device
        samples = samples[: recognizer.log_mel.samples_needed(feature_frames)].to(device)
        features, lengths = recognizer.log_mel(samples.unsqueeze(0), torch.tensor([len(samples)], device=device))
        ending = torch.tensor([finish], device=device)
        output, now.encoder = model.encoder.step(features, lengths, now.encoder, recognizer.routers, ending, self._side)
        count = output.frames.shape[1]
        if count == 0:
            return
        log_probs = ctc_log_probs(model, output.frames, self._decode)[0]
        now.search = self._search.advance(now.search, log_probs)
        if self._decode.mode in (DecodeMode.attention, DecodeMode.attention_rescoring):
            now.kept.append(output.frames)
        loud = (log_probs[:, recognizer.tokenizer.blank].exp() <= self._blank).nonzero()
        now.silent = count - 1 - int(loud[-1]) if len(loud) else now.silent + count
        now.frames += count

    def _is_over(self) -> bool:
        rules, now = self._endpoint, self._utterance
        if rules is None:
            return False
        spoken = self._search.partial(now.search)[0].tokens
        silence = min(rules.silence_without_text, rules.silence_after_text if spoken else float("inf"))
        return now.silent >= round(silence / FRAME_SECONDS) or now.frames >= round(rules.longest / FRAME_SECONDS)

    def _close(self) -> None:
        """Ends the utterance; what it left over of the features is the beginning of the next one."""
        old, transcript = self._utterance, self._transcript(self._final())
        end = old.first + old.frames
        if transcript.text or self._endpoint is None:
            self._segments.append(Segment(old.first * FRAME_SECONDS, end * FRAME_SECONDS, transcript))
        fresh = replace(self._fresh(), pending=old.encoder.pending, pending_lengths=old.encoder.pending_lengths)
        self._utterance = _Utterance(fresh, self._search.start(), end)

    def _final(self) -> list[Hypothesis]:
        """The n-best of the ended utterance."""
        decode, model, now = self._decode, self._recognizer.model, self._utterance
        forced = self._recognizer.routers, self._side
        found = self._search.finish(now.search)
        if now.kept:
            encoded = self._encoded(torch.cat(now.kept, 1))
            if decode.mode is DecodeMode.attention:
                found = search(model, encoded, decode, self._recognizer.tokenizer, *forced)[0]
            else:
                weights = decode.ctc_weight, decode.reverse_weight
                found = attention_rescoring(model, encoded, [found], *weights, *forced)[0]
        return found[: decode.nbest]

    def _transcript(self, found: list[Hypothesis]) -> Transcript:
        first = self._utterance.first
        found = [replace(h, frames=tuple(first + frame for frame in h.frames)) for h in found]
        return replace(self._recognizer.transcript(found[0]), nbest=tuple(found))


def as_float(samples: numpy.ndarray | Tensor) -> Tensor:
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

"""A trained model ready for use: samples or files in, text with times out. No Lightning, no corpus code."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_asr.config.commands import EndpointConfig
from moe_asr.config.decode import DecodeConfig
from moe_asr.config.inference import ExpertBackend, InferencePrecision
from moe_asr.config.program import TrainConfig
from moe_asr.decoding.alignment import align
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.decoding.search import search
from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio
from moe_asr.features.fbank import LogMel
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.models.encoder import FULL_CONTEXT, EncoderOutput
from moe_asr.models.inference import prepare
from moe_asr.models.u2pp import AsrModel
from moe_asr.modules.moe.routing import NOTHING, RoutingTrace, Side
from moe_asr.modules.moe.sharing import Routers
from moe_asr.randomness import key_seed
from moe_asr.runs.checkpoint import build, initial_weights, load_checkpoint
from moe_asr.runs.streaming import Session
from moe_asr.runs.streams import Streams
from moe_asr.runs.transcripts import FRAME_SECONDS, AlignedText, Timed, Transcript, words_of
from moe_asr.tensors import Chunking

Audible = str | Path | numpy.ndarray | Tensor
"""A file, or samples."""


@dataclass(frozen=True)
class Recognizer:
    model: AsrModel
    tokenizer: Tokenizer
    config: TrainConfig
    log_mel: LogMel
    device: torch.device
    routers: Routers
    """The model's own, unless others are forced upon it."""

    @staticmethod
    @torch.inference_mode(False)  # whose tensors could not tell that they were changed, which packed weights ask
    def load(
        path: str | Path,
        device: str = "cpu",
        precision: InferencePrecision = InferencePrecision.fp32,
        experts: ExpertBackend = ExpertBackend.auto,
        initial: bool = False,
    ) -> "Recognizer":
        """From a run directory or checkpoint file, computing as `prepare` explains; the options may be plain strings.

        initial: with the weights that training began with, a control. Raises InputError when there is no model, or it
        cannot compute like this here.
        """
        try:
            computing = InferencePrecision(precision), ExpertBackend(experts)
        except ValueError as error:
            known = f"precision is {', '.join(InferencePrecision)}; experts is {', '.join(ExpertBackend)}"
            raise InputError(f"{error}: {known}.") from error
        checkpoint = load_checkpoint(path)
        model = build(checkpoint.config, checkpoint.tokenizer)
        model.load_state_dict(initial_weights(checkpoint) if initial else checkpoint.weights)
        recognizer = Recognizer.of(model, checkpoint.tokenizer, checkpoint.config, device)
        prepare(model, *computing)
        return recognizer

    @staticmethod
    def of(model: AsrModel, tokenizer: Tokenizer, config: TrainConfig, device: str = "cpu") -> "Recognizer":
        target = find_device(device)
        log_mel = LogMel(config.features).to(target)
        return Recognizer(model.to(target).eval(), tokenizer, config, log_mel, target, model.routers)

    @torch.inference_mode()
    def encode(
        self, samples: Sequence[Tensor], chunking: Chunking = FULL_CONTEXT, side: Side = NOTHING
    ) -> EncoderOutput:
        """Waveforms (S,) at the model's sample rate, encoded as one batch."""
        lengths = torch.tensor([len(row) for row in samples], device=self.device)
        features, feature_lengths = self.log_mel(pad_sequence(list(samples), batch_first=True).to(self.device), lengths)
        return self.model.encode(features, feature_lengths, chunking, self.routers, side)

    def side(self, names: Iterable[str]) -> Side:
        """What forced routers go by: a key for the name of each utterance."""
        return Side(torch.tensor([utterance_key(name) for name in names], device=self.device))

    @torch.inference_mode()
    def decode(
        self, samples: Sequence[Tensor], decode: DecodeConfig | None = None, names: Sequence[str] | None = None
    ) -> tuple[list[Transcript], RoutingTrace]:
        """Waveforms (S,) at the model's sample rate, decoded as one batch; the trace tells which experts they used.

        names: of the utterances, for forced routing.
        """
        decode = decode or self.config.decode
        side = self.side([""] * len(samples) if names is None else names)
        encoded = self.encode(samples, Chunking(decode.chunk, decode.left), side)
        found = search(self.model, encoded, decode, self.tokenizer, self.routers, side)
        return [replace(self.transcript(nbest[0]), nbest=tuple(nbest)) for nbest in found], encoded.routing

    @torch.inference_mode()
    def decoder_routing(
        self, samples: Sequence[Tensor], transcripts: Sequence[Transcript], decode: DecodeConfig, names: Sequence[str]
    ) -> RoutingTrace:
        """How the decoders with MoE layers route as they read what `decode` found."""
        if all(site.stack == "encoder" for site in self.model.routers.sites):
            return ()
        side = self.side(names)
        encoded = self.encode(samples, Chunking(decode.chunk, decode.left), side)
        return self.model.decoder_routing(encoded, [t.hypothesis.tokens for t in transcripts], self.routers, side)

    def transcript(self, hypothesis: Hypothesis, notes: tuple[str, ...] = ()) -> Transcript:
        seconds = tuple(frame * FRAME_SECONDS for frame in hypothesis.frames)
        return Transcript(self.tokenizer.decode(hypothesis.tokens), hypothesis, seconds, notes)

    @overload
    def transcribe(self, audio: Audible, decode: DecodeConfig | None = None) -> Transcript: ...

    @overload
    def transcribe(self, audio: list[Audible], decode: DecodeConfig | None = None) -> list[Transcript]: ...

    def transcribe(
        self, audio: Audible | list[Audible], decode: DecodeConfig | None = None
    ) -> Transcript | list[Transcript]:
        """A file, or samples (S,) at the model's sample rate, or a list of such, decoded `decode.batch` at a time.

        Raises InputError for audio that cannot be read.
        """
        if not isinstance(audio, list):
            return self.transcribe([audio], decode)[0]
        decode = decode or self.config.decode
        transcripts = []
        for first in range(0, len(audio), decode.batch):
            batch = audio[first : first + decode.batch]
            read = [self._read(one) for one in batch]
            names = [Path(one).stem if isinstance(one, str | Path) else "" for one in batch]
            heard, _ = self.decode([samples for samples, _ in read], decode, names)
            transcripts += [replace(t, notes=notes) for t, (_, notes) in zip(heard, read, strict=True)]
        return transcripts

    @torch.inference_mode()
    def align(self, audio: Audible, text: str, chunking: Chunking = FULL_CONTEXT) -> AlignedText:
        """When each word and token of `text` is said in a file or samples (S,), by the best CTC path.

        CTC hears a word where it is surest, which is within the word, not at its borders. Raises InputError for audio
        that cannot be read, and for a text that the tokenizer cannot write or that is too long for the audio.
        """
        ids, unknown = self.tokenizer.encode(text), self.tokenizer.unknown(text)
        if unknown or not ids:
            lacks = f"holds what the model cannot write ({' '.join(sorted(unknown))})" if unknown else "is empty"
            raise InputError(f"the text to align {lacks}; give it as the training texts are written.")
        encoded = self.encode([self._read(audio)[0]], chunking)
        log_probs, tokens = self.model.ctc_log_probs(encoded.frames), torch.tensor([ids], device=self.device)
        count = torch.tensor([len(ids)], device=self.device)
        path = align(log_probs, encoded.frame_lengths, tokens, count, self.tokenizer.blank)[0]
        if not path.spans:
            frames = int(encoded.frame_lengths)
            raise InputError(f"the text to align has {len(ids)} tokens, too many for {frames} frames of audio.")
        found = tuple(
            Timed(
                self.tokenizer.symbols[token],
                begin * FRAME_SECONDS,
                (end + 1) * FRAME_SECONDS,
                float(log_probs[0, begin : end + 1, token].max().exp()),
            )
            for token, (begin, end) in zip(ids, path.spans, strict=True)
        )
        return AlignedText(text, path.score, words_of(found, ids, self.tokenizer), found)

    def _read(self, audio: Audible) -> tuple[Tensor, tuple[str, ...]]:
        if not isinstance(audio, str | Path):
            return torch.as_tensor(audio, dtype=torch.float32), ()
        read = read_audio(audio, self.config.features.sample_rate)
        return torch.from_numpy(read.samples), read.notes

    def stream(
        self,
        chunk: int = 16,
        left: int | None = None,
        decode: DecodeConfig | None = None,
        endpoint: EndpointConfig | None = None,
        name: str = "",
    ) -> Session:
        """A session that takes samples as they come; chunk and left, in frames (40 ms) and chunks, rule over `decode`.

        name: of the stream, for forced routing. Raises InputError for a model that looks ahead.
        """
        return Session(self, replace(decode or self.config.decode, chunk=chunk, left=left), endpoint, name)

    def streams(
        self, count: int, chunk: int = 16, left: int | None = None, decode: DecodeConfig | None = None
    ) -> Streams:
        """So many streams that advance together, which reads the weights from memory once for all; else like `stream`.

        For forced routing, which goes by names, see `Streams`.
        """
        return Streams(self, replace(decode or self.config.decode, chunk=chunk, left=left), [""] * count)


def find_device(name: str) -> torch.device:
    """Raises InputError for one that is not known, or not here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name} is not known; write device=cpu or device=cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("torch sees no GPU here; write device=cpu, or install torch's build for a GPU.")
    return device


def utterance_key(name: str) -> int:
    """By which routers know an utterance when it is recognised."""
    return key_seed("utterance", name)

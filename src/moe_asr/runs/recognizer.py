"""A trained model ready for use: samples or files in, text with times out. No Lightning, no corpus code."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_asr.config.program import DecodeConfig, TrainConfig
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio
from moe_asr.features.fbank import LogMel
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.models.u2pp import AsrModel
from moe_asr.modules.moe.routing import RoutingTrace
from moe_asr.runs.checkpoint import build, load_checkpoint
from moe_asr.runs.transcripts import FRAME_SECONDS, Transcript
from moe_asr.tensors import Chunking


@dataclass(frozen=True)
class Recognizer:
    model: AsrModel
    tokenizer: Tokenizer
    config: TrainConfig
    log_mel: LogMel
    device: torch.device

    @staticmethod
    def load(path: str | Path, device: str = "cpu") -> "Recognizer":
        """From a run directory or checkpoint file; raises InputError when there is none."""
        checkpoint = load_checkpoint(path)
        model = build(checkpoint.config, checkpoint.tokenizer)
        model.load_state_dict(checkpoint.weights)
        return Recognizer.of(model, checkpoint.tokenizer, checkpoint.config, device)

    @staticmethod
    def of(model: AsrModel, tokenizer: Tokenizer, config: TrainConfig, device: str = "cpu") -> "Recognizer":
        target = torch.device(device)
        if target.type == "cuda" and not torch.cuda.is_available():
            raise InputError("torch sees no GPU here; write device=cpu, or install torch's build for a GPU.")
        return Recognizer(model.to(target).eval(), tokenizer, config, LogMel(config.features).to(target), target)

    @torch.inference_mode()
    def decode(
        self, samples: Sequence[Tensor], decode: DecodeConfig | None = None
    ) -> tuple[list[Transcript], RoutingTrace]:
        """Waveforms (S,) at the model's sample rate, decoded as one batch; the trace tells which experts they used."""
        decode = decode or self.config.decode
        lengths = torch.tensor([len(row) for row in samples], device=self.device)
        padded = pad_sequence(list(samples), batch_first=True).to(self.device)
        features, feature_lengths = self.log_mel(padded, lengths)
        encoded = self.model.encode(features, feature_lengths, Chunking(decode.chunk, decode.left))
        hypotheses = ctc_greedy(self.model.ctc_log_probs(encoded.frames), encoded.frame_lengths, self.tokenizer.blank)
        return [self.transcript(h) for h in hypotheses], encoded.routing

    def transcript(self, hypothesis: Hypothesis, notes: tuple[str, ...] = ()) -> Transcript:
        seconds = tuple(frame * FRAME_SECONDS for frame in hypothesis.frames)
        return Transcript(self.tokenizer.decode(hypothesis.tokens), hypothesis, seconds, notes)

    def transcribe(self, audio: str | Path | numpy.ndarray | Tensor, decode: DecodeConfig | None = None) -> Transcript:
        """A file, or samples (S,) at the model's sample rate. Raises InputError for audio that cannot be read."""
        notes: tuple[str, ...] = ()
        if isinstance(audio, str | Path):
            read = read_audio(audio, self.config.features.sample_rate)
            audio, notes = read.samples, read.notes
        samples = torch.as_tensor(audio, dtype=torch.float32)
        transcripts, _ = self.decode([samples], decode)
        return self.transcript(transcripts[0].hypothesis, notes)

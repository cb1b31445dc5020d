"""Many streams that one model hears at once: its weights are read from memory once for a chunk of all of them."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_asr.config.decode import PREFIX_MODES, DecodeConfig, DecodeMode
from moe_asr.decoding.attention import attention_rescoring
from moe_asr.decoding.search import ctc_log_probs, prefix_beam, search
from moe_asr.errors import InputError
from moe_asr.models.encoder import EncoderOutput
from moe_asr.runs.streaming import Greedy, Search, as_float
from moe_asr.runs.transcripts import Transcript
from moe_asr.tensors import Chunking

if TYPE_CHECKING:
    from moe_asr.runs.recognizer import Recognizer


class Streams:
    """As many streams as names, each of which says what a `Session` without endpoints would say to the same samples.

    A stream may be idle, and where one ends another may begin. Raises InputError like `Session`.
    """

    def __init__(self, recognizer: "Recognizer", decode: DecodeConfig, names: Sequence[str]) -> None:
        if decode.chunk is None:
            raise InputError("streams are decoded in chunks: write decode.chunk=16.")
        self._recognizer, self._decode, self._side = recognizer, decode, recognizer.side(names)
        model, tokenizer = recognizer.model, recognizer.tokenizer
        beam = decode.mode in PREFIX_MODES
        self._search: Search = prefix_beam(model, decode, tokenizer) if beam else Greedy(tokenizer.blank)
        self._encoder = model.encoder.start(len(names), Chunking(decode.chunk, decode.left))
        self._waiting = [torch.zeros(0) for _ in names]
        self._found: list[Any] = [self._search.start() for _ in names]
        self._kept: list[list[Tensor]] = [[] for _ in names]  # frames (N,d), where decoders will want them

    @torch.inference_mode()
    def push(self, samples: Sequence[numpy.ndarray | Tensor], ended: Collection[int] = ()) -> list[Transcript]:
        """New samples (S,) of every stream, any number of them -> what each says so far.

        ended: the streams that end with these samples; what they say is final, and their places are then fresh.
        """
        recognizer, device = self._recognizer, self._recognizer.device
        held = [torch.cat([old, as_float(new)]) for old, new in zip(self._waiting, samples, strict=True)]
        lengths = torch.tensor([len(row) for row in held], device=device)
        features, counts = recognizer.log_mel(pad_sequence(held, batch_first=True).to(device), lengths)
        self._waiting = [row[recognizer.log_mel.shift * n :] for row, n in zip(held, counts.tolist(), strict=True)]
        finish = torch.tensor([i in ended for i in range(len(held))], device=device)
        output, self._encoder = recognizer.model.encoder.step(
            features, counts, self._encoder, recognizer.routers, finish, self._side
        )
        if output.frames.shape[1]:
            self._hear(output)
        final = dict(zip(sorted(ended), self._final(sorted(ended)), strict=True)) if ended else {}
        said = [final.get(i) or self._search.partial(state) for i, state in enumerate(self._found)]
        for i in ended:
            self._waiting[i], self._found[i], self._kept[i] = torch.zeros(0), self._search.start(), []
        nbest = (found[: self._decode.nbest] for found in said)
        return [replace(recognizer.transcript(found[0]), nbest=tuple(found)) for found in nbest]

    def _hear(self, output: EncoderOutput) -> None:
        log_probs = ctc_log_probs(self._recognizer.model, output.frames, self._decode)
        for i, count in enumerate(output.frame_lengths.tolist()):
            if count:
                self._found[i] = self._search.advance(self._found[i], log_probs[i, :count])
                if self._decode.mode in (DecodeMode.attention, DecodeMode.attention_rescoring):
                    self._kept[i].append(output.frames[i, :count])

    def _final(self, rows: Sequence[int]) -> list[Any]:
        """The n-best of the streams that ended; decoders hear all of them at once."""
        decode, recognizer = self._decode, self._recognizer
        found = [self._search.finish(self._found[i]) for i in rows]
        spoken = [place for place, i in enumerate(rows) if self._kept[i]]
        if not spoken:
            return found
        frames = [torch.cat(self._kept[rows[place]]) for place in spoken]
        lengths = torch.tensor([len(row) for row in frames], device=recognizer.device)
        encoded = EncoderOutput(pad_sequence(frames, batch_first=True), lengths, ())
        side = self._side.select(torch.tensor([rows[place] for place in spoken], device=recognizer.device))
        forced = recognizer.routers, side
        if decode.mode is DecodeMode.attention:
            better = search(recognizer.model, encoded, decode, recognizer.tokenizer, *forced)
        else:
            nbest, weights = [found[place] for place in spoken], (decode.ctc_weight, decode.reverse_weight)
            better = attention_rescoring(recognizer.model, encoded, nbest, *weights, *forced)
        for place, hypotheses in zip(spoken, better, strict=True):
            found[place] = hypotheses
        return found

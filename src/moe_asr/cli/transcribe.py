"""`moe-asr transcribe RUN AUDIO...`: the text of audio files or of raw PCM, at once or as it comes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from moe_asr.config.commands import Format, TranscribeConfig
from moe_asr.errors import InputError

if TYPE_CHECKING:
    import numpy

    from moe_asr.decoding.hypotheses import Hypothesis
    from moe_asr.features.tokenizer import Tokenizer
    from moe_asr.runs.recognizer import Recognizer
    from moe_asr.runs.streaming import Partial
    from moe_asr.runs.transcripts import Segment, Transcript

CONFIG = TranscribeConfig
LONG_CHUNK = 16
"""Frames per chunk of long audio, where decode.chunk does not say."""


def run(config: TranscribeConfig) -> None:
    import json
    import sys

    from moe_asr.analysis.forcing import forced
    from moe_asr.runs.recognizer import Recognizer
    from moe_asr.runs.transcripts import cues, subtitles
    from moe_asr.runs.tuned import with_tuned

    if not config.audio:
        raise InputError("Which audio? Write: moe-asr transcribe RUN AUDIO...")
    if config.format in (Format.srt, Format.vtt) and len(config.audio) > 1:
        raise InputError(f"format={config.format} makes one file of one: give a single AUDIO.")
    recognizer = Recognizer.load(config.run, config.device, config.precision, config.experts)
    if config.tuned:
        config = replace(config, decode=with_tuned(config.decode, config.run)[0])
    recognizer = forced(recognizer, config.routing)
    failed, rows = [], []
    for file in config.audio:
        screen = Screen(file, f"{file}\t" if len(config.audio) > 1 else "", config.format)
        try:
            transcript = hear(recognizer, config, file, screen.show if config.stream else None)
        except InputError as error:
            failed.append(str(error))
            continue
        for note in transcript.notes:
            print(f"{file}: {note}", file=sys.stderr)
        rows.append(row(file, transcript, recognizer))
        if config.format is Format.jsonl:
            print(json.dumps(rows[-1], ensure_ascii=False))
        elif config.format is Format.text:
            screen.end(transcript, config.stream)
        elif config.format is not Format.json:
            shown = list(cues(transcript, recognizer.tokenizer))
            print(subtitles(shown, web=config.format is Format.vtt), end="")
    if config.format is Format.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    if failed:
        raise InputError(
            "\n  ".join([f"{len(failed)} of {len(config.audio)} files could not be transcribed:", *failed])
        )


def hear(
    recognizer: "Recognizer", config: TranscribeConfig, file: str, show: "Callable[[Partial], None] | None"
) -> "Transcript":
    """Short audio as a whole, all other as a stream, of which no more than some seconds are held at a time."""
    import sys
    from itertools import chain
    from pathlib import Path

    import numpy

    from moe_asr.features.audio import read_audio, read_header
    from moe_asr.runs.streaming import file_blocks, resampled
    from moe_asr.runs.transcripts import FRAME_SECONDS

    rate = recognizer.config.features.sample_rate
    notes: tuple[str, ...] = ()
    if file == "-":
        blocks = resampled(pcm_blocks(sys.stdin.buffer), config.sample_rate, rate)
    else:
        header = read_header(Path(file))
        if not config.stream and header.seconds <= config.long:
            return recognizer.transcribe(file, config.decode)
        notes = read_audio(file, rate, duration=min(0.1, header.seconds)).notes
        blocks = resampled(file_blocks(file), header.sample_rate, rate)
    chunk = config.decode.chunk or LONG_CHUNK
    if not config.stream:
        head: list[numpy.ndarray] = []
        while sum(map(len, head)) <= config.long * rate:
            block = next(blocks, None)
            if block is None:
                return recognizer.transcribe(numpy.concatenate([numpy.zeros(0, numpy.float32), *head]), config.decode)
            head.append(block)
        blocks = chain(head, blocks)
        notes += (f"longer than {config.long:g} s, hence decoded in chunks of {chunk} frames",)
    cut = not config.stream if config.segments is None else config.segments
    if cut and config.routing.trace is not None:
        raise InputError(f"{file}: a trace is replayed over whole recordings: write segments=false.")
    endpoint, name = config.endpoint if cut else None, Path(file).stem
    session = recognizer.stream(chunk, config.decode.left, config.decode, endpoint, name)
    size = round(chunk * FRAME_SECONDS * rate)
    for block in blocks:
        for first in range(0, len(block), size):
            partial = session.push(block[first : first + size])
            if show is not None:
                show(partial)
    return replace(session.finish(), notes=notes)


def pcm_blocks(stream: BinaryIO) -> "Iterator[numpy.ndarray]":
    """Raw 16-bit little-endian mono PCM as it arrives, as samples (S,) in [-1, 1]. Raises InputError for half a one."""
    import numpy

    read = getattr(stream, "read1", stream.read)  # what has arrived, instead of waiting for all of it
    rest = b""
    while new := read(1 << 16):
        data = rest + new
        whole = len(data) // 2 * 2
        rest = data[whole:]
        if whole:
            yield numpy.frombuffer(data[:whole], "<i2").astype(numpy.float32) / 32768
    if rest:
        raise InputError("the raw PCM ends within a sample: give 16-bit mono samples, 2 bytes each.")


def row(file: str, transcript: "Transcript", recognizer: "Recognizer") -> dict[str, Any]:
    result = {"audio": file, **said(transcript.hypothesis, recognizer.tokenizer), "text": transcript.text}
    if len(transcript.nbest) > 1:
        result["nbest"] = [said(hypothesis, recognizer.tokenizer) for hypothesis in transcript.nbest]
    if transcript.segments:
        result["segments"] = [timed(segment) for segment in transcript.segments]
    return result


def said(hypothesis: "Hypothesis", tokenizer: "Tokenizer") -> dict[str, Any]:
    """Each token with its time (s; null for a text that CTC cannot align) and confidence."""
    from moe_asr.runs.transcripts import FRAME_SECONDS

    times: list[float | None] = [round(frame * FRAME_SECONDS, 2) for frame in hypothesis.frames]
    times = times or [None] * len(hypothesis.tokens)
    rows = zip(hypothesis.tokens, times, hypothesis.token_confidences, strict=True)
    return {
        "text": tokenizer.decode(hypothesis.tokens),
        "score": hypothesis.score,
        "confidence": round(hypothesis.confidence or 0.0, 4),
        "tokens": [[tokenizer.symbols[token], time, round(confidence, 4)] for token, time, confidence in rows],
    }


def timed(segment: "Segment") -> dict[str, Any]:
    start, end, confidence = segment.start, segment.end, segment.transcript.hypothesis.confidence or 0.0
    text = segment.transcript.text
    return {"start": round(start, 2), "end": round(end, 2), "text": text, "confidence": round(confidence, 4)}


class Screen:
    """Tells what is known of a stream: a line per change, or on a terminal one line that is written anew."""

    def __init__(self, file: str, prefix: str, style: Format) -> None:
        self._file, self._prefix, self._style = file, prefix, style
        self._last: str | None = None  # what the line says; None = a new one
        self._ended = 0  # segments told

    def show(self, partial: "Partial") -> None:
        import json

        for segment in partial.segments:
            self._ended += 1
            if self._style is Format.text:
                self._write(segment.transcript.text, final=True)
            elif self._style is Format.jsonl:
                print(json.dumps({"audio": self._file, **timed(segment)}, ensure_ascii=False), flush=True)
        if not partial.text or partial.text == self._last:
            return
        if self._style is Format.text:
            self._write(partial.text)
        elif self._style is Format.jsonl:
            self._last = partial.text
            said = {"audio": self._file, "partial": partial.text, "stable": partial.stable}
            print(json.dumps(said, ensure_ascii=False), flush=True)

    def end(self, transcript: "Transcript", streamed: bool) -> None:
        texts = [segment.transcript.text for segment in transcript.segments[self._ended :]]
        for text in texts if streamed else [transcript.text]:
            self._write(text, final=True)

    def _write(self, text: str, final: bool = False) -> None:
        import shutil
        import sys

        line = self._prefix + text
        if sys.stdout.isatty():
            fits = shutil.get_terminal_size().columns - 1  # a longer line could not be written anew
            print(f"\r\x1b[K{line if final else line[-fits:]}", end="\n" if final else "", flush=True)
        elif text != self._last:
            print(line, flush=True)
        self._last = None if final else text

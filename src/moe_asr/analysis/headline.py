"""Whole models against each other: RTF, latency and memory of the same audio, in turns, and what limits them."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean, median

import numpy
import torch
from torch import Tensor

from moe_asr.analysis.candidates import Audio, Candidate, candidate, find_audio
from moe_asr.analysis.evaluation import error_units, evaluate_set
from moe_asr.analysis.trace import load_trace
from moe_asr.config.benchmark import BenchmarkConfig
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.inference import InferencePrecision
from moe_asr.errors import JobError
from moe_asr.measure.machine import Peaks, growth
from moe_asr.measure.need import limit, needs
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.results import Scored, test_set_result
from moe_asr.measure.rtf import TimedBatch, timed
from moe_asr.measure.timing import Spread, by_cpu, spread
from moe_asr.models.u2pp import parameter_counts
from moe_asr.modules.subsampling import FACTOR
from moe_asr.runs.recognizer import Recognizer
from moe_asr.runs.streams import Streams
from moe_asr.runs.transcripts import Transcript
from moe_asr.tensors import Chunking

Utterances = Sequence[tuple[str, Tensor]]
"""Names and samples (S,)."""


@dataclass(frozen=True)
class Way:
    """How utterances are recognised: `together` of them in a batch, or as streams that advance together."""

    decode: DecodeConfig
    threads: int
    together: int


@dataclass(frozen=True)
class Streamed:
    """Of all streams, in wall seconds of computing, but first_partial. A chunk is one of all that advance together."""

    first_partial: float
    """Audio that the first chunk waits for, and the time to compute it; median."""
    chunk_p50: float
    chunk_p90: float
    chunk_p99: float
    final: float
    """From the end of the audio to the final text; median."""


@dataclass(frozen=True)
class Row:
    """A model that recognises in one way; times are seconds per second of audio, over the rounds."""

    model: str
    precision: str
    mode: str
    chunk: int | None
    threads: int
    together: int
    """Utterances of a batch, or streams."""
    rtf: Spread
    """By CPU time with one thread of a CPU, else by wall time."""
    wall_rtf: Spread
    cpu_rtf: Spread
    ratio: float
    """To the first model in the same rounds; median."""
    flops: float | None
    """Per second of audio; None, as are the next three, where the search is not counted."""
    limit: float | None
    """The least RTF: see `measure.need.limit`."""
    computing: float | None
    """Share of the time that the multiply-adds alone would take at the machine's peak."""
    reading: float | None
    """Share that reading the needed weights alone would take at the speed of its memory."""
    experts: float | None
    """Different ones that a chunk, or with full context an utterance, visits at a site; None without experts."""
    tokens: float
    """Recognised, per utterance."""
    streamed: Streamed | None
    wer: float | None
    """Of the very transcripts that were timed; None for models that were not trained, and for phones PER."""
    backend: str | None
    """What computed the experts, if there are any."""
    parameters: int
    active: int
    load_seconds: float
    """From the file, or to draw random weights."""
    prepare_seconds: float
    """Laying the weights out."""
    resident: int
    """Bytes that the model adds to the process."""
    peak: int
    """The most it adds while it recognises."""


@dataclass(frozen=True)
class Heard:
    """Utterances that were recognised together."""

    utterances: Utterances
    transcripts: tuple[Transcript, ...]
    time: TimedBatch
    pushes: tuple[float, ...] = ()
    """Wall seconds of each chunk of streams, then of their end."""


def headline(config: BenchmarkConfig, peaks: Mapping[int, Peaks]) -> Iterator[list[Row]]:
    """The rows of each precision, in which all models are held at once and take turns. peaks: by number of threads.

    Raises InputError for a model that does not exist or lacks a decoder, JobError where a run recognises otherwise than
    in `evaluate`.
    """
    audio = find_audio(config)
    trace = load_trace(config.trace) if config.trace else None
    for precision in config.precisions:
        models = [candidate(name, config, precision, audio, trace) for name in config.models]
        yield _rows(models, config, precision, audio, peaks)


def ways(config: BenchmarkConfig) -> list[Way]:
    """Every one that is asked for."""
    return [
        Way(
            DecodeConfig(mode, chunk, beam=config.beam, nbest=1 if mode is DecodeMode.ctc_greedy else config.beam),
            threads,
            together,
        )
        for threads in config.threads
        for chunk in config.chunks
        for together in (config.streams if chunk else config.batches)
        for mode in config.modes
    ]


def _rows(
    models: Sequence[Candidate],
    config: BenchmarkConfig,
    precision: InferencePrecision,
    audio: Audio,
    peaks: Mapping[int, Peaks],
) -> list[Row]:
    threads, every = torch.get_num_threads(), ways(config)
    used, heard = [[0] * len(models) for _ in every], [[list[Heard]() for _ in models] for _ in every]
    supplies = [cycle(audio.samples.items()) for _ in every]
    for turn in range(config.rounds + 1):  # the first round does not count, but for its memory
        for number, way in enumerate(every):
            torch.set_num_threads(way.threads)
            some = list(islice(supplies[number], way.together))
            for i in range(len(models))[:: 1 if turn % 2 else -1]:
                work = partial(recognise, models[i].recognizer, way.decode, some)
                if turn:
                    heard[number][i].append(work())
                else:
                    used[number][i] = growth(work, models[i].recognizer.device)[2]
        if not turn:
            supplies = [cycle(audio.samples.items()) for _ in every]
    rows = []
    for number, way in enumerate(every):
        torch.set_num_threads(way.threads)
        for i, model in enumerate(models):
            found = heard[number][i], heard[number][0]
            rows.append(_row(model, way, precision, *found, used[number][i], audio, peaks[way.threads]))
    torch.set_num_threads(threads)
    return rows


def recognise(recognizer: Recognizer, decode: DecodeConfig, utterances: Utterances) -> Heard:
    """From samples to text: one batch, or where `decode` has chunks streams that advance together, chunk by chunk."""
    rate, log_mel = recognizer.config.features.sample_rate, recognizer.log_mel
    names, samples = [name for name, _ in utterances], [row for _, row in utterances]
    seconds = sum(map(len, samples)) / rate
    if decode.chunk is None:
        (found, _), time = timed(partial(recognizer.decode, samples, decode, names), seconds, recognizer.device)
        return Heard(utterances, tuple(found), time)
    streams, step = Streams(recognizer, decode, names), FACTOR * decode.chunk
    first, hop = log_mel.samples_needed(step + recognizer.model.encoder.overlap), log_mel.shift * step
    portions = [row.tensor_split([*range(first, len(row) + 1, hop)]) for row in samples]
    nothing, times = torch.zeros(0), []
    final: dict[int, Transcript] = {}
    for turn in range(max(map(len, portions))):
        new = [parts[turn] if turn < len(parts) else nothing for parts in portions]
        ended = [i for i, parts in enumerate(portions) if turn == len(parts) - 1]
        said, time = timed(partial(streams.push, new, ended), sum(map(len, new)) / rate, recognizer.device)
        final |= {i: said[i] for i in ended}
        times.append(time)
    whole = TimedBatch(sum(t.wall_seconds for t in times), sum(t.cpu_seconds for t in times), seconds)
    return Heard(utterances, tuple(final[i] for i in range(len(samples))), whole, tuple(t.wall_seconds for t in times))


def _row(
    model: Candidate,
    way: Way,
    precision: InferencePrecision,
    heard: Sequence[Heard],
    base: Sequence[Heard],
    peak: int,
    audio: Audio,
    peaks: Peaks,
) -> Row:
    recognizer, decode = model.recognizer, way.decode
    wall, cpu = (
        [getattr(h.time, f"{clock}_seconds") / h.time.audio_seconds for h in heard] for clock in ("wall", "cpu")
    )
    alone = by_cpu(recognizer.device)
    rtf = spread(cpu if alone else wall)
    first = [(h.time.cpu_seconds if alone else h.time.wall_seconds) / h.time.audio_seconds for h in base]
    experts = _visited(recognizer, decode, heard[0].utterances)
    spoken = [
        [
            (len(samples), len(said.nbest), max(len(found.tokens) for found in said.nbest))
            for (_, samples), said in zip(h.utterances, h.transcripts, strict=True)
        ]
        for h in heard
    ]
    parts = needs(recognizer, decode, spoken, experts)
    total, active = parameter_counts(recognizer.model)
    work = sum(part.multiply_adds for part in parts.values()) if parts else None
    read = sum(part.weights for part in parts.values()) if parts else 0.0
    return Row(
        model=model.name,
        precision=precision.value,
        mode=decode.mode.value,
        chunk=decode.chunk,
        threads=way.threads,
        together=way.together,
        rtf=rtf,
        wall_rtf=spread(wall),
        cpu_rtf=spread(cpu),
        ratio=median(own / other for own, other in zip(cpu if alone else wall, first, strict=True)),
        flops=None if work is None else 2 * work,
        limit=None if parts is None else limit(parts, peaks, precision),
        computing=None if work is None else peaks.seconds(work, 0, precision) / rtf.median,
        reading=None if work is None else peaks.seconds(0, read, precision) / rtf.median,
        experts=experts,
        tokens=fmean(len(said.hypothesis.tokens) for h in heard for said in h.transcripts),
        streamed=_streamed(recognizer, decode, heard),
        wer=_checked(recognizer, decode, heard, audio) if model.trained and audio.cuts else None,
        backend=model.backend,
        parameters=total,
        active=active,
        load_seconds=model.load_seconds,
        prepare_seconds=model.prepare_seconds,
        resident=model.resident,
        peak=model.resident + peak,
    )


def _streamed(recognizer: Recognizer, decode: DecodeConfig, heard: Sequence[Heard]) -> Streamed | None:
    chunks = [push for h in heard for push in h.pushes[:-1]]
    if decode.chunk is None or not chunks:
        return None
    waited = recognizer.log_mel.samples_needed(FACTOR * decode.chunk + recognizer.model.encoder.overlap)
    seconds = waited / recognizer.config.features.sample_rate
    p50, p90, p99 = map(float, numpy.quantile(chunks, [0.5, 0.9, 0.99]))
    first = seconds + median(h.pushes[0] for h in heard if len(h.pushes) > 1)
    return Streamed(first, p50, p90, p99, median(h.pushes[-1] for h in heard))


def _visited(recognizer: Recognizer, decode: DecodeConfig, utterances: Utterances) -> float | None:
    """Different experts per encoder site and chunk of all streams that advance together, or batch."""
    side = recognizer.side(name for name, _ in utterances)
    encoded = recognizer.encode([row for _, row in utterances], Chunking(decode.chunk, decode.left), side)
    chosen = [site.routing.expert_ids for site in encoded.routing]
    chunks = [part.unique() for ids in chosen for part in ids.split(decode.chunk or ids.shape[1], 1)]
    return fmean(len(ids[ids >= 0]) for ids in chunks) if chunks else None


def _checked(recognizer: Recognizer, decode: DecodeConfig, heard: Sequence[Heard], audio: Audio) -> float:
    """The error rate of what was heard; raises JobError if that of `evaluate` on the same utterances differs."""
    assert audio.data is not None
    config = replace(recognizer.config, data=audio.data)
    unit = error_units(config)[0]
    pairs = ((u, said) for h in heard for u, said in zip(h.utterances, h.transcripts, strict=True))
    texts = {name: said.text for (name, _), said in pairs}
    cuts = [cut for cut in audio.cuts if cut.id in texts]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hypotheses.jsonl"
        expected = evaluate_set(recognizer, cuts, config, replace(decode, batch=1), file)[unit.rate]
        references = {line["id"]: line["reference"] for line in map(json.loads, file.read_text("utf8").splitlines())}
    scored = [Scored(name, references[name], text) for name, text in texts.items()]
    found = float(test_set_result(scored, normalizer(audio.data.normalizer), (unit,), None)[unit.rate])
    if abs(found - expected) > 1e-12:
        raise JobError(
            f"{unit.rate.upper()} of what was timed is {100 * found:.2f} %, but {100 * expected:.2f} % in `evaluate` "
            f"({decode.mode}, chunk {decode.chunk}): the timed path computes something else."
        )
    return found

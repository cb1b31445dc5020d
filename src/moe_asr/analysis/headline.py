"""Whole models against each other: RTF, latency and memory of the same audio, in turns, and what limits them."""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import fmean, median

import numpy
import torch
from lhotse.cut import Cut
from torch import Tensor

from moe_asr.analysis.evaluation import error_units, evaluate_set
from moe_asr.config.benchmark import BenchmarkConfig, Choice, quickened
from moe_asr.config.compose import compose_config
from moe_asr.config.data import DataConfig, FeaturesConfig, TokenUnit
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.inference import ExpertBackend, InferencePrecision
from moe_asr.config.model import require
from moe_asr.config.program import TrainConfig
from moe_asr.data.batches import read_all
from moe_asr.data.manifest import read_split
from moe_asr.errors import InputError, JobError
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.measure import flops
from moe_asr.measure.machine import Peaks, growth
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.profile import make_speak
from moe_asr.measure.results import Scored, test_set_result
from moe_asr.measure.rtf import TimedBatch, timed
from moe_asr.measure.timing import Spread, spread
from moe_asr.models.inference import prepare
from moe_asr.models.u2pp import parameter_counts
from moe_asr.modules.moe.experts import Experts
from moe_asr.modules.moe.routers import Forced, random_experts
from moe_asr.modules.subsampling import FACTOR
from moe_asr.randomness import torch_rng
from moe_asr.runs.checkpoint import Checkpoint, build, load_checkpoint
from moe_asr.runs.recognizer import Recognizer
from moe_asr.runs.transcripts import Transcript
from moe_asr.tensors import Chunking


@dataclass(frozen=True)
class Streamed:
    """Of all streams together, in wall seconds of computing, but first_partial."""

    first_partial: float
    """Audio that the first chunk waits for, and the time to compute it; median."""
    chunk_p50: float
    chunk_p90: float
    chunk_p99: float
    final: float
    """From the end of the audio to the final text; median."""


@dataclass(frozen=True)
class Row:
    """A model that decodes in one way; times are seconds per second of audio, over the rounds."""

    model: str
    precision: str
    mode: str
    chunk: int | None
    rtf: Spread
    """By CPU time with one thread, else by wall time."""
    wall_rtf: Spread
    cpu_rtf: Spread
    ratio: float
    """To the first model in the same rounds; median."""
    flops: float | None
    """Per second of audio; None where the search is not counted."""
    limit: float | None
    """RTF: the longer of the multiply-adds at the machine's peak and the needed weights at its memory's speed."""
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
    prepare_seconds: float
    """Laying the weights out."""
    resident: int
    """Bytes that the model adds to the process."""
    peak: int
    """The most it adds while it recognises."""


@dataclass(frozen=True)
class Audio:
    """Utterances (S,) by name; cuts: where they are from, if they are from a corpus."""

    samples: Mapping[str, Tensor]
    features: FeaturesConfig
    data: DataConfig | None = None
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Model:
    name: str
    recognizer: Recognizer
    trained: bool
    backend: str | None
    prepare_seconds: float
    resident: int


@dataclass(frozen=True)
class Heard:
    transcript: Transcript
    time: TimedBatch
    pushes: tuple[float, ...] = ()
    """Wall seconds of each chunk of a stream, then of its end."""


def headline(config: BenchmarkConfig, peaks: Peaks) -> Iterator[list[Row]]:
    """The rows of each precision, in which all models are held at once and take turns.

    Raises InputError for a model that does not exist or lacks a decoder, JobError where a run recognises otherwise than
    in `evaluate`.
    """
    runs = {name: load_checkpoint(name) for name in config.models if Path(name).exists()}
    audio = _audio(config, next(iter(runs.values()), None))
    for precision in config.precisions:
        models = [_ready(name, runs.get(name), config, precision, audio) for name in config.models]
        yield _rows(models, config, precision, audio, peaks)


def _audio(config: BenchmarkConfig, run: Checkpoint | None) -> Audio:
    """Noise, or where there is a run or a corpus utterances of that; one for each round, at most."""
    features = run.config.features if run else FeaturesConfig()
    if run is None and config.data is None:
        size = (round(config.seconds * features.sample_rate),)
        noise = (torch.randn(size, generator=torch_rng("noise", config.seed, i)) for i in range(config.rounds))
        return Audio({f"noise-{i}": 0.1 * samples for i, samples in enumerate(noise)}, features)
    data = run.config.data if run else DataConfig()
    data = replace(data, path=config.data or data.path, test=config.sets or data.test)
    cuts = [cut for name in data.test for cut in read_split(data.path, name)][: config.rounds]
    samples, problems = read_all(cuts, features.sample_rate)
    if problems or not cuts:
        raise InputError(f"{problems[0].detail if problems else data.path + ' is empty'}; choose sets=[...] of others.")
    return Audio({cuts[i].id: row for i, row in samples.items()}, features, data, tuple(cuts))


def _ready(
    name: str, run: Checkpoint | None, config: BenchmarkConfig, precision: InferencePrecision, audio: Audio
) -> Model:
    def load() -> tuple[Recognizer, ExpertBackend, float]:
        recognizer = _trained(name, run, config, audio) if run else _untrained(name, config, audio)
        begin = time.perf_counter()
        backend = prepare(recognizer.model, precision, config.experts, release=True)
        return recognizer, backend, time.perf_counter() - begin

    (recognizer, backend, seconds), resident, _ = growth(load)
    used = str(backend) if recognizer.model.routers.sites else None
    return Model(name, recognizer, run is not None, used, seconds, resident)


def _choosing(recognizer: Recognizer, choice: Choice) -> Recognizer:
    if choice is Choice.own:
        return recognizer
    bank = recognizer.model.routers
    own = {site: router for site in bank.sites if (router := bank.get(site)) is not None}
    return replace(recognizer, routers={site: Forced(router, random_experts) for site, router in own.items()})


def _trained(name: str, run: Checkpoint, config: BenchmarkConfig, audio: Audio) -> Recognizer:
    require(run.config.features == audio.features, f"{name} hears other features than the first run: leave it out.")
    model = build(run.config, run.tokenizer)
    model.load_state_dict(run.weights)
    return _choosing(Recognizer.of(model, run.tokenizer, run.config), config.choice)


@torch.no_grad()
def _untrained(name: str, config: BenchmarkConfig, audio: Audio) -> Recognizer:
    """A preset with random weights, normalised for this audio, that says something in as many frames as asked."""
    preset, *options = name.split()
    composed = compose_config("benchmark", BenchmarkConfig, [f"model={preset}", *options], {"kind": config.kind})
    composed = quickened(composed) if config.quick else composed
    shape = {node: getattr(composed, node) for node in ("model", "moe", "router", "loss")}
    trained = TrainConfig(**shape, features=audio.features)
    tokenizer = Tokenizer(TokenUnit.word, (*SPECIALS, *map(str, range(config.vocab_size - len(SPECIALS)))))
    torch.manual_seed(config.seed)
    recognizer = _choosing(Recognizer.of(build(trained, tokenizer), tokenizer, trained), config.choice)
    utterance, samples = next(iter(audio.samples.items()))
    features, _ = recognizer.log_mel(samples.unsqueeze(0), torch.tensor([len(samples)]))
    recognizer.model.encoder.cmvn.set_cmvn(features.mean((0, 1)), 1 / features.std((0, 1)))
    make_speak(recognizer.model, recognizer.encode([samples], side=recognizer.side([utterance])), config.nonblank)
    return recognizer


def _rows(
    models: Sequence[Model], config: BenchmarkConfig, precision: InferencePrecision, audio: Audio, peaks: Peaks
) -> list[Row]:
    ways = [
        DecodeConfig(
            mode=mode, chunk=chunk, beam=config.beam, nbest=1 if mode is DecodeMode.ctc_greedy else config.beam
        )
        for chunk in config.chunks
        for mode in config.modes
    ]
    first = next(iter(audio.samples.items()))
    # The first round does not count, but for its memory.
    peak = [[growth(partial(recognise, m.recognizer, way, *first))[2] for m in models] for way in ways]
    heard: list[list[list[Heard]]] = [[[] for _ in models] for _ in ways]
    for i, utterance in enumerate(audio.samples.items()):
        for way, found in zip(ways, heard, strict=True):
            for number in range(len(models))[:: 1 if i % 2 == 0 else -1]:
                found[number].append(recognise(models[number].recognizer, way, *utterance))
    return [
        _row(model, way, precision, found[number], found[0], model.resident + peaked[number], audio, peaks)
        for way, found, peaked in zip(ways, heard, peak, strict=True)
        for number, model in enumerate(models)
    ]


def recognise(recognizer: Recognizer, decode: DecodeConfig, name: str, samples: Tensor) -> Heard:
    """One utterance (S,), from samples to text: at once, or where `decode` has chunks as a stream, chunk by chunk."""
    rate, log_mel = recognizer.config.features.sample_rate, recognizer.log_mel
    if decode.chunk is None:
        work = partial(recognizer.decode, [samples], decode, [name])
        ((transcript,), _), time = timed(work, len(samples) / rate, recognizer.device)
        return Heard(transcript, time)
    session = recognizer.stream(decode.chunk, decode.left, decode, name=name)
    step, times = FACTOR * decode.chunk, []
    ends = range(
        log_mel.samples_needed(step + recognizer.model.encoder.overlap), len(samples) + 1, log_mel.shift * step
    )
    for begin, end in pairwise([0, *ends]):
        times.append(timed(partial(session.push, samples[begin:end]), (end - begin) / rate, recognizer.device)[1])
    rest = samples[ends[-1] if ends else 0 :]

    def finish() -> Transcript:
        session.push(rest)
        return session.finish()

    transcript, time = timed(finish, len(rest) / rate, recognizer.device)
    times.append(time)
    whole = (sum(part) for part in zip(*((t.wall_seconds, t.cpu_seconds, t.audio_seconds) for t in times), strict=True))
    return Heard(transcript, TimedBatch(*whole), tuple(t.wall_seconds for t in times))


def _row(
    model: Model,
    decode: DecodeConfig,
    precision: InferencePrecision,
    heard: Sequence[Heard],
    base: Sequence[Heard],
    peak: int,
    audio: Audio,
    peaks: Peaks,
) -> Row:
    wall, cpu = (
        [getattr(h.time, f"{clock}_seconds") / h.time.audio_seconds for h in heard] for clock in ("wall", "cpu")
    )
    alone = torch.get_num_threads() == 1
    rtf = spread(cpu if alone else wall)
    first = [(h.time.cpu_seconds if alone else h.time.wall_seconds) / h.time.audio_seconds for h in base]
    experts = _visited(model.recognizer, decode, *next(iter(audio.samples.items())))
    work, weights = _needs(model.recognizer, decode, heard, experts)
    total, active = parameter_counts(model.recognizer.model)
    limit = None if work is None else peaks.seconds(work, weights, precision)
    return Row(
        model=model.name,
        precision=precision.value,
        mode=decode.mode.value,
        chunk=decode.chunk,
        rtf=rtf,
        wall_rtf=spread(wall),
        cpu_rtf=spread(cpu),
        ratio=median(own / other for own, other in zip(cpu if alone else wall, first, strict=True)),
        flops=None if work is None else 2 * work,
        limit=limit,
        experts=experts,
        tokens=fmean(len(h.transcript.hypothesis.tokens) for h in heard),
        streamed=_streamed(model.recognizer, decode, heard),
        wer=_checked(model.recognizer, decode, heard, audio) if model.trained and audio.cuts else None,
        backend=model.backend,
        parameters=total,
        active=active,
        prepare_seconds=model.prepare_seconds,
        resident=model.resident,
        peak=peak,
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


def _visited(recognizer: Recognizer, decode: DecodeConfig, name: str, samples: Tensor) -> float | None:
    """Different experts per chunk and encoder site."""
    trace = recognizer.encode([samples], Chunking(decode.chunk, decode.left), recognizer.side([name])).routing
    chunks = [
        ids.unique()
        for site in trace
        for ids in site.routing.expert_ids[0].split(decode.chunk or site.routing.expert_ids.shape[1])
    ]
    return fmean(len(ids[ids >= 0]) for ids in chunks) if chunks else None


def _needs(
    recognizer: Recognizer, decode: DecodeConfig, heard: Sequence[Heard], experts: float | None
) -> tuple[float | None, float]:
    """Multiply-adds and weights read from memory per second of audio; None for a search that is not counted."""
    config, model, vocab_size = recognizer.config, recognizer.model, len(recognizer.tokenizer)
    own = [module for module in model.encoder.modules() if isinstance(module, Experts)]
    mixed = sum(p.numel() for module in own for p in module.parameters())
    dense = sum(p.numel() for part in (model.encoder, model.ctc) for p in part.parameters()) - mixed
    a_pass = dense + (mixed * experts / config.moe.num_experts if experts else 0)
    each = (pair for decoder in model.decoders.values() for pair in decoder.named_parameters())
    decoders = sum(p.numel() for name, p in each if "embedding" not in name)
    rescored = decode.mode is DecodeMode.attention_rescoring
    work, weights = 0.0, 0.0
    for h in heard:
        feature_frames = int(
            recognizer.log_mel.feature_lengths(torch.tensor(round(h.time.audio_seconds * config.features.sample_rate)))
        )
        frames = int(model.encoder.frame_lengths(torch.tensor(feature_frames)))
        chunking = Chunking(decode.chunk, decode.left)
        work += sum(
            flops.encoder(config.model, config.moe, feature_frames, config.features.mel_bins, chunking).values()
        )
        work += flops.ctc_head(config.model, vocab_size, frames)
        weights += a_pass * ceil(frames / (decode.chunk or max(frames, 1)))
        if rescored:
            nbest = h.transcript.nbest
            shape = frames, len(nbest), max(len(found.tokens) for found in nbest)
            work += sum(flops.rescoring(config.model, config.moe, vocab_size, *shape).values())
            weights += decoders
    seconds = sum(h.time.audio_seconds for h in heard)
    return None if decode.mode is DecodeMode.attention else work / seconds, weights / seconds


def _checked(recognizer: Recognizer, decode: DecodeConfig, heard: Sequence[Heard], audio: Audio) -> float:
    """The error rate of what was heard; raises JobError if that of `evaluate` on the same utterances differs."""
    assert audio.data is not None
    config = replace(recognizer.config, data=audio.data)
    unit = error_units(config)[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hypotheses.jsonl"
        expected = evaluate_set(recognizer, audio.cuts, config, replace(decode, batch=1), file)[unit.rate]
        references = {line["id"]: line["reference"] for line in map(json.loads, file.read_text("utf8").splitlines())}
    texts = dict(zip(audio.samples, (h.transcript.text for h in heard), strict=True))
    scored = [Scored(name, references[name], text) for name, text in texts.items()]
    found = float(test_set_result(scored, normalizer(audio.data.normalizer), (unit,), None)[unit.rate])
    if abs(found - expected) > 1e-12:
        raise JobError(
            f"{unit.rate.upper()} of what was timed is {100 * found:.2f} %, but {100 * expected:.2f} % in `evaluate` "
            f"({decode.mode}, chunk {decode.chunk}): the timed path computes something else."
        )
    return found

"""Who takes part in a comparison of speed, and what all of them hear: presets or runs, noise or a corpus."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lhotse.cut import Cut
from torch import Tensor

from moe_asr.analysis.trace import Trace
from moe_asr.config.benchmark import BenchmarkConfig, Choice, quickened
from moe_asr.config.compose import compose_config
from moe_asr.config.data import DataConfig, FeaturesConfig, TokenUnit
from moe_asr.config.inference import ExpertBackend, InferencePrecision
from moe_asr.config.model import require
from moe_asr.config.placement import MoESite
from moe_asr.config.program import TrainConfig
from moe_asr.data.batches import read_all
from moe_asr.data.manifest import read_split
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.measure.machine import growth
from moe_asr.measure.profile import make_speak
from moe_asr.models.inference import prepare
from moe_asr.modules.moe.routers import Forced, random_experts
from moe_asr.modules.moe.routing import Routing, Side
from moe_asr.randomness import key_seed, torch_rng
from moe_asr.runs.checkpoint import build, load_checkpoint
from moe_asr.runs.recognizer import Recognizer


@dataclass(frozen=True)
class Audio:
    """Utterances (S,) by name; cuts: where they are from, if they are from a corpus."""

    samples: Mapping[str, Tensor]
    features: FeaturesConfig
    data: DataConfig | None = None
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Candidate:
    name: str
    recognizer: Recognizer
    trained: bool
    backend: str | None
    """What computes the experts, if there are any."""
    load_seconds: float
    """From the file, or to draw random weights."""
    prepare_seconds: float
    """Laying the weights out."""
    resident: int
    """Bytes that it adds to the process."""


def find_audio(config: BenchmarkConfig) -> Audio:
    """Noise, or where there is a run or a corpus utterances of that; at most as many as all rounds can take."""
    runs = [name for name in config.models if Path(name).exists()]
    run = load_checkpoint(runs[0]).config if runs else None
    features = run.features if run else FeaturesConfig()
    count = config.rounds * max(*config.batches, *config.streams)
    if run is None and config.data is None:
        size = (round(config.seconds * features.sample_rate),)
        noise = (torch.randn(size, generator=torch_rng("noise", config.seed, i)) for i in range(count))
        return Audio({f"noise-{i}": 0.1 * samples for i, samples in enumerate(noise)}, features)
    data = run.data if run else DataConfig()
    data = replace(data, path=config.data or data.path, test=config.sets or data.test)
    cuts = [cut for name in data.test for cut in read_split(data.path, name)][:count]
    samples, problems = read_all(cuts, features.sample_rate)
    if problems or not cuts:
        raise InputError(f"{problems[0].detail if problems else data.path + ' is empty'}; choose sets=[...] of others.")
    return Audio({cuts[i].id: row for i, row in samples.items()}, features, data, tuple(cuts))


def candidate(
    name: str, config: BenchmarkConfig, precision: InferencePrecision, audio: Audio, trace: Trace | None
) -> Candidate:
    """A run or a preset, ready to recognise. Raises InputError for one that does not exist, or cannot hear `audio`."""
    run = Path(name).exists()

    def load() -> tuple[Recognizer, ExpertBackend, float, float]:
        begin = time.perf_counter()
        recognizer = _trained(name, config, audio) if run else _untrained(name, config, audio)
        loaded = time.perf_counter()
        recognizer = _routed(recognizer, config, trace)
        if not run:
            _speaking(recognizer, audio, config.nonblank)
        begun = time.perf_counter()
        backend = prepare(recognizer.model, precision, config.experts, release=True)
        return recognizer, backend, loaded - begin, time.perf_counter() - begun

    (recognizer, backend, loading, preparing), resident, _ = growth(load, config.device)
    used = str(backend) if recognizer.model.routers.sites else None
    return Candidate(name, recognizer, run, used, loading, preparing, resident)


def _trained(name: str, config: BenchmarkConfig, audio: Audio) -> Recognizer:
    run = load_checkpoint(name)
    require(run.config.features == audio.features, f"{name} hears other features than the first run: leave it out.")
    model = build(run.config, run.tokenizer)
    model.load_state_dict(run.weights)
    return Recognizer.of(model, run.tokenizer, run.config, config.device)


def preset(name: str, config: BenchmarkConfig) -> BenchmarkConfig:
    """The options of `u2pp_225m` or `u2pp_225m moe.top_k=1`. Raises InputError if there is no such preset or option."""
    model, *options = name.split()
    return compose_config("benchmark", BenchmarkConfig, [f"model={model}", *options], {"kind": config.kind})


def _untrained(name: str, config: BenchmarkConfig, audio: Audio) -> Recognizer:
    """A preset with random weights."""
    composed = quickened(preset(name, config)) if config.quick else preset(name, config)
    shape = {node: getattr(composed, node) for node in ("model", "moe", "router", "loss")}
    trained = TrainConfig(**shape, features=audio.features)
    tokenizer = Tokenizer(TokenUnit.word, (*SPECIALS, *map(str, range(config.vocab_size - len(SPECIALS)))))
    torch.manual_seed(config.seed)
    return Recognizer.of(build(trained, tokenizer), tokenizer, trained, config.device)


@torch.no_grad()
def _speaking(recognizer: Recognizer, audio: Audio, nonblank: float) -> None:
    """Normalises an untrained model for this audio, and lets it say something in as many frames as asked."""
    utterance, samples = next(iter(audio.samples.items()))
    device = recognizer.device
    features, _ = recognizer.log_mel(samples.unsqueeze(0).to(device), torch.tensor([len(samples)], device=device))
    recognizer.model.encoder.cmvn.set_cmvn(features.mean((0, 1)), 1 / features.std((0, 1)))
    make_speak(recognizer.model, recognizer.encode([samples], side=recognizer.side([utterance])), nonblank)


def _routed(recognizer: Recognizer, config: BenchmarkConfig, trace: Trace | None) -> Recognizer:
    """With the experts that config.routing asks for."""
    bank = recognizer.model.routers
    own = {site: router for site in bank.sites if (router := bank.get(site)) is not None}
    if config.routing is Choice.own or not own:
        return recognizer
    if trace is None:
        return replace(recognizer, routers={site: Forced(router, random_experts) for site, router in own.items()})
    moe, kind = recognizer.config.moe, (trace.card["top_k"], trace.card["num_experts"])
    require(
        kind == (moe.top_k, moe.num_experts),
        f"trace={config.trace} is of top {kind[0]} of {kind[1]} experts, which tells nothing about the loads of top "
        f"{moe.top_k} of {moe.num_experts}: trace a run with moe.num_experts={moe.num_experts} moe.top_k={moe.top_k}, "
        "or write routing=balanced without a trace.",
    )
    likest = counterparts(own, trace.sites)
    return replace(
        recognizer,
        routers={
            site: Forced(router, stretch(trace, likest[site], config.seed, recognizer.device))
            for site, router in own.items()
        },
    )


def counterparts(sites: Iterable[MoESite], traced: Iterable[str]) -> dict[MoESite, str]:
    """For each site the traced one that is most like it: encoder or decoder, then the stack, the slot, and how deep it
    lies between the first and the last layer of its stack."""
    own = list(sites)
    known = {MoESite(stack, int(layer), slot): name for name in traced for stack, layer, slot in [name.split(".")]}

    def depth(site: MoESite, among: Iterable[MoESite]) -> float:
        return site.layer / max(1, *(other.layer for other in among if other.stack == site.stack))

    def unlike(site: MoESite, other: MoESite) -> tuple[bool, bool, bool, float]:
        decoders = (site.stack == "encoder") != (other.stack == "encoder")
        distance = abs(depth(site, own) - depth(other, known))
        return decoders, site.stack != other.stack, site.slot != other.slot, distance

    return {site: known[min(known, key=lambda other: unlike(site, other))] for site in own}


def stretch(trace: Trace, site: str, seed: int, device: torch.device) -> Callable[[Routing, MoESite, Side], Tensor]:
    """The experts of consecutive positions of a trace, from one that utterance and seed choose: all sites of a stack
    begin at the same, so that loads, run lengths and what goes with what are those of the trace. It has no end."""
    ids = torch.from_numpy(trace.sites[site].ids).long().to(device)
    shift = key_seed("stretch", seed)

    def choose(routing: Routing, _: MoESite, side: Side) -> Tensor:
        assert side.keys is not None
        assert side.positions is not None
        rows = (side.keys.unsqueeze(1) ^ shift) % len(ids) + side.positions
        return ids[rows % len(ids)]

    return choose

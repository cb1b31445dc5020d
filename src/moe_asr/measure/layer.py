"""The backends of a Mixture-of-Experts layer against each other and against what the machine can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_asr.config.benchmark import BenchmarkConfig
from moe_asr.config.compose import closest
from moe_asr.errors import InputError
from moe_asr.measure.machine import PRECISIONS, Peaks
from moe_asr.measure.timing import Spread, interleaved, spread
from moe_asr.modules.moe.experts import BACKENDS, Backend, Experts

BASELINE = "loop"
TRAINED = ("sorted", BASELINE)
"""Backends that have gradients."""

Case = tuple[Tensor, Tensor, Tensor]
"""Frames (T,d), expert ids (T,K) and weights (T,K)."""


@dataclass(frozen=True)
class Row:
    """One backend on so many frames; times are of one layer."""

    routing: str
    """independent or correlated frames, or training: a forward and backward pass over independent ones."""
    frames: int
    experts: float
    """Of which weights were needed, on average over the layers."""
    backend: str
    seconds: Spread
    ratio: float
    """How many times as fast as loop, in training as a dense layer of the same active FLOPs; median over rounds."""
    limit: float
    """Seconds: the longer of multiply-adds at the machine's peak and the needed experts at its memory's speed."""


def layer_rows(config: BenchmarkConfig, peaks: Peaks) -> list[Row]:
    """Times every backend for every number of frames. Raises InputError for one that does not exist, or not here."""
    torch.manual_seed(config.seed)
    layer, moe = config.layer, config.moe
    layers = [Experts(moe.num_experts, layer.width, layer.ffn_width, F.silu, 0.0).eval() for _ in range(layer.copies)]
    backends = _backends(config, layers)
    rows = []
    with torch.inference_mode():
        for routing, correlation in (("independent", 0.0), ("correlated", layer.correlation)):
            for frames in layer.rows:
                cases = [_case(config, frames, correlation) for _ in layers]
                works = {name: _inference(layers, made, cases) for name, made in backends.items()}
                rows += _compared(config, peaks, routing, cases, works, BASELINE)
    if layer.train_rows:
        cases = [_case(config, layer.train_rows, 0.0)]
        steps = {name: _training(backends[name][0], layers[0], *cases[0]) for name in TRAINED if name in backends}
        steps["dense"] = _dense_training(layer.width, moe.top_k * layer.ffn_width, cases[0][0])
        rows += _compared(config, peaks, "training", cases, steps, "dense")
    return rows


def _backends(config: BenchmarkConfig, layers: list[Experts]) -> dict[str, list[Backend]]:
    """The backends asked for, made for each layer, loop first; unless they are named, those that work here."""
    asked = config.layer.backends
    for name in asked:
        if name not in BACKENDS:
            raise InputError(
                f"layer.backends has {name}, which is none{closest(name, list(BACKENDS))} "
                f"There are: {', '.join(BACKENDS)}."
            )
    backends = {}
    for name in dict.fromkeys([BASELINE, *(asked or BACKENDS)]):
        try:
            backends[name] = [BACKENDS[name](experts) for experts in layers]
        except InputError:
            if asked:
                raise
    return backends


def _case(config: BenchmarkConfig, frames: int, correlation: float) -> Case:
    """Normal frames, each correlated with the one before (AR(1)), and a random router's choice for them."""
    x = torch.randn(frames, config.layer.width)
    for past, now in pairwise(x) if correlation else ():
        now.mul_((1 - correlation**2) ** 0.5).add_(past, alpha=correlation)
    logits, expert_ids = (x @ torch.randn(x.shape[1], config.moe.num_experts)).topk(config.moe.top_k)
    return x, expert_ids, logits.softmax(-1)


def _inference(layers: list[Experts], backends: list[Backend], cases: list[Case]) -> Callable[[], object]:
    def all_layers() -> None:
        for experts, backend, case in zip(layers, backends, cases, strict=True):
            backend(experts, *case)

    return all_layers


def _training(
    backend: Backend, experts: Experts, frames: Tensor, expert_ids: Tensor, weights: Tensor
) -> Callable[[], object]:
    return _step(experts, frames, lambda x: backend(experts, x, expert_ids, weights))


def _dense_training(width: int, hidden: int, frames: Tensor) -> Callable[[], object]:
    dense = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))
    return _step(dense, frames, dense)


def _step(module: nn.Module, frames: Tensor, forward: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    x, gradient = frames.clone().requires_grad_(), torch.randn_like(frames)

    def step() -> None:
        module.zero_grad()
        x.grad = None
        forward(x).backward(gradient)

    return step


def _compared(
    config: BenchmarkConfig,
    peaks: Peaks,
    routing: str,
    cases: list[Case],
    works: Mapping[str, Callable[[], object]],
    baseline: str,
) -> list[Row]:
    """A row per work; each goes through all the cases."""
    layer, frames, training = config.layer, len(cases[0][0]), routing == "training"
    experts = sum(len(ids.unique()) for _, ids, _ in cases) / len(cases)
    weights = 2 * layer.width * layer.ffn_width  # of an expert
    # Backward computes the gradients of inputs and of weights: twice as much again.
    multiply_adds = frames * config.moe.top_k * weights * (3 if training else 1)
    times = {name: [t / len(cases) for t in taken] for name, taken in interleaved(works, config.rounds).items()}

    def row(name: str) -> Row:
        suffix = name.rpartition("_")[2]
        limit = peaks.seconds(multiply_adds, experts * weights, suffix if suffix in PRECISIONS else "fp32")
        ratio = median(base / own for base, own in zip(times[baseline], times[name], strict=True))
        return Row(routing, frames, experts, name, spread(times[name]), ratio, limit)

    return [row(name) for name in works]

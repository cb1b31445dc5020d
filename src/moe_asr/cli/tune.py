"""`moe-asr tune RUN`: the weights of a decode mode, chosen on dev."""

from typing import TYPE_CHECKING, Any

from moe_asr.columns import aligned
from moe_asr.config.tune import TuneConfig

if TYPE_CHECKING:
    from moe_asr.analysis.tuning import Tuned
    from moe_asr.config.decode import DecodeConfig

CONFIG = TuneConfig
NEAR = 1.05
"""Points with at most so many times the fewest errors tell how flat the optimum is."""


def run(config: TuneConfig) -> None:
    """Prints the errors of the weights tried and writes the best to tuned/<mode>.json of the run directory."""
    import dataclasses
    import os
    from pathlib import Path

    import torch

    from moe_asr.analysis.tuning import tune
    from moe_asr.config.compose import to_plain
    from moe_asr.config.tune import WEIGHTS
    from moe_asr.errors import InputError
    from moe_asr.runs.directory import environment, write_json
    from moe_asr.runs.recognizer import Recognizer
    from moe_asr.runs.tuned import tuned_file

    if Path(config.run).is_file():
        raise InputError(f"{config.run} is a file; give the run directory, where the weights are kept.")
    file = tuned_file(config.run, config.decode.mode)
    if Path(config.run).is_dir() and not os.access(file.parent if file.parent.exists() else config.run, os.W_OK):
        raise InputError(f"{config.run} cannot be written, which is where the weights are kept; tune a copy of it.")
    torch.set_num_threads(config.threads)
    recognizer = Recognizer.load(config.run, config.device)
    trained = recognizer.config
    data = dataclasses.replace(
        trained.data,
        path=config.data or trained.data.path,
        dev=config.sets or trained.data.dev,
        normalizer=config.normalizer or trained.data.normalizer,
    )
    values = {name: getattr(config, name) for name in WEIGHTS[config.decode.mode]}
    found = tune(recognizer, dataclasses.replace(trained, data=data), data.dev, config.decode, values)
    file.parent.mkdir(exist_ok=True)
    receipt = {
        "weights": {name: getattr(found.best, name) for name in found.weights},
        "data": data.path,
        "sets": data.dev,
        "result": found.best_result,
        "given": {"decode": to_plain(found.given), "result": found.given_result},
        "points": int(found.errors.size),
        **environment(),
    }
    write_json(file, receipt)
    print(table(found))
    print(f"weights: {file}; used by evaluate and transcribe with tuned=true decode.mode={config.decode.mode}")


def table(found: "Tuned") -> str:
    """Both results, the errors along each weight through the best point, and how flat it is there."""
    import numpy

    best, fewest = found.best_result, int(found.errors.min())
    name, tokens = best["unit"], max(1, best["num_tokens"])
    rows = [("as given", found.given, found.given_result), ("tuned", found.best, best)]
    lines = [aligned([[label, _rate(result), _weights(point, found)] for label, point, result in rows])]
    lines.append(
        f"{best['num_utterances']} utterances, {best['num_tokens']} {name}s; {found.better} utterances better and "
        f"{found.worse} worse than as given; the best of every n-best: {100 * found.oracle / tokens:.2f} %"
    )
    if found.unreadable:
        lines.append(f"{found.unreadable} utterances could not be read and are left out")
    place = [tried.index(getattr(found.best, weight)) for weight, tried in found.weights.items()]
    grid, ends = [], []
    for axis, (weight, tried) in enumerate(found.weights.items()):
        along = found.errors[tuple(slice(None) if i == axis else at for i, at in enumerate(place))]
        grid.append([weight, *(f"{value:g}: {100 * n / tokens:.2f}" for value, n in zip(tried, along, strict=True))])
        last = {tried[0], tried[-1]} - ({0.0, 1.0} if weight == "reverse_weight" else {0.0})
        if along.min() < along.max() and getattr(found.best, weight) in last:
            ends.append(f"the best lies at the end of what was tried; try further: {weight}=[...]")
    lines += [aligned(grid), *ends]
    near = int(numpy.count_nonzero(found.errors <= NEAR * fewest))
    lines.append(
        f"{near} of {found.errors.size} points make at most {100 * NEAR - 100:.0f} % more errors than the best"
    )
    return "\n".join(lines)


def _rate(result: dict[str, Any]) -> str:
    from moe_asr.config.score import Unit

    rate = Unit(result["unit"]).rate
    between = result[f"{rate}_ci95"]
    interval = f"[{100 * between[0]:.2f}, {100 * between[1]:.2f}]" if between else "no interval"
    return f"{rate.upper()} {100 * result[rate]:.2f} % {interval}"


def _weights(point: "DecodeConfig", found: "Tuned") -> str:
    return " ".join(f"{name}={getattr(point, name):g}" for name in found.weights)

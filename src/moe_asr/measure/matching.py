"""Comparisons that are matched by construction: the width at which a model is as large as another."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from omegaconf import DictConfig, OmegaConf

from moe_asr.config.compose import closest, config_folder, groups, to_typed
from moe_asr.config.model import LossConfig, ModelConfig, MoEConfig, RouterConfig, require
from moe_asr.config.placement import moe_sites
from moe_asr.config.program import Match, TrainConfig
from moe_asr.errors import InputError
from moe_asr.measure import flops
from moe_asr.models.u2pp import build_model, parameter_counts
from moe_asr.runs.checkpoint import load_checkpoint

C = TypeVar("C", bound=TrainConfig)
Shape = tuple[ModelConfig, MoEConfig, RouterConfig]
MULTIPLE = 8
"""Of solved widths, which kernels like."""


def matched(config: C, vocab_size: int) -> tuple[C, str]:
    """`config` with the width that `match` asks for and without `match`, and a line that says how well it fits.

    Both models are counted at `vocab_size` tokens, or at those of `match_to` where that was trained, and at the decode
    options of `config`. Without `match`, all is returned as it was, and no line. Raises InputError where no width fits.
    """
    if config.match is None or config.match_to is None:
        return config, ""
    kind, own = config.match, (config.model, config.moe, config.router)
    mixed = bool(moe_sites(config.model, config.moe.placement))
    require(
        not mixed or (config.moe.expert_width is None and not config.moe.expert_widths),
        f"match={kind} solves moe.expert_width: leave out moe.expert_width and moe.expert_widths.",
    )
    other, vocab_size = _reference(config.match_to, own, vocab_size)

    def size(shape: Shape) -> float:
        return _size(kind, shape, config, vocab_size)

    target, narrow, wide = size(other), size(_widened(own, 1024)), size(_widened(own, 2048))
    require(wide > narrow, f"match={kind} cannot be solved: no width here changes it; choose another match.")
    width = 1024 * (1 + (target - narrow) / (wide - narrow))  # all sizes are linear in it
    name = "moe.expert_width" if mixed else "model.encoder.ffn_width"
    require(
        width > MULTIPLE - 0.5,
        f"match={kind} match_to={config.match_to} needs {name}={math.floor(width)}, less than {MULTIPLE}: "
        + ("take fewer experts (moe.num_experts, moe.top_k), a smaller moe.placement" if mixed else "shrink the rest")
        + ", or match something larger.",
    )
    down = max(MULTIPLE, int(width // MULTIPLE) * MULTIPLE)
    shapes = {w: _widened(own, w) for w in (down, down + MULTIPLE)}
    best = min(shapes, key=lambda w: abs(size(shapes[w]) - target))
    model, moe, _ = shapes[best]
    found, unit = size(shapes[best]), "GFLOP/s" if kind is Match.flops else "M parameters"
    scale = 1e9 if kind is Match.flops else 1e6
    line = (
        f"match={kind}: {name}={best}{'' if mixed else ' (decoders in proportion)'}, "
        f"{found / scale:.3f} {unit} against {target / scale:.3f} of {config.match_to} "
        f"({100 * (found / target - 1):+.2f} %), at {vocab_size} tokens."
    )
    return replace(config, model=model, moe=moe, match=None, match_to=None), line


def _reference(name: str, own: Shape, vocab_size: int) -> tuple[Shape, int]:
    if name == "dense":
        return (own[0], MoEConfig(), RouterConfig()), vocab_size
    presets = groups()["model"]
    if name not in presets and Path(name).exists():
        found = load_checkpoint(name)
        return (found.config.model, found.config.moe, found.config.router), len(found.tokenizer)
    if name not in presets:
        raise InputError(
            f"match_to={name} is no run, no checkpoint and no model preset{closest(name, [*presets, 'dense'])} "
            f"There are: {', '.join(presets)}, and dense."
        )
    values = DictConfig(OmegaConf.load(config_folder() / "model" / f"{name}.yaml"))
    preset = to_typed(TrainConfig, values if "model" in values else {"model": values})  # some set other groups too
    return (preset.model, preset.moe, preset.router), vocab_size


def _widened(shape: Shape, width: int) -> Shape:
    """Experts of this width; of a dense model the encoder's layers, and the decoders' in proportion."""
    model, moe, router = shape
    if moe_sites(model, moe.placement):
        return model, replace(moe, expert_width=width), router
    ratio = model.decoder.ffn_width / model.encoder.ffn_width
    decoder = replace(model.decoder, ffn_width=max(1, round(ratio * width / MULTIPLE)) * MULTIPLE)
    return replace(model, encoder=replace(model.encoder, ffn_width=width), decoder=decoder), moe, router


def _size(kind: Match, shape: Shape, config: TrainConfig, vocab_size: int) -> float:
    """Parameters, or FLOPs per second of audio."""
    model, moe, router = shape
    bins = config.features.mel_bins
    if kind is Match.flops:
        return flops.recognition(model, moe, config.decode, bins, vocab_size)["in total"]
    with torch.device("meta"):
        built = build_model(model, moe, router, LossConfig(), vocab_size=vocab_size, mel_bins=bins)
    return parameter_counts(built)[0 if kind is Match.total else 1]

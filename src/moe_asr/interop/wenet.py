"""A trained WeNet model -> a run directory of ours: the same numbers under our names."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moe_asr.errors import InputError
from moe_asr.features.fbank import LogMel
from moe_asr.interop.wenet_config import read_cmvn, read_config
from moe_asr.models.u2pp import AsrModel, module_name
from moe_asr.runs.checkpoint import Checkpoint, build, write_run
from moe_asr.runs.directory import RunDirectory

IGNORED = re.compile(r"\.pe$|\.concat_linear\d?\.(weight|bias)$")
"""Tables that are computed, and a layer that WeNet 1 stored without using it."""

RENAMED = [
    (re.compile(pattern), theirs)
    for pattern, theirs in (
        (r"^encoder\.cmvn", "encoder.global_cmvn"),
        (r"^encoder\.subsampling\.conv1", "encoder.embed.conv.0"),
        (r"^encoder\.subsampling\.conv2", "encoder.embed.conv.2"),
        (r"^encoder\.subsampling\.project", "encoder.embed.out.0"),
        (r"^ctc\.output", "ctc.ctc_lo"),
        (r"^decoders\.left_to_right", "decoder.left_decoder"),
        (r"^decoders\.right_to_left", "decoder.right_decoder"),
        (r"^(encoder|decoder\.\w+)\.norm\.", r"\1.after_norm."),
        (r"^(decoder\.\w+)\.embedding", r"\1.embed.0"),
        (r"^(decoder\.\w+)\.output", r"\1.output_layer"),
        (r"^(encoder|decoder)(.*)\.layers\.", r"\1\2.\1s."),
        (r"(encoders\.\d+)\.norm\.", r"\1.norm_final."),
        (r"norm_ffn_in", "norm_ff_macaron"),
        (r"norm_ffn_out", "norm_ff"),
        (r"norm_attention", "norm_mha"),
        (r"norm_convolution", "norm_conv"),
        (r"norm_self", "norm1"),
        (r"norm_cross", "norm2"),
        (r"norm_ffn\b", "norm3"),
        (r"ffn_in", "feed_forward_macaron"),
        (r"ffn_out", "feed_forward"),
        (r"\.banks\.0\.([wb])_(in|out)$", r".experts.*.\1_\2"),
        (r"\.w_in\b", ".w_1"),
        (r"\.w_out\b", ".w_2"),
        (r"(\*\.w_\d)$", r"\1.weight"),
        (r"\*\.b_in$", "*.w_1.bias"),
        (r"\*\.b_out$", "*.w_2.bias"),
        (r"\bconvolution\b", "conv_module"),
        (r"pointwise_in", "pointwise_conv1"),
        (r"pointwise_out", "pointwise_conv2"),
        (r"depthwise", "depthwise_conv"),
        (r"content_bias", "pos_bias_u"),
        (r"position_bias", "pos_bias_v"),
        (r"cross_attention", "src_attn"),
        (r"self_attention|\battention\b", "self_attn"),
        (r"attn\.(position|out|qkv|kv|q)\b", r"attn.linear_\1"),
        (r"linear_position", "linear_pos"),
    )
]


def wenet_names(model: AsrModel) -> dict[str, tuple[str, ...]]:
    """Our tensor -> the tensors of WeNet that it is made of, several where it joins queries, keys and values (one
    below the other) or experts (stacked)."""

    def theirs(ours: str) -> str:
        for pattern, name in RENAMED:
            ours = pattern.sub(name, ours)
        return ours if "right_to_left" in model.decoders else ours.replace(".left_decoder", "")

    sites = {number: site for site, number in model.routers.table.items()}
    names: dict[str, tuple[str, ...]] = {}
    for ours in model.state_dict():
        if found := re.fullmatch(r"routers\.routers\.(\d+)\.project\.weight", ours):
            names[ours] = (theirs(module_name(sites[int(found[1])])) + ".gate.weight",)
        elif found := re.search(r"linear_(qkv|kv)", name := theirs(ours)):
            names[ours] = tuple(name.replace(found[0], f"linear_{letter}") for letter in found[1])
        elif "*" in name:
            experts = range(model.state_dict()[ours].shape[0])
            names[ours] = tuple(name.replace("*", str(expert)) for expert in experts)
        else:
            names[ours] = (name,)
    return names


def convert(model: AsrModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `model` (which may lie on the meta device) from WeNet's state dict.

    Raises InputError naming tensors that are missing, too many, or of a shape that the YAML does not say.
    """
    tensors, names = {name: t for name, t in tensors.items() if not IGNORED.search(name)}, wenet_names(model)
    wanted = [name for parts in names.values() for name in parts]
    for problem, found in (
        ("lacks", [name for name in wanted if name not in tensors]),
        ("has, beyond what its YAML says,", sorted(set(tensors) - set(wanted))),
    ):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise InputError(f"the checkpoint {problem} {', '.join(found[:3])}{more}; give the YAML it was made with.")
    weights = {}
    for ours, own in model.state_dict().items():
        stacked = ".banks." in ours
        shape = own.shape[1:] if stacked else (own.shape[:1].numel() // len(names[ours]), *own.shape[1:])
        shape = own.shape if own.ndim == 0 else (*shape, 1) if ".pointwise_" in ours and own.ndim == 2 else shape
        for name in names[ours]:
            if tensors[name].shape != tuple(shape):
                raise InputError(
                    f"{name} has the shape {tuple(tensors[name].shape)}, but the YAML says {tuple(shape)}."
                )
        parts = [tensors[name].to(own.dtype) for name in names[ours]]
        joined = torch.stack(parts) if stacked else torch.cat(parts) if len(parts) > 1 else parts[0].clone()
        weights[ours] = joined.view(own.shape)
    return weights


def checkpoint_file(folder: Path, name: str | None) -> Path:
    """The named checkpoint, else final.pt, else the only *.pt."""
    files = {file.name: file for file in sorted(folder.glob("*.pt")) if file.is_file()}
    chosen = name or ("final.pt" if "final.pt" in files else next(iter(files)) if len(files) == 1 else None)
    if chosen in files:
        return files[chosen]
    there = ", ".join(files) or "none"
    raise InputError(f"which checkpoint of {folder} is meant? Choose one of {there} with checkpoint=NAME.")


def import_wenet(folder: Path, out: Path, checkpoint: str | None = None) -> RunDirectory:
    """Writes `out`, a run directory that loads like any other.

    folder: train.yaml or config.yaml, a checkpoint (*.pt), units.txt, global_cmvn unless the checkpoint holds its
    numbers, and the sentencepiece model of a bpe tokenizer. Raises InputError naming what cannot be imported.
    """
    run = RunDirectory(out)
    if run.model.exists():
        raise InputError(f"{out} holds a model already; choose another folder.")
    config, tokenizer, cmvn = read_config(folder)
    LogMel(config.features)  # refuses impossible features
    file = checkpoint_file(folder, checkpoint)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise InputError(f"{file} is not a checkpoint of WeNet, or is damaged.") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{file} is no plain dictionary of tensors; give a checkpoint of the model alone.")
    statistics = ("encoder.global_cmvn.mean", "encoder.global_cmvn.istd")
    if cmvn is None and not any(name in tensors for name in statistics):
        bins = config.features.mel_bins
        tensors |= zip(statistics, (torch.zeros(bins), torch.ones(bins)), strict=True)
    elif cmvn is not None and not all(name in tensors for name in statistics):
        tensors |= zip(statistics, read_cmvn(cmvn), strict=True)
    with torch.device("meta"):
        model = build(config, tokenizer)
    weights = convert(model, tensors)
    source = {"kind": "wenet", "checkpoint": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    write_run(run, Checkpoint(config, tokenizer, weights), {"imported": source})
    return run

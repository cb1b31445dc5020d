"""A model on disk: configuration, tokenizer and weights as plain data, so it loads without arguments or pickles."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from moe_asr.config.compose import to_plain, to_typed
from moe_asr.config.program import TrainConfig
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.models.u2pp import AsrModel, build_model
from moe_asr.randomness import key_seed
from moe_asr.runs.directory import RunDirectory, environment, write_atomically, write_json


@dataclass(frozen=True)
class Checkpoint:
    config: TrainConfig
    tokenizer: Tokenizer
    weights: dict[str, Tensor]


def save_tensors(path: Path, value: Any) -> None:
    """`torch.save`, atomically: a reader or a killed run never meets half a file."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()), "wb")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    save_tensors(
        path,
        {
            "config": to_plain(checkpoint.config),
            "tokenizer": checkpoint.tokenizer.to_dict(),
            "weights": checkpoint.weights,
        },
    )


def write_run(run: RunDirectory, checkpoint: Checkpoint, origin: dict[str, Any]) -> None:
    """A run directory for a model that was not trained here; origin: what environment.json says of its making.

    Raises InputError where it cannot be written.
    """
    try:
        run.model.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(run.model, checkpoint)
        config = OmegaConf.to_yaml(to_plain(checkpoint.config))
        write_atomically(run.path / "config.yaml", lambda file: file.write(config))
        write_json(run.path / "environment.json", {**origin, **environment()})
    except OSError as error:
        raise InputError(f"{run.path} cannot be written ({error}); choose another folder.") from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a run directory or a checkpoint file.

    Raises InputError when there is no finished model in it, or one of another version.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a run directory (see runs/) or a checkpoint file.")
    file = path / "checkpoints" / "model.pt" if path.is_dir() else path
    if not file.exists():
        begun = (path / "checkpoints").is_dir()
        remedy = "train it to its end first" if begun else "it is no run directory; give one, such as runs/demo"
        raise InputError(f"{path} holds no finished model (checkpoints/model.pt); {remedy}.")
    try:
        plain = torch.load(file, map_location="cpu", weights_only=True)
        fields = plain["config"], plain["tokenizer"], plain["weights"]
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise InputError(f"{file} is not a checkpoint of this program, or is damaged.") from error
    try:
        config = to_typed(TrainConfig, fields[0])
    except InputError as error:
        remedy = f"use the one whose commit environment.json beside it names ({error})"
        raise InputError(f"{file} was made by a version of this program with other options; {remedy}.") from error
    return Checkpoint(config, Tokenizer.from_dict(fields[1]), fields[2])


def build(config: TrainConfig, tokenizer: Tokenizer) -> AsrModel:
    """The untrained model of a configuration."""
    return build_model(
        config.model,
        config.moe,
        config.router,
        config.loss,
        vocab_size=len(tokenizer),
        mel_bins=config.features.mel_bins,
        blank=tokenizer.blank,
        sos_eos=tokenizer.sos_eos,
    )


def build_initial(config: TrainConfig, tokenizer: Tokenizer) -> AsrModel:
    """The untrained model of a configuration with the weights that its seed draws: those that training begins with."""
    torch.manual_seed(key_seed("init", config.seed))
    return build(config, tokenizer)


def initial_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What training began with, beside the statistics of the features, which it does not change.

    Raises InputError for a run that began with the weights of another.
    """
    if source := checkpoint.config.init_from:
        raise InputError(f"this run began with the weights of {source}: trace that one.")
    drawn = build_initial(checkpoint.config, checkpoint.tokenizer).state_dict()
    return drawn | {name: value for name, value in checkpoint.weights.items() if name.startswith("encoder.cmvn.")}

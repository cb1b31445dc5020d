"""Decode weights that were tuned on dev: tuned/<mode>.json of a run directory, used by those who ask for them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.errors import InputError


def tuned_file(run: str | Path, mode: DecodeMode) -> Path:
    return Path(run) / "tuned" / f"{mode}.json"


def with_tuned(decode: DecodeConfig, run: str | Path) -> tuple[DecodeConfig, dict[str, Any]]:
    """`decode` with the weights tuned for its mode, and what is known of the tuning.

    Raises InputError where nothing was tuned, or a weight was given too.
    """
    file = tuned_file(run, decode.mode)
    try:
        receipt = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        command = f"moe-asr tune {run} decode.mode={decode.mode}"
        raise InputError(f"{run} has no tuned weights for this mode: run `{command}` first.") from error
    given = [name for name in receipt["weights"] if getattr(decode, name) != getattr(DecodeConfig(), name)]
    if given:
        raise InputError(
            f"tuned=true contradicts decode.{given[0]}={getattr(decode, given[0])}: leave out one of them."
        )
    return replace(decode, **receipt["weights"]), receipt

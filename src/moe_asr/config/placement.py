"""Which feed-forward layers of a model are Mixture-of-Experts layers, and which router serves each. No torch here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from moe_asr.config.model import ModelConfig, MoEConfig, Sharing, require
from moe_asr.errors import InputError

DECODERS = ("left_to_right", "right_to_left")
"""Names of the decoders, and of their stacks of sites."""

_STACKS = {"encoder": ("encoder",), "decoder": DECODERS, "both": ("encoder", *DECODERS)} | {d: (d,) for d in DECODERS}
_TERM = re.compile(r"(?P<stack>\w+?)(\.(?P<layers>\d+(-\d+)?|every\d+))?(\.(?P<slot>ffn_in|ffn_out))?")


@dataclass(frozen=True, order=True)
class MoESite:
    """The address of a feed-forward layer: "encoder", layer 3, "ffn_out" (or "ffn_in", the macaron half)."""

    stack: str
    layer: int
    slot: str

    def __str__(self) -> str:
        return f"{self.stack}.{self.layer:02d}.{self.slot}"


def all_sites(model: ModelConfig) -> tuple[MoESite, ...]:
    """Every feed-forward layer in network order: two per encoder layer if macaron, one per decoder layer."""
    slots = ("ffn_in", "ffn_out") if model.encoder.macaron else ("ffn_out",)
    encoder = [MoESite("encoder", i, slot) for i in range(model.encoder.layers) for slot in slots]
    depths = zip(DECODERS, (model.decoder.layers, model.decoder.reverse_layers), strict=True)
    return (*encoder, *(MoESite(stack, i, "ffn_out") for stack, depth in depths for i in range(depth)))


def moe_sites(model: ModelConfig, placement: str | None, option: str = "moe.placement") -> tuple[MoESite, ...]:
    """The sites of a placement (see `MoEConfig.placement`) in network order; option: what the user calls it.

    Raises InputError for a term that cannot be read or chooses no site.
    """
    if placement in (None, "none"):
        return ()
    chosen: set[MoESite] = set()
    for term in str(placement).split("+"):
        found = {site for site in all_sites(model) if _matches(term, site, option)}
        require(bool(found), f"{option}={placement} names {term!r}, which this model has not: leave it out.")
        chosen |= found
    return tuple(site for site in all_sites(model) if site in chosen)


def _matches(term: str, site: MoESite, option: str) -> bool:
    found = _TERM.fullmatch(term)
    if found is None or found["stack"] not in _STACKS:
        raise InputError(
            f"{option} has the term {term!r}, which is not STACK[.LAYERS][.SLOT]; STACK is one of "
            f"{', '.join(_STACKS)}, LAYERS is 3, 3-5 or every2, SLOT is ffn_in or ffn_out."
        )
    layers = found["layers"]
    if layers is None:
        fits = True
    elif layers.startswith("every"):
        step = int(layers[5:])
        fits = step > 0 and (site.layer + 1) % step == 0
    else:
        first, _, last = layers.partition("-")
        fits = int(first) <= site.layer <= int(last or first)
    return site.stack in _STACKS[found["stack"]] and fits and found["slot"] in (None, site.slot)


def sharing_table(sites: Sequence[MoESite], moe: MoEConfig) -> tuple[int, ...]:
    """The number of the router of each site: (0, 1, 2, 3) per layer, (0, 0, 0, 0) shared, (0, 0, 1, 1) in 2 groups.

    Raises InputError for a grouping that does not fit the sites.
    """
    count = len(sites)
    match moe.sharing:
        case Sharing.table:
            require(
                len(moe.sharing_table) == count,
                f"moe.sharing_table has {len(moe.sharing_table)} numbers for {count} MoE sites; give one for each.",
            )
            keys = [str(number) for number in moe.sharing_table]
        case Sharing.grouped:
            require(
                count == 0 or moe.groups <= count,
                f"moe.groups={moe.groups} is more than the {count} MoE sites; write moe.groups={count} or fewer.",
            )
            keys = [str(i * moe.groups // count) for i in range(count)]
        case Sharing.shared:
            keys = ["all"] * count
        case Sharing.per_stack:
            keys = [site.stack for site in sites]
        case Sharing.per_slot:
            keys = [f"{site.stack}.{site.slot}" for site in sites]
        case Sharing.per_layer:
            keys = [str(site) for site in sites]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)

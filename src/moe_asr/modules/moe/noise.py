"""Routing noise that is a pure function of (utterance, position, site, expert): no batch or chunking changes it."""

import torch
from torch import Tensor

from moe_asr.config.placement import MoESite
from moe_asr.modules.moe.routing import Side
from moe_asr.randomness import key_seed


def uniform(purpose: str, side: Side, site: MoESite, count: int) -> Tensor:
    """(B,N,count) float64 in (0, 1): independent for every purpose, site, utterance key and position.

    Raises ValueError where `side` lacks the keys of the utterances.
    """
    if side.keys is None or side.positions is None:
        raise ValueError(f"{purpose} at {site} needs the key of each utterance: pass Side(keys=...).")
    positions = side.positions if side.positions.ndim == 2 else side.positions.unsqueeze(0)
    bits = _mix(side.keys.unsqueeze(1) ^ key_seed("routing", purpose, str(site)))
    bits = _mix(bits + positions)
    bits = _mix(bits.unsqueeze(-1) + torch.arange(count, device=positions.device) * _ODD)
    return ((bits >> 12) & (2**52 - 1)).double().add(0.5) / 2**52


def gumbel(side: Side, site: MoESite, count: int) -> Tensor:
    """(B,N,count) float64: standard Gumbel noise, whose addition to logits makes the argmax a draw from the softmax."""
    return -(-uniform("gumbel", side, site, count).log()).log()


_ODD = -7046029254386353131  # 2**64 / golden ratio, as a signed number


def _mix(x: Tensor) -> Tensor:
    """A bijection of 64-bit integers; every output bit depends on every input bit (SplitMix64's finaliser)."""
    x = x + _ODD
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Right, filling with zeros as for unsigned numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

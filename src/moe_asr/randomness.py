"""Keyed randomness: every random decision is a pure function of what it decides about, never of what ran before.

A key starts with a purpose ("batches", "augment", "chunk", "dropout", "init", ...) followed by the seed and the
coordinates of the decision, e.g. ``("augment", seed, epoch, utterance_id)``. Hence a killed run resumes bit-exactly
with no generator state saved, and two models of one seed see identical data.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:  # scoring two text files needs no torch
    import torch


def key_seed(purpose: str, *key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key, equal on all machines and Python versions."""
    text = "\x1f".join([purpose, *map(str, key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_rng(purpose: str, *key: int | str) -> numpy.random.Generator:
    return numpy.random.Generator(numpy.random.PCG64(key_seed(purpose, *key)))


def torch_rng(purpose: str, *key: int | str, device: str = "cpu") -> "torch.Generator":
    import torch

    return torch.Generator(device=device).manual_seed(key_seed(purpose, *key))

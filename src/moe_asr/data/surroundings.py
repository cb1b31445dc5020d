"""Where training speech is heard: rooms, crowds, noise and channels, drawn for each utterance and epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from lhotse.cut import Cut
from numpy.random import Generator
from torch import Tensor

from moe_asr.config.data import AugmentConfig
from moe_asr.data.degradation import (
    COLOURS,
    Array,
    babble,
    coloured_noise,
    mix,
    recordings,
    reverberate,
    room,
    stretch,
    through,
)
from moe_asr.data.manifest import load_samples
from moe_asr.errors import InputError
from moe_asr.features.audio import read_audio

TALKERS = (3, 8)
"""Fewest and most voices of babble."""


@dataclass(frozen=True)
class Sounds:
    """What is drawn from: utterances that talk in the background, recorded noises and rooms (none: generated ones)."""

    rate: int = 16000
    talkers: Sequence[Cut] = ()
    noises: Sequence[Path] = ()
    rooms: Sequence[Path] = ()


def sounds_of(config: AugmentConfig, talkers: Sequence[Cut], rate: int) -> Sounds:
    """Raises InputError if a folder or manifest of recordings that the options name has none."""
    given = [recordings(source) if source else () for source in (config.noise_source, config.reverb_source)]
    return Sounds(rate, talkers, *given)


def draw_noise(length: int, sounds: Sounds, rng: Generator) -> Array:
    """(length,) of one of the recordings, or else of one of the colours."""
    if sounds.noises:
        return stretch(sounds.noises[int(rng.integers(len(sounds.noises)))], length, sounds.rate, rng)
    return coloured_noise(length, sounds.rate, list(COLOURS)[rng.integers(len(COLOURS))], rng)


def draw_babble(length: int, sounds: Sounds, rng: Generator) -> Array:
    """(length,) of a few of the talkers; those that cannot be read say nothing."""
    chosen = rng.integers(len(sounds.talkers), size=rng.integers(*TALKERS, endpoint=True)) if sounds.talkers else ()
    said = []
    for i in chosen:
        try:
            said.append(load_samples(sounds.talkers[i], sounds.rate))
        except InputError:  # it is listed where it is an utterance of its own
            continue
    return babble(said, length, rng)


def surround(samples: Tensor, config: AugmentConfig, rng: Generator, sounds: Sounds) -> Tensor:
    """Room, then babble, noise and a codec, each with its share and from a stream of its own; (S,) stays (S,).

    Raises InputError for a recorded noise or room that cannot be read.
    """
    shares = (config.reverb_share, config.babble_share, config.noise_share, config.codec_share)
    rngs = rng.spawn(len(shares))
    in_room, in_babble, in_noise, coded = (own.random() < share for own, share in zip(rngs, shares, strict=True))
    if not len(samples) or not (in_room or in_babble or in_noise or coded):
        return samples
    heard: Array = samples.numpy().astype(numpy.float64)
    if in_room:
        response = (
            read_audio(sounds.rooms[int(rngs[0].integers(len(sounds.rooms)))], sounds.rate).samples
            if sounds.rooms
            else room(sounds.rate, _between(config.reverb_seconds, rngs[0]), rngs[0])
        )
        heard = reverberate(heard, response)
    if in_babble:
        heard = mix(heard, draw_babble(len(heard), sounds, rngs[1]), _between(config.babble_db, rngs[1]))
    if in_noise:
        heard = mix(heard, draw_noise(len(heard), sounds, rngs[2]), _between(config.noise_db, rngs[2]))
    if coded:
        heard = through(heard, sounds.rate, config.codecs[rngs[3].integers(len(config.codecs))])
    return torch.from_numpy(heard).to(samples.dtype)


def _between(span: Sequence[float], rng: Generator) -> float:
    return rng.uniform(span[0], span[1])

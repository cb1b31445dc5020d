"""The Free Spoken Digit Dataset: isolated digits, and strings of them for connected-digit recognition."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import soundfile
from lhotse import MonoCut, Recording
from lhotse.cut import Cut, MixedCut, MixTrack

from moe_asr.config.prepare import FsddConfig, PrepareConfig
from moe_asr.data.manifest import recording
from moe_asr.data.prepare_audit import Audit, Item
from moe_asr.data.synthetic.recipes import DIGITS
from moe_asr.errors import InputError
from moe_asr.randomness import numpy_rng

ROOM_DB = -70.0
"""Level of the noise under a string, below full scale: about that of the two quietest speakers' rooms."""


def fsdd(config: PrepareConfig, audit: Audit, folder: Path) -> Mapping[str, Iterable[Cut]]:
    """One fold per speaker: his voice is the test set, the next one by name is dev, all others train.

    Splits of a fold: `<speaker>/{train,dev,test}` are strings, `.../{train,dev,test}_isolated` recordings.
    A string joins recordings of one speaker, pauses between them. No audio is copied: it is a list of
    recordings and times, and names the recordings so that statistics can resample those.
    """
    source = Path(config.source)
    source = source / "recordings" if (source / "recordings").is_dir() else source
    names = [(path, re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem)) for path in sorted(source.glob("*_*_*.*"))]
    items = (Item(path.stem, path, DIGITS[int(n[1])], n[2], language="en") for path, n in names if n)
    recordings: dict[str, list[MonoCut]] = defaultdict(list)
    for cut in audit.cuts(items):
        recordings[cut.supervisions[0].speaker].append(cut)
    speakers = sorted(recordings)
    if len(speakers) < 3:
        raise InputError(f"{source} has usable DIGIT_SPEAKER_INDEX files of {len(speakers)} speakers; 3 are needed.")
    everything = [cut for cuts in recordings.values() for cut in cuts]
    if len({(cut.sampling_rate, cut.num_channels) for cut in everything}) > 1:
        raise InputError(f"the recordings in {source} differ in sampling rate or channels and cannot be joined.")
    longest = config.fsdd.max_digits * (max(cut.duration for cut in everything) + config.fsdd.max_gap)
    room = _room(folder, everything[0].sampling_rate, longest, config.seed)
    splits: dict[str, Iterable[Cut]] = {}
    for held_out, dev in zip(speakers, speakers[1:] + speakers[:1], strict=True):
        train = [speaker for speaker in speakers if speaker not in (held_out, dev)]
        for split, members, count in (
            ("train", train, config.fsdd.train_strings),
            ("dev", [dev], config.fsdd.dev_strings),
            ("test", [held_out], config.fsdd.test_strings),
        ):
            pools = [recordings[speaker] for speaker in members]
            name = f"{held_out}/{split}"
            splits[name] = _strings(name, count, pools, room, config.fsdd, config.seed)
            splits[f"{name}_isolated"] = [cut for pool in pools for cut in pool]
    return splits


def _room(folder: Path, rate: int, longest: float, seed: int) -> Recording:
    """Noise to lie under the strings: pauses of digital silence, which no recording has, would rule the
    statistics of log features."""
    samples = int(rate * (longest + 30))
    noise = numpy_rng("fsdd", seed, "room").normal(0, 10 ** (ROOM_DB / 20), samples)
    soundfile.write(folder / "room.flac", noise, rate)
    return recording("room", "room.flac", rate, samples)


def _strings(
    name: str, count: int, pools: list[list[MonoCut]], room: Recording, config: FsddConfig, seed: int
) -> Iterator[MixedCut]:
    """The speakers take turns; length, recordings, pauses and noise are uniform draws keyed by the name."""
    rate = room.sampling_rate
    for index in range(count):
        rng, pool = numpy_rng("fsdd", seed, name, index), pools[index % len(pools)]
        length = rng.integers(config.min_digits, config.max_digits, endpoint=True)
        chosen = [pool[k] for k in rng.integers(len(pool), size=length)]
        pauses = rng.uniform(config.min_gap, config.max_gap, size=length)
        chosen[0] = replace(chosen[0], custom={"sources": [cut.id for cut in chosen]})
        tracks, position, end = [], 0, 0  # in samples, so that no rounding makes two digits overlap
        for cut, pause in zip(chosen, pauses, strict=True):
            tracks.append(MixTrack(cut, offset=position / rate))
            end = position + cut.num_samples
            position = end + round(pause * rate)
        start = int(rng.integers(room.num_samples - end, endpoint=True))
        tracks.append(MixTrack(MonoCut("room", start / rate, end / rate, 0, recording=room)))
        yield MixedCut(f"{name.replace('/', '-')}-{index:05d}", tracks)

"""The robustness suite: ten splits, each what one thing makes of voices and sentences that no training corpus has.

The synthetic corpora of recipe and seed draw their voices from the front of one order and say sentences that a hash
puts into other splits than `unseen`; the suite of the same recipe and seed takes the last voices of that order and
the sentences of `unseen`. Voices say the same sentences in every domain, so that domains differ in little else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy
import soundfile
import torch
from lhotse import MonoCut, SupervisionSegment
from lhotse.cut import Cut

from moe_asr.config.data import AugmentConfig, Codec
from moe_asr.config.prepare import ComposeConfig, PrepareConfig
from moe_asr.config.synthetic import SyntheticConfig
from moe_asr.data.manifest import describe, load_samples, read_card, read_split, recording
from moe_asr.data.prepare_audit import Audit
from moe_asr.data.prepare_compose import compose_split
from moe_asr.data.surroundings import TALKERS, Sounds, surround
from moe_asr.data.synthetic import espeak
from moe_asr.data.synthetic.accents import FOREIGN, draw_accented
from moe_asr.data.synthetic.corpus import GENERATION, REMEDY, cuts_of
from moe_asr.data.synthetic.recipes import sentences
from moe_asr.data.synthetic.render import SAMPLE_RATE, Session, Voice, in_processes, render
from moe_asr.errors import InputError
from moe_asr.randomness import key_seed, numpy_rng

RATES = {"unseen": 1.0, "fast": 1.5, "slow": 0.65}
"""Speaking rate of each voice, relative to its own."""
SURROUNDED = {
    "noise": AugmentConfig(noise_share=1.0, noise_db=[0.0, 15.0]),
    "reverb": AugmentConfig(reverb_share=1.0, reverb_seconds=[0.4, 1.0]),
    "telephone": AugmentConfig(codec_share=1.0, codecs=[Codec.telephone]),
    "codec": AugmentConfig(codec_share=1.0, codecs=[Codec.gsm, Codec.vorbis, Codec.opus, Codec.mp3]),
    "babble": AugmentConfig(babble_share=1.0, babble_db=[5.0, 20.0]),
}
"""What the recordings of `unseen` become; strengths are drawn uniformly for each utterance."""
LONG = ComposeConfig(seconds=[30.0, 120.0], pause=[0.3, 1.0])
DOMAINS = (*RATES, *SURROUNDED, "long", "accents")


def stated(config: PrepareConfig) -> dict[str, Any]:
    """All settings as plain values, for the card. Raises InputError if espeak-ng or the corpus fsdd is missing."""
    if config.domains.fsdd:
        _folds(config.domains.fsdd)  # before minutes are spent on what is spoken
    if not espeak.available():
        raise InputError(f"the domains are spoken by espeak-ng, which is not installed; {REMEDY}.")
    plain = {name: asdict(AugmentConfig()) for name in SURROUNDED}
    return {
        "rates": RATES,
        **{n: {k: v for k, v in asdict(c).items() if v != plain[n][k]} for n, c in SURROUNDED.items()},
        "talkers": TALKERS,
        "long": {"seconds": LONG.seconds, "pause": LONG.pause},
        "accents": FOREIGN,
        "generation": GENERATION,
        "espeakng_loader": version("espeakng-loader"),
        "made_of": config.domains.fsdd and read_card(config.domains.fsdd).config_hash,
    }


def domains(config: PrepareConfig, audit: Audit, folder: Path) -> Mapping[str, Iterator[Cut]]:
    """The splits; their audio goes to folder/audio. Raises InputError if there are not enough voices."""
    spoken = _spoken(config, folder)
    here = [cut.with_recording_path_prefix(folder) for cut in spoken["unseen"]]
    sounds = Sounds(SAMPLE_RATE, here)

    def surrounded(split: str, samples: torch.Tensor, cut: Cut) -> torch.Tensor:
        return surround(samples, SURROUNDED[split], numpy_rng("domain", config.seed, split, cut.id), sounds)

    splits: dict[str, Iterator[Cut]] = {split: iter(cuts) for split, cuts in spoken.items()}
    splits |= {split: _written(split, here, folder, surrounded) for split in SURROUNDED}
    splits["long"] = compose_split("long", here, replace(config, compose=LONG), audit, folder)
    splits = {split: splits[split] for split in DOMAINS}
    if config.domains.fsdd:
        splits["fsdd"] = _written("fsdd", _strings(config.domains.fsdd, config.domains.utterances), folder)
    return splits


def _spoken(config: PrepareConfig, folder: Path) -> dict[str, list[MonoCut]]:
    """What is synthesized anew: `unseen`, other rates and accents, by the same sentences."""
    options, seed = config.domains, config.seed
    names = [f"d{i:03d}" for i in range(len(espeak.kinds_of("en")))]
    if options.voices > len(names) // 4:
        raise InputError(f"domains.voices={options.voices} would leave too few of {len(names)} voices for training.")
    voices = espeak.draw_voices("en", names, numpy_rng("synthetic voices", seed, "en"))[-options.voices :]
    foreign = [f"a{i:03d}" for i in range(options.voices)]
    cast: dict[str, Sequence[Voice]] = {
        split: [replace(voice, rate=round(voice.rate * factor)) for voice in voices] for split, factor in RATES.items()
    } | {"accents": draw_accented(foreign, numpy_rng("domain accents", seed))}
    recipe = SyntheticConfig(recipe=options.recipe, seed=seed)
    sessions = []
    for split, members in cast.items():
        for i, voice in enumerate(members):
            first, end = (options.utterances * k // len(members) for k in (i, i + 1))
            said = islice(sentences(recipe, "unseen", "en", numpy_rng("domain sentences", seed, i)), end - first)
            own = key_seed("domain session", seed, i)
            sessions.append(Session(str(folder), split, voice, recipe, own, end - first, None, tuple(said)))
    cuts: dict[str, list[MonoCut]] = {split: [] for split in cast}
    for session, (utterances, _) in zip(sessions, in_processes(render, sessions, config.workers or None), strict=True):
        cuts[session.split] += cuts_of(session.voice, utterances)
    return cuts


def _folds(fsdd: str) -> list[str]:
    """Its splits of test strings. Raises InputError if there are none."""
    prepared = (Path(fsdd) / "corpus.json").is_file()
    folds = [split for split in read_card(fsdd).splits if split.endswith("/test")] if prepared else []
    if not folds:
        raise InputError(
            f"fsdd={fsdd} holds no prepared corpus of real digits; write fsdd=data/fsdd, "
            "made by `moe-asr prepare fsdd DIR`."
        )
    return folds


def _strings(fsdd: str, count: int) -> list[Cut]:
    """The test strings of the real speakers, each from his own fold, as many of one as of another."""
    folds = [read_split(fsdd, split) for split in _folds(fsdd)]
    return [
        cut for i, cuts in enumerate(folds) for cut in cuts[: count * (i + 1) // len(folds) - count * i // len(folds)]
    ]


def _written(
    split: str, cuts: Sequence[Cut], folder: Path, change: Any = lambda _, samples, __: samples
) -> Iterator[Cut]:
    """The cuts, read at 16 kHz, changed and written to a file for each speaker. change: (split, (S,), cut) -> (S,)."""
    (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
    for speaker, group in groupby(cuts, key=lambda cut: describe(cut).speaker):
        members, path = list(group), f"audio/{split}/{speaker}.flac"
        parts = [change(split, torch.from_numpy(load_samples(cut, SAMPLE_RATE)), cut).numpy() for cut in members]
        soundfile.write(folder / path, numpy.concatenate(parts).clip(-1, 1), SAMPLE_RATE, subtype="PCM_16")
        audio, start = recording(f"{split}/{speaker}", path, SAMPLE_RATE, sum(map(len, parts))), 0
        for cut, part in zip(members, parts, strict=True):
            fact, name, seconds = describe(cut), f"{split}-{cut.id}", len(part) / SAMPLE_RATE
            supervision = SupervisionSegment(
                id=name,
                recording_id=audio.id,
                start=0.0,
                duration=seconds,
                text=fact.text,
                speaker=fact.speaker,
                gender=fact.gender,
                language=fact.language,
                custom={"phones": fact.phones} if fact.phones else None,
                alignment=cut.supervisions[0].alignment if len(cut.supervisions) == 1 else None,
            )
            custom = {"sources": list(fact.sources)}
            yield MonoCut(name, start / SAMPLE_RATE, seconds, 0, [supervision], recording=audio, custom=custom)
            start += len(part)

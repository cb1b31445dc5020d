"""The corpus generator: sessions spread over processes, gathered into a prepared corpus folder."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from lhotse import MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem

from moe_asr.config.synthetic import Engine, Recipe, SyntheticConfig
from moe_asr.data import manifest
from moe_asr.data.synthetic import espeak, formant
from moe_asr.data.synthetic.recipes import SHARES, Sentence, read_lines, split_of
from moe_asr.data.synthetic.render import SAMPLE_RATE, Phone, Session, Utterance, Voice, in_processes, render
from moe_asr.errors import InputError
from moe_asr.randomness import key_seed, numpy_rng

GENERATION = 3  # part of the options' hash: raise it when equal options make another corpus than before
_SHORTEST = 0.25  # no utterance has fewer seconds
LICENCES = {
    Engine.espeak: "Speech made by the separate program espeak-ng (GPL-3.0-or-later), which is no part of it.",
    Engine.formant: "Speech made by this program.",
}
NO_CLAIM = "Synthetic speech: error rates on it say nothing about real speech."
REMEDY = "install it with `pip install 'moe-asr[synthetic]'`"


@dataclass(frozen=True)
class Made:
    """fresh: False if the folder already held this very corpus. notes: one line each, for the user."""

    card: manifest.Card
    fresh: bool
    notes: tuple[str, ...]


def generate(
    config: SyntheticConfig,
    folder: Path,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Make the corpus in `folder`, or leave it as it is if it was made from equal options.

    The corpus depends on `config` alone, not on `workers` (processes; None = one a core). `progress` is
    called with the number of finished sessions and of all. Raises InputError if the synthesizer is missing,
    the text unusable or too short, or the folder taken.
    """
    config, notes = _with_engine(config)
    options = _options(config)
    identity = manifest.config_hash(options)
    if (folder / "corpus.json").is_file() and manifest.read_card(folder).config_hash == identity:
        note = f"{folder} already holds this corpus; nothing to do."
        return Made(manifest.read_card(folder), False, (note,))

    lines, problems = _read_text(config)
    with manifest.building(folder, overwrite) as partial:
        sessions = _sessions(config, lines, str(partial))
        silent: set[tuple[str, str]] = set()

        def cuts() -> Iterator[tuple[str, MonoCut]]:
            processes = min(workers or os.cpu_count() or 1, len(sessions))
            # The loop alone holds the results: an interruption ends the processes before their folder goes.
            for done, (session, (utterances, unsaid)) in enumerate(
                zip(sessions, in_processes(render, sessions, processes), strict=True), start=1
            ):
                silent.update((session.voice.language, sentence.spoken) for sentence in unsaid)
                if progress:
                    progress(done, len(sessions))
                yield from ((session.split, cut) for cut in cuts_of(session.voice, utterances))

        sizes = {
            split: manifest.write_split(partial, split, (cut for _, cut in group))
            for split, group in itertools.groupby(cuts(), key=lambda of_split: of_split[0])
        }
        for language, words in sorted(silent):
            problems.append(manifest.Problem(f"{language}: {words}", "nothing to hear", words))
        manifest.write_problems(partial, problems)
        if problems:
            notes.append(f"{len(problems)} sentences were left out, see {folder / 'problems.jsonl'}.")
        card = manifest.Card(
            name=folder.name,
            source=f"synthetic speech, recipe={config.recipe.value}, engine={config.engine.value}",
            splits=sizes,
            config=options,
            config_hash=identity,
            licence=LICENCES[config.engine],
            normalizer="lower case, no punctuation",
            notes=(NO_CLAIM, *notes),
        )
        manifest.write_card(partial, card)
    return Made(card, True, tuple(notes))


def _with_engine(config: SyntheticConfig) -> tuple[SyntheticConfig, list[str]]:
    """The engine that `auto` means here, and a note if it is the second choice."""
    if config.engine is Engine.formant:
        return config, []
    if espeak.available():
        return dataclasses.replace(config, engine=Engine.espeak), []
    if config.engine is Engine.espeak or config.recipe is not Recipe.digits:
        raise InputError(f"recipe={config.recipe.value} needs espeak-ng, which is not installed; {REMEDY}.")
    note = f"espeak-ng is not installed, so the built-in formant synthesizer speaks; {REMEDY} for better voices."
    return dataclasses.replace(config, engine=Engine.formant), [note]


def _options(config: SyntheticConfig) -> dict[str, Any]:
    """Everything the corpus depends on, as plain values."""
    enums = {"recipe": config.recipe.value, "engine": config.engine.value}
    options = {**dataclasses.asdict(config), **enums, "generation": GENERATION}
    if config.engine is Engine.espeak:
        options["espeakng_loader"] = version("espeakng-loader")
    if config.text is not None and Path(config.text).is_file():
        options["text"] = hashlib.sha256(Path(config.text).read_bytes()).hexdigest()
    return options


def _read_text(config: SyntheticConfig) -> tuple[dict[str, list[Sentence]], list[manifest.Problem]]:
    """The lines of each split in an order drawn by seed (none but for recipe=text), and those left out."""
    lines: dict[str, list[Sentence]] = {split: [] for split in SHARES}
    if config.text is None:
        return lines, []
    good, bad = read_lines(Path(config.text), config.language)
    for i in numpy_rng("synthetic lines", config.seed).permutation(len(good)):
        lines[split_of(str(good[i].text), config.seed)].append(good[i])
    return lines, [manifest.Problem(f"line-{number}", reason, line) for number, reason, line in bad]


def _sessions(config: SyntheticConfig, lines: dict[str, list[Sentence]], folder: str) -> list[Session]:
    """Who says how much of what, split after split."""
    voices = _voices(config)
    train, rest = voices[: config.train_voices], voices[config.train_voices :]
    unseen, dev = rest[: config.test_voices], train[: config.dev_voices // 2] + rest[config.test_voices :]
    cast: dict[str, tuple[list[Voice], int | None]] = {
        "train": (train, None),
        "dev": (dev, config.dev_utterances),
        "seen": (train, config.seen_utterances),
        "unseen": (unseen, config.test_voices * config.utterances_per_test_voice),
    }
    sessions = []
    for split, (members, total) in cast.items():
        text = lines[split]
        for i, voice in enumerate(members):
            utterances = seconds = None
            if total is None:
                seconds = config.hours * 3600 / len(members)
                most = int(seconds / _SHORTEST) + 1
            else:
                utterances = total * (i + 1) // len(members) - total * i // len(members)
                most = 2 * utterances  # some may turn out to be silent
                if not utterances:
                    continue
            if config.text is not None and len(text) < (utterances or 1):
                raise InputError(
                    f"text={config.text} has {len(text)} different lines for the split {split!r}, but a voice "
                    f"speaks {utterances or 1} there; give more lines, or ask for fewer utterances."
                )
            # Each voice starts elsewhere in the text, so that all of it is said before it is repeated.
            start = len(text) * i // len(members)
            mine = tuple(text[(start + k) % len(text)] for k in range(min(most, len(text))))
            seed = key_seed("synthetic session", config.seed, split, voice.name)
            sessions.append(Session(folder, split, voice, config, seed, utterances, seconds, mine))
    return sessions


def _voices(config: SyntheticConfig) -> list[Voice]:
    """Every voice of the corpus: training, unseen, then those of dev alone; languages take turns."""
    count = config.train_voices + config.test_voices + config.dev_voices - config.dev_voices // 2
    names = [f"v{i:03d}" for i in range(count)]
    if config.engine is Engine.formant:
        return list(formant.draw_voices(names, numpy_rng("synthetic voices", config.seed)))
    spoken = {Recipe.text: [config.language], Recipe.multilingual: config.languages}
    languages = spoken.get(config.recipe, ["en"])
    voices: dict[str, Voice] = {}
    for i, language in enumerate(languages):
        rng = numpy_rng("synthetic voices", config.seed, language)
        drawn = espeak.draw_voices(language, names[i :: len(languages)], rng)
        voices.update((voice.name, voice) for voice in drawn)
    return [voices[name] for name in names]


def cuts_of(voice: Voice, utterances: list[Utterance]) -> Iterator[MonoCut]:
    """One cut an utterance; those of a file share its recording. Audio paths are relative to the corpus."""
    for path, members in itertools.groupby(utterances, key=lambda utterance: utterance.audio):
        group = list(members)
        name = path.removeprefix("audio/").removesuffix(".flac")
        recording = manifest.recording(name, path, SAMPLE_RATE, group[-1].start + group[-1].length)
        for utterance in group:
            seconds = utterance.length / SAMPLE_RATE
            phones = " ".join(phone.symbol for phone in utterance.phones)
            spoken = [(phone.symbol, phone.start, phone.end) for phone in utterance.phones]
            spans = {"phone": spoken, "word": _words(utterance.sentence, utterance.phones)}
            supervision = SupervisionSegment(
                id=utterance.id,
                recording_id=name,
                start=0.0,
                duration=seconds,
                text=phones if utterance.sentence.text is None else utterance.sentence.text,
                speaker=voice.name,
                language=voice.language,
                custom={"phones": phones, "spoken": utterance.sentence.spoken, "voice": dataclasses.asdict(voice)},
                alignment={
                    kind: [AlignmentItem(heard, round(a, 4), round(b - a, 4)) for heard, a, b in items]
                    for kind, items in spans.items()
                    if items
                },
            )
            start = utterance.start / SAMPLE_RATE
            yield MonoCut(utterance.id, start, seconds, 0, recording=recording, supervisions=[supervision])


def _words(sentence: Sentence, phones: tuple[Phone, ...]) -> list[tuple[str, float, float]]:
    """(words, start, end) in seconds; words that the voice joins share an item. None where not all can be found."""
    groups = [list(group) for _, group in itertools.groupby(phones, key=lambda phone: phone.word)]
    begins = [0, *(group[0].word for group in groups[1:]), len(sentence.spoken)]
    heard = ["".join(c if c.isalnum() or c == "'" else " " for c in sentence.spoken[a:b]) for a, b in pairwise(begins)]
    texts = [" ".join(text.split()) for text in heard]
    if not all(texts) or " ".join(texts) != sentence.text:
        return []
    return [(text, group[0].start, group[-1].end) for text, group in zip(texts, groups, strict=True)]

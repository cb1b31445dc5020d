"""A prepared corpus on disk: a folder that every other part of the program reads through this file.

    corpus.json          the card: where it comes from, its splits, the options that made it, notes
    <split>.jsonl.gz     one lhotse cut a line; a split of a fold is `<fold>/<split>.jsonl.gz`
    problems.jsonl       the utterances that were left out: id, reason, detail

A relative audio path in a manifest starts at the corpus folder, so audio kept inside it moves with it; audio
kept elsewhere is named by its absolute path, so the manifests alone can be moved too.
"""

import dataclasses
import difflib
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from lhotse import AudioSource, Recording
from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from moe_asr.config.prepare import Corpus
from moe_asr.config.synthetic import Recipe
from moe_asr.errors import InputError
from moe_asr.features.audio import mix_down, resample

# The reader of `features.audio` is that of corpora, too; lhotse's own guess wants a further program for SPHERE files.
set_current_audio_backend(LibsndfileBackend())


@dataclass(frozen=True)
class SplitSize:
    utterances: int
    hours: float
    speakers: int


@dataclass(frozen=True)
class Card:
    """What a prepared corpus says about itself."""

    name: str
    source: str
    splits: Mapping[str, SplitSize]
    config: Mapping[str, Any] = field(default_factory=dict)
    """The options that made it, as plain values."""
    config_hash: str = ""
    licence: str = ""
    normalizer: str = ""
    """What was done to the transcripts on the way in."""
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Utterances by reason; each is listed in problems.jsonl."""


@dataclass(frozen=True)
class Problem:
    """An utterance that was left out."""

    id: str
    reason: str
    """One of few, to be counted: "missing audio", "empty text", ..."""
    detail: str


@dataclass(frozen=True)
class Utterance:
    """The facts of a cut that training, scoring and statistics ask for."""

    id: str
    seconds: float
    text: str
    speaker: str | None
    gender: str | None
    language: str | None
    phones: str | None
    """IPA phones separated by spaces, where the corpus knows them."""
    sources: tuple[str, ...]
    """Ids of the recordings it was composed of; its own id if it was recorded as it is."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Equal for equal options (plain values), whatever their order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def recording(name: str, path: str | Path, sample_rate: int, samples: int, channels: int = 1) -> Recording:
    """An audio file of `samples` a channel."""
    source = AudioSource("file", list(range(channels)), str(path))
    return Recording(name, [source], sample_rate, samples, samples / sample_rate)


def write_split(folder: Path, name: str, cuts: Iterable[Cut]) -> SplitSize:
    """Streams cuts into `<folder>/<name>.jsonl.gz`; equal cuts give equal bytes."""
    path = folder / f"{name}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    utterances, seconds, speakers = 0, 0.0, set()
    # The name and time that gzip would store are left out: they would make equal corpora differ.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as file:
        for cut in cuts:
            file.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
            utterances, seconds = utterances + 1, seconds + cut.duration
            speakers |= {s.speaker for s in cut.supervisions if s.speaker is not None}
    return SplitSize(utterances, round(seconds / 3600, 6), len(speakers))


def split_size(folder: Path, name: str) -> SplitSize:
    """Of a split, as the card says it; raises InputError like `read_split`."""
    splits = read_card(folder).splits
    if name not in splits:
        near = difflib.get_close_matches(name, splits, n=1)
        raise InputError(
            f"the corpus {folder} has no split {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}; "
            f"it has {', '.join(splits)}."
        )
    return splits[name]


def read_split(folder: str | Path, name: str) -> list[Cut]:
    """The cuts of a split ("train", or "george/train" in a fold), audio paths resolved.

    Raises InputError for a missing corpus (with the command that makes it) or split (with those that exist).
    """
    folder = Path(folder)
    size = split_size(folder, name)
    base = folder.absolute()
    try:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf8") as file:
            cuts = [deserialize_item(_resolve(json.loads(line), base)) for line in file]
        if len(cuts) == size.utterances:
            return cuts
        reason = f"{len(cuts)} of {size.utterances} utterances"
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = str(error)
    raise InputError(f"{folder / name}.jsonl.gz is damaged ({reason}); prepare it again with overwrite=true.")


def write_card(folder: Path, card: Card) -> None:
    text = json.dumps(dataclasses.asdict(card), ensure_ascii=False, indent=1)
    (folder / "corpus.json").write_text(text + "\n", encoding="utf8")


def read_card(folder: str | Path) -> Card:
    """Raises InputError where no corpus has been prepared, naming the command that makes it."""
    folder = Path(folder)
    try:
        plain = json.loads((folder / "corpus.json").read_text(encoding="utf8"))
        splits = {name: SplitSize(**size) for name, size in plain.pop("splits").items()}
        return Card(splits=splits, notes=tuple(plain.pop("notes")), **plain)
    except OSError:
        raise InputError(f"{folder} holds no prepared corpus; make it with `{_command(folder)}`.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder / 'corpus.json'} is damaged ({error}); prepare the corpus again.") from None


def write_problems(folder: Path, problems: Iterable[Problem]) -> None:
    with (folder / "problems.jsonl").open("w", encoding="utf8") as file:
        for problem in problems:
            file.write(json.dumps(dataclasses.asdict(problem), ensure_ascii=False) + "\n")


@contextmanager
def building(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A fresh folder to fill, which takes the place of `folder` only when the block ends well.

    Raises InputError if `folder` holds anything but a prepared corpus, or one that may not be overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / "corpus.json").is_file():
            raise InputError(f"{folder} exists and is no prepared corpus; choose another out=DIR.")
        if not overwrite:
            raise InputError(
                f"{folder} was prepared with other options; write overwrite=true to replace it, or out=DIR."
            )
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    held = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        raise InputError(f"{folder} is being prepared by another process; wait for it.") from error
    try:
        for left in partial.iterdir():  # by a preparation that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(held)


def describe(cut: Cut) -> Utterance:
    parts = sorted(cut.supervisions, key=lambda part: part.start)
    first = parts[0] if parts else None
    phones = [part.custom["phones"] for part in parts if part.custom and "phones" in part.custom]
    return Utterance(
        id=cut.id,
        seconds=cut.duration,
        text=" ".join(part.text for part in parts if part.text),
        speaker=first and first.speaker,
        gender=first and first.gender,
        language=first and first.language,
        phones=" ".join(phones) if phones else None,
        sources=tuple((cut.custom or {}).get("sources", (cut.id,))),
    )


def word_ends(cut: Cut) -> list[tuple[str, float | None]] | None:
    """Each word of the text and when it ends (s); None for one that the voice joins to the next, as in "of the".

    None for all where the corpus does not know them.
    """
    parts = sorted(cut.supervisions, key=lambda part: part.start)
    items = [item for part in parts for item in (part.alignment or {}).get("word", ())]
    ends: list[tuple[str, float | None]] = []
    for item in items:
        *joined, last = item.symbol.split()
        ends += [*((word, None) for word in joined), (last, item.end)]
    return ends if ends and [word for word, _ in ends] == describe(cut).text.split() else None


def load_samples(cut: Cut, sample_rate: int = 16000) -> numpy.ndarray:
    """(S,) float32 mono at sample_rate: any lhotse cut (mixed and perturbed ones too), channels averaged.

    A composed cut is resampled once, as a whole. Raises InputError naming an utterance that cannot be read.
    """
    try:
        samples = mix_down(cut.load_audio())
    except Exception as error:  # lhotse wraps a dozen kinds of failure
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise InputError(f"utterance {cut.id} cannot be read ({reason}); prepare its corpus again.") from None
    return resample(samples, cut.sampling_rate, sample_rate, cut.id)


def _resolve(plain: dict[str, Any], base: Path) -> dict[str, Any]:
    """Makes the audio paths of a cut, still a plain dictionary, absolute."""
    for cut in [track["cut"] for track in plain["tracks"]] if "tracks" in plain else [plain]:
        for source in cut.get("recording", {}).get("sources", []):
            if source["type"] == "file":
                source["source"] = str(base / source["source"])
    return plain


def _command(folder: Path) -> str:
    """What makes a corpus, guessed from the folder that `prepare` would give it."""
    if folder.name in (recipe.value for recipe in Recipe):
        return f"moe-asr prepare synthetic recipe={folder.name} out={folder}"
    if folder.name in ("domains", "domains-grammar"):
        return f"moe-asr prepare domains recipe={'grammar' if '-' in folder.name else 'digits'} out={folder}"
    corpus = folder.name if folder.name in (corpus.value for corpus in Corpus) else "CORPUS"
    return f"moe-asr prepare {corpus} source=DIR out={folder}"

"""How corpora lie on disk: each reader yields the items of each split, from text files alone."""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_asr.config.prepare import PrepareConfig
from moe_asr.data.manifest import Problem
from moe_asr.data.prepare_audit import Item
from moe_asr.errors import InputError
from moe_asr.randomness import key_seed

Items = Iterable[Item | Problem]


def librispeech(config: PrepareConfig) -> Mapping[str, Items]:
    """`<part>/<speaker>/<chapter>/<id>.flac` with `<speaker>-<chapter>.trans.txt`; each part is a split."""
    source = _inside(config.source, "LibriSpeech")
    parts = sorted({path.parents[2] for path in source.glob("*/*/*/*.trans.txt")})
    if not parts:
        raise InputError(f"{source} has no PART/SPEAKER/CHAPTER/*.trans.txt; source= is the folder LibriSpeech.")
    genders = {}
    if (source / "SPEAKERS.TXT").is_file():
        fields = [line.split("|") for line in _lines(source / "SPEAKERS.TXT") if not line.startswith(";")]
        genders = {f[0].strip(): f[1].strip().lower() for f in fields if len(f) > 1}

    def items(part: Path) -> Iterator[Item | Problem]:
        for transcript in sorted(part.glob("*/*/*.trans.txt")):
            speaker, texts = transcript.parents[1].name, dict(_pairs(transcript))
            for name in sorted(texts.keys() | {path.stem for path in transcript.parent.glob("*.flac")}):
                audio = transcript.parent / f"{name}.flac"
                yield Item(name, audio, texts.get(name, ""), speaker, gender=genders.get(speaker), language="en")

    return {part.name: items(part) for part in parts}


def aishell(config: PrepareConfig) -> Mapping[str, Items]:
    """`wav/{train,dev,test}/<speaker>/<id>.wav` with one transcript file for all.

    Spaces of the word segmentation are removed, full-width letters become plain ones (Unicode NFKC).
    """
    source = _inside(config.source, "data_aishell")
    transcript = source / "transcript" / "aishell_transcript_v0.8.txt"
    parts = [source / "wav" / name for name in ("train", "dev", "test") if (source / "wav" / name).is_dir()]
    if not transcript.is_file() or not parts:
        raise InputError(f"{source} has no {transcript.relative_to(source)} or no wav/train; source= is data_aishell.")
    texts = {name: "".join(unicodedata.normalize("NFKC", text).split()) for name, text in _pairs(transcript)}

    splits: dict[str, list[Item | Problem]] = {}
    for part in parts:
        files = sorted(part.glob("*/*.wav"))
        splits[part.name] = [Item(f.stem, f, texts.pop(f.stem, ""), f.parent.name, language="cmn") for f in files]
    splits[parts[0].name] += [Problem(name, "missing audio", f"only {transcript} has it") for name in texts]
    return splits


def kaldi(config: PrepareConfig) -> Mapping[str, Items]:
    """A Kaldi data dir, or a folder of them; the name of the dir is the split."""
    source = Path(config.source)
    folders = [source] if (source / "wav.scp").is_file() else sorted(p.parent for p in source.glob("*/wav.scp"))
    if not folders:
        raise InputError(f"{source} has no wav.scp, and no folder in it has one; source= is a Kaldi data dir.")
    root = config.kaldi.audio_root
    return {f.absolute().name: kaldi_items(f, [Path(root)] if root else [f, f.parent, Path()]) for f in folders}


def kaldi_items(folder: Path, roots: list[Path]) -> list[Item | Problem]:
    """wav.scp, text and, where present, segments, utt2spk, spk2gender, spk2age and utt2lang.

    A relative audio path starts at the first of `roots` where it exists. Raises InputError for a wav.scp that
    runs commands or points into archives.
    """
    found: list[Item | Problem] = []

    def table(name: str) -> dict[str, str]:
        values: dict[str, str] = {}
        for key, value in _pairs(folder / name) if (folder / name).is_file() else ():
            if values.setdefault(key, value) != value:
                found.append(Problem(key, "duplicate id", f"{folder / name} gives it two values; the first is used"))
        return values

    def audio(recording: str) -> Path:
        path = Path(wavs[recording])
        return next((root / path for root in roots if (root / path).is_file()), roots[0] / path)

    wavs, texts, speakers = table("wav.scp"), table("text"), table("utt2spk")
    genders, ages, languages = table("spk2gender"), table("spk2age"), table("utt2lang")
    for recording, wav in wavs.items():
        if "|" in wav or re.search(r"\.ark:\d+$", wav):
            raise InputError(
                f"{folder / 'wav.scp'} gives {recording} by a command or archive ({wav}), which is not read; "
                "decode it to audio files and name those."
            )
    spans: Iterable[tuple[str, str]] = ((name, name) for name in wavs)
    if (folder / "segments").is_file():
        spans = list(_pairs(folder / "segments"))
    ids = set()
    for name, span in spans:
        ids.add(name)
        try:
            recording, *times = span.split()
            start, end = map(float, times) if times else (0.0, -1.0)
        except ValueError:
            found.append(Problem(name, "bad line", f"{folder / 'segments'}: expected ID RECORDING START END"))
            continue
        if recording not in wavs:
            found.append(Problem(name, "missing audio", f"recording {recording} is not in {folder / 'wav.scp'}"))
            continue
        speaker, seconds = speakers.get(name), end - start if end >= 0 else None  # Kaldi: -1 = to the end
        custom = {"age": int(ages[speaker])} if speaker in ages and ages[speaker].isdigit() else {}
        traits = (genders.get(speaker or ""), languages.get(name), custom)
        found.append(Item(name, audio(recording), texts.get(name, ""), speaker, start, seconds, *traits))
    found += [Problem(name, "missing audio", f"only {folder / 'text'} has it") for name in texts if name not in ids]
    return found


def jsonl(config: PrepareConfig) -> Mapping[str, Items]:
    """A manifest, or every `*.jsonl` of a folder.

    A line is `{"audio": path, "text": words}` with optional id, start, duration, speaker, gender, language,
    split; paths start at the manifest's folder, further fields are kept. Without a field `split` the name of
    the file is the split ("train" for `manifest.jsonl` and for a single file).
    """
    source = Path(config.source)
    files = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
    if not files:
        raise InputError(f"{source} has no manifest *.jsonl; source= is a manifest or a folder of them.")
    splits: dict[str, list[Item | Problem]] = defaultdict(list)
    for file in files:
        split = "train" if len(files) == 1 or file.stem == "manifest" else file.stem
        for name, item in jsonl_items(file, split):
            splits[name].append(item)
    return splits


def jsonl_items(file: Path, default_split: str) -> Iterator[tuple[str, Item | Problem]]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            yield _jsonl_item(json.loads(line), file.parent, default_split)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            detail = f"{reason}; expected an object with audio and text"
            yield default_split, Problem(f"{file.name}:{number}", "bad line", detail)


def _jsonl_item(plain: dict[str, Any], root: Path, default_split: str) -> tuple[str, Item]:
    def take(name: str, default: Any = None, kind: Callable[[Any], Any] = lambda value: value) -> Any:
        value = plain.pop(name, None)
        return default if value is None else kind(value)

    audio, text = plain.pop("audio"), plain.pop("text")
    split, start = take("split", default_split), take("start", 0.0)
    name = Path(audio).with_suffix("").as_posix().strip("./").replace("/", "-") + (f"-{start}" if start else "")
    if not isinstance(text, str) or not re.fullmatch(r"\w[\w.-]*", split):
        raise ValueError("text must be a string and split a plain name")
    about = (take("id", name, str), root / audio, text, take("speaker", None, str))
    return split, Item(*about, float(start), take("duration", None, float), take("gender"), take("language"), plain)


def speechocean762(config: PrepareConfig) -> Mapping[str, Items]:
    """The splits of `manifest.jsonl` where there is one; else upstream's: Kaldi dirs `train` and `test`.

    Then the dev speakers are drawn from the train half, in proportion to gender and age group.
    """
    source = Path(config.source)
    splits: dict[str, list[Item | Problem]] = defaultdict(list)
    if (source / "manifest.jsonl").is_file():
        for split, item in jsonl_items(source / "manifest.jsonl", "train"):
            splits[split].append(_english(item))
        return splits
    if not (source / "train" / "wav.scp").is_file():
        raise InputError(f"{source} has neither manifest.jsonl nor train/wav.scp; source= is the folder with WAVE.")
    halves = [name for name in ("train", "test") if (source / name / "wav.scp").is_file()]
    splits.update((name, [_english(i) for i in kaldi_items(source / name, [source])]) for name in halves)
    items = [item for item in splits["train"] if isinstance(item, Item)]
    traits = {i.speaker: (str(i.gender), i.custom.get("age", 0) >= 18) for i in items}
    wanted = config.speechocean762.dev_speakers
    if wanted >= len(traits):
        raise InputError(f"speechocean762.dev_speakers={wanted} leaves none of {len(traits)} speakers to train on.")
    # A systematic sample of the speakers sorted by their traits is proportional to the traits.
    ordered = sorted(traits, key=lambda s: (traits[s], key_seed("speechocean762", config.seed, str(s))))
    dev = {ordered[int((k + 0.5) * len(ordered) / wanted)] for k in range(wanted)}
    splits["dev"] = [item for item in items if item.speaker in dev]
    splits["train"] = [i for i in splits["train"] if isinstance(i, Problem) or i.speaker not in dev]
    return splits


def _english(item: Item | Problem) -> Item | Problem:
    """Upstream's ids are the names of the files."""
    return replace(item, id=item.audio.stem, language="en") if isinstance(item, Item) else item


def _inside(source: str, name: str) -> Path:
    """The folder itself, or the one of its archive's name in it."""
    inner = Path(source) / name
    return inner if inner.is_dir() else Path(source)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); convert it.") from None


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of `key value...`, separated by tabs or spaces; keys stay text (leading zeros)."""
    for line in _lines(path):
        if line.strip():
            key, *value = line.strip().split(maxsplit=1)
            yield key, value[0] if value else ""

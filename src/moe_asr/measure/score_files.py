"""Transcripts from elsewhere: Kaldi text, CTM and JSONL.

Kaldi text  `id words...`, an empty transcript being the id alone
CTM         `id channel start duration word [confidence ...]`, words ordered by time; `;;` starts a comment
JSONL       an object a line with "id" and the text under "hypothesis" or "reference" (its role), or "text";
            "speaker" and "sources" (a list of recording ids) are kept when they are there

The extensions .jsonl and .ctm decide. Any other file is JSONL if it starts with a brace, CTM if every line
has a start and a duration with a decimal point, else Kaldi text.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moe_asr.errors import InputError

_CTM_LINE = re.compile(r"\S+\s+\S+\s+\d+\.\d+\s+\d+\.\d+\s+\S+(\s+\S+)*")


@dataclass
class Transcripts:
    texts: dict[str, str] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)


def read_transcripts(path: str | Path, role: str) -> Transcripts:
    """Reads a file of hypotheses or references; `role` is "hypothesis" or "reference".

    Raises InputError, with file and line, for what cannot be read, is malformed, or names an utterance twice.
    """
    path = Path(path)
    lines = list(_lines(path))
    if not lines:
        raise InputError(f"{path} is empty; a {role} file needs a line for every utterance.")
    if path.suffix == ".jsonl" or (path.suffix != ".ctm" and lines[0][1].startswith("{")):
        return _read_jsonl(path, lines, role)
    spoken = [(number, line) for number, line in lines if not line.startswith(";;")]
    if path.suffix == ".ctm" or (spoken and all(_CTM_LINE.fullmatch(line) for _, line in spoken)):
        return _read_ctm(path, spoken)
    result = Transcripts()
    for number, line in lines:
        name, *words = line.split()
        _add(result, name, " ".join(words), path, number)
    return result


def read_speakers(path: str | Path) -> dict[str, str]:
    """A Kaldi utt2spk file: `utterance speaker` lines."""
    path, speakers = Path(path), dict[str, str]()
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 2:
            raise InputError(f"{path}, line {number}: '{line[:60]}' must be an utterance and its speaker.")
        if fields[0] in speakers:
            raise InputError(f"{path}, line {number}: {fields[0]} is there twice; remove one of them.")
        speakers[fields[0]] = fields[1]
    return speakers


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines that are not blank, stripped. Only newlines separate lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); convert it first.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _add(result: Transcripts, name: str, text: str, path: Path, number: int) -> None:
    if name in result.texts:
        remedy = "remove one of them, or call the file .ctm if it has a word a line"
        raise InputError(f"{path}, line {number}: the utterance {name} is there twice; {remedy}.")
    result.texts[name] = text


def _read_ctm(path: Path, lines: list[tuple[int, str]]) -> Transcripts:
    words: dict[str, list[tuple[float, int, str]]] = {}
    channels: dict[str, str] = {}
    for number, line in lines:
        fields = line.split()
        try:
            name, channel, start, _, word = (
                fields[0],
                fields[1],
                float(fields[2]),
                float(fields[3]),
                fields[4],
            )
        except (IndexError, ValueError):
            form = "id channel start duration word [confidence]"
            raise InputError(f"{path}, line {number}: '{line[:60]}' is not a CTM line; write {form}.") from None
        if channels.setdefault(name, channel) != channel:
            both = f"channels {channels[name]} and {channel}"
            raise InputError(f"{path}, line {number}: {name} has {both}; give each channel an id of its own.")
        words.setdefault(name, []).append((start, number, word))
    return Transcripts({name: " ".join(word for *_, word in sorted(timed)) for name, timed in words.items()})


def _read_jsonl(path: Path, lines: list[tuple[int, str]], role: str) -> Transcripts:
    result = Transcripts()
    for number, line in lines:
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error.msg}); write one object a line.") from error
        text = item.get(role, item.get("text")) if isinstance(item, dict) else None
        if not isinstance(text, str) or not isinstance(item.get("id"), str):
            raise InputError(f'{path}, line {number} needs the strings "id" and "{role}" (or "text").')
        name, speaker, sources = item["id"], item.get("speaker"), item.get("sources")
        _add(result, name, text, path, number)
        if speaker is not None:
            if not isinstance(speaker, str):
                raise InputError(f'{path}, line {number}: "speaker" must be a string.')
            result.speakers[name] = speaker
        if sources:
            if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
                raise InputError(f'{path}, line {number}: "sources" must be a list of recording ids.')
            result.sources[name] = tuple(sources)
    return result

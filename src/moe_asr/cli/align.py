"""`moe-asr align RUN AUDIO...`: when the words of a known text are said."""

from pathlib import Path

from moe_asr.config.align import AlignConfig, AlignFormat
from moe_asr.errors import InputError

CONFIG = AlignConfig


def run(config: AlignConfig) -> None:
    import json
    import sys
    from collections import Counter

    from moe_asr.runs.recognizer import Recognizer

    if not config.audio:
        raise InputError("Which audio? Write: moe-asr align RUN AUDIO...")
    names = ["_".join(Path(file).stem.split()) for file in config.audio]
    name, count = Counter(names).most_common(1)[0]
    if count > 1 and config.format is AlignFormat.ctm:
        raise InputError(f"{count} files are called {name}, which a CTM cannot tell apart; write format=jsonl.")
    recognizer, failed = Recognizer.load(config.run, config.device), []
    for file, name in zip(config.audio, names, strict=True):
        try:
            found = recognizer.align(file, text_beside(Path(file)) if config.text is None else config.text)
        except InputError as error:
            failed.append(f"{file}: {error}")
            continue
        if config.format is AlignFormat.ctm:
            for word in found.words:
                print(f"{name} 1 {word.start:.2f} {word.end - word.start:.2f} {word.text} {word.confidence:.4f}")
            continue
        rows = {
            unit: [[t.text, round(t.start, 2), round(t.end, 2), round(t.confidence, 4)] for t in timed]
            for unit, timed in (("words", found.words), ("tokens", found.tokens))
        }
        print(json.dumps({"audio": file, "text": found.text, "score": found.score, **rows}, ensure_ascii=False))
    sys.stdout.flush()
    if failed:
        raise InputError("\n  ".join([f"{len(failed)} of {len(config.audio)} files could not be aligned:", *failed]))


def text_beside(audio: Path) -> str:
    """The text of an audio file, spaces single. Raises InputError where it is missing or no UTF-8."""
    file = next((f for f in (audio.with_suffix(".txt"), audio.with_suffix(".lab")) if f.is_file()), None)
    if file is None:
        raise InputError(f"there is no {audio.with_suffix('.txt').name} beside it; write it, or give text=...")
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no UTF-8 text ({error}); convert it.") from error

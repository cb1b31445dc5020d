"""`moe-asr transcribe RUN AUDIO...`: the text of audio files."""

from moe_asr.config.commands import TranscribeConfig

CONFIG = TranscribeConfig


def run(config: TranscribeConfig) -> None:
    import json
    import sys

    from moe_asr.errors import InputError
    from moe_asr.runs.recognizer import Recognizer

    if not config.audio:
        raise InputError("Which audio? Write: moe-asr transcribe RUN AUDIO...")
    if config.format not in ("text", "jsonl"):
        raise InputError(f"format={config.format} is not known; write format=text or format=jsonl.")
    recognizer = Recognizer.load(config.run, config.device)
    failed = []
    for file in config.audio:
        try:
            transcript = recognizer.transcribe(file, config.decode)
        except InputError as error:
            failed.append(str(error))
            continue
        for note in transcript.notes:
            print(f"{file}: {note}", file=sys.stderr)
        tokens = [recognizer.tokenizer.symbols[i] for i in transcript.hypothesis.tokens]
        if config.format == "jsonl":
            row = {"audio": file, "text": transcript.text, "score": transcript.hypothesis.score}
            row["tokens"] = [[t, round(s, 2)] for t, s in zip(tokens, transcript.seconds, strict=True)]
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(transcript.text if len(config.audio) == 1 else f"{file}\t{transcript.text}")
    if failed:
        raise InputError(
            "\n  ".join([f"{len(failed)} of {len(config.audio)} files could not be transcribed:", *failed])
        )

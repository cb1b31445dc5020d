"""`moe-asr prepare CORPUS [SOURCE]`: makes the manifests (and for `synthetic` the audio) that training reads.

`prepare tokenizer CORPUS` makes word pieces of such a corpus.
"""

from collections.abc import Mapping, Sequence

from moe_asr.config.prepare import Corpus, PrepareConfig

CONFIG = PrepareConfig


def complete(overrides: Sequence[str], positionals: Mapping[str, object]) -> list[str]:
    """Options of the corpus itself need no prefix: ``prepare synthetic hours=2`` means synthetic.hours=2."""
    from moe_asr.config.compose import option_keys

    keys, corpus = set(option_keys(PrepareConfig)), positionals.get("corpus", "")
    return [
        f"{corpus}.{override}"
        if override.partition("=")[0] not in keys and f"{corpus}.{override.partition('=')[0]}" in keys
        else override
        for override in overrides
    ]


def run(config: PrepareConfig) -> None:
    if config.corpus is Corpus.synthetic:
        _synthetic(config)
        return
    if config.corpus is Corpus.tokenizer:
        _tokenizer(config)
        return
    from moe_asr.data.prepare import prepare

    print(prepare(config))


def _synthetic(config: PrepareConfig) -> None:
    import dataclasses
    import sys
    from pathlib import Path

    from rich.progress import Progress

    from moe_asr.data.synthetic.corpus import generate

    options = dataclasses.replace(config.synthetic, seed=config.seed)
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("speaking", total=None)
        made = generate(
            options,
            Path(config.folder),
            config.workers or None,
            config.overwrite,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    for note in made.notes:
        print(note)
    for name, size in made.card.splits.items():
        print(f"{config.folder}/{name}: {size.utterances} utterances, {size.hours:.2f} h, {size.speakers} voices")


def _tokenizer(config: PrepareConfig) -> None:
    from pathlib import Path

    from moe_asr.config.data import TokenizerConfig, TokenUnit
    from moe_asr.data.manifest import read_split
    from moe_asr.data.selection import learn_tokenizer
    from moe_asr.errors import InputError
    from moe_asr.runs.directory import write_atomically

    if not config.source:
        raise InputError("where is the corpus? Write `moe-asr prepare tokenizer source=DIR`.")
    file, options = Path(config.folder), config.tokenizer
    cuts = [cut for split in options.splits for cut in read_split(config.source, split)]
    model = learn_tokenizer(TokenizerConfig(TokenUnit.bpe, options.vocab_size), cuts).bpe_model
    if file.exists() and file.read_bytes() != model and not config.overwrite:
        raise InputError(f"{file} holds something else; write overwrite=true to replace it, or out=FILE.model.")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda opened: opened.write(model), "wb")
    print(f"{file}: {options.vocab_size} tokens, learnt from {len(cuts)} texts.")
    print(f"Write: moe-asr train tokenizer.unit=bpe tokenizer.file={file}")

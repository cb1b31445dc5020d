"""`moe-asr prepare CORPUS [SOURCE]`: makes the manifests (and for `synthetic` the audio) that training reads.

`prepare tokenizer CORPUS` makes word pieces of such a corpus.
"""

from collections.abc import Mapping, Sequence

from moe_asr.config.prepare import Corpus, PrepareConfig

CONFIG = PrepareConfig


def complete(overrides: Sequence[str], positionals: Mapping[str, object]) -> list[str]:
    """Options of the corpus itself need no prefix: ``prepare synthetic hours=2`` means synthetic.hours=2.

    A group of options, as all of those of another corpus, takes no value: ``prepare domains fsdd=DIR`` is domains.fsdd.
    """
    from moe_asr.config.compose import option_keys

    corpus = positionals.get("corpus", "")
    keys = set(option_keys(PrepareConfig))
    values = keys - {key.rpartition(".")[0] for key in keys}

    def full(override: str) -> str:
        key = override.partition("=")[0]
        return f"{corpus}.{override}" if key not in values and f"{corpus}.{key}" in keys else override

    return [full(override) for override in overrides]


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

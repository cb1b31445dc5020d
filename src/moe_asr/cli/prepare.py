"""`moe-asr prepare CORPUS [SOURCE]`: makes the manifests (and for `synthetic` the audio) that training reads."""

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

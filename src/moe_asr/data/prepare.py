"""`moe-asr prepare`: a corpus on disk -> a prepared corpus (see `moe_asr.data.manifest`)."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse.cut import Cut

from moe_asr.config.prepare import Corpus, PrepareConfig
from moe_asr.config.synthetic import Engine
from moe_asr.data import prepare_layouts as layouts
from moe_asr.data.manifest import Card, building, config_hash, read_card, write_card, write_problems, write_split
from moe_asr.data.prepare_audit import Audit
from moe_asr.data.prepare_compose import compose
from moe_asr.data.prepare_domains import domains, stated
from moe_asr.data.prepare_fsdd import fsdd
from moe_asr.data.prepare_lhotse import lhotse
from moe_asr.data.synthetic.corpus import LICENCES, NO_CLAIM
from moe_asr.data.synthetic.espeak import phonemize
from moe_asr.errors import InputError


@dataclass(frozen=True)
class Summary:
    folder: Path
    card: Card
    made: bool
    """False = the folder already held this corpus, prepared with the same options."""

    def __str__(self) -> str:
        """One line for the user."""
        sizes = [f"{name} {s.utterances} ({s.hours:.2f} h)" for name, s in self.card.splits.items()]
        shown = ", ".join(sizes[:11]) + (f", ... ({len(sizes)} splits)" if len(sizes) > 11 else "")
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.card.left_out.items())
        count = sum(self.card.left_out.values())
        left_out = f"left out {count} ({reasons}: problems.jsonl)" if count else "all usable"
        place = f"{self.folder}{'' if self.made else ' (already prepared)'}"
        return "; ".join([f"{place}: {shown}", left_out, *(note.rstrip(".") for note in self.card.notes)])


Read = Callable[[PrepareConfig, Audit, Path], Mapping[str, Iterable[Cut]]]
"""Gives the cuts of each split; may write audio of its own into the (unfinished) folder."""


@dataclass(frozen=True)
class _Kind:
    read: Read
    licence: str = "that of the corpus"
    lower: bool = False
    normalizer: str = "as given"
    source: bool = True
    """Made of something that lies on disk."""
    notes: tuple[str, ...] = ()
    stated: Callable[[PrepareConfig], dict[str, Any]] = lambda _: {}
    """What else decides what the corpus becomes."""


def _items(layout: Callable[[PrepareConfig], Mapping[str, layouts.Items]]) -> Read:
    return lambda config, audit, _: {split: audit.cuts(items) for split, items in layout(config).items()}


KINDS = {
    Corpus.fsdd: _Kind(fsdd, "CC BY-SA 4.0", lower=True),
    Corpus.speechocean762: _Kind(_items(layouts.speechocean762), "free for any use (OpenSLR 101)", lower=True),
    Corpus.librispeech: _Kind(_items(layouts.librispeech), "CC BY 4.0", lower=True),
    Corpus.aishell: _Kind(
        _items(layouts.aishell), "Apache-2.0 (OpenSLR 33)", normalizer="Unicode NFKC, spaces removed"
    ),
    Corpus.kaldi: _Kind(_items(layouts.kaldi)),
    Corpus.jsonl: _Kind(_items(layouts.jsonl)),
    Corpus.compose: _Kind(compose),
    Corpus.lhotse: _Kind(lhotse),
    Corpus.domains: _Kind(
        domains, LICENCES[Engine.espeak], normalizer="as said", source=False, notes=(NO_CLAIM,), stated=stated
    ),
}


def prepare(config: PrepareConfig) -> Summary:
    """Makes the corpus, or finds it made with the same options.

    Raises InputError for a source that is missing or not in the expected layout, if no utterance can be used
    (those that cannot are listed in problems.jsonl), or if the folder holds something else.
    """
    if config.corpus not in KINDS:
        raise InputError(f"corpus={config.corpus.value} cannot be prepared; choose {', '.join(KINDS)}.")
    kind = KINDS[config.corpus]
    if config.phones and config.corpus is Corpus.fsdd:
        raise InputError("phones= is for recorded sentences; the strings of fsdd are composed of words: leave it out.")
    if kind.source and not config.source:
        raise InputError(f"where is the corpus? Write `moe-asr prepare {config.corpus.value} source=DIR`.")
    if config.source and not kind.source:
        raise InputError(
            f"{config.corpus.value} is made of nothing that lies on disk; leave source={config.source} out."
        )
    source, folder, lower = Path(config.source).absolute(), Path(config.folder), kind.lower or config.lower
    if not source.exists():
        raise InputError(f"source={config.source} does not exist; give the place where the corpus was unpacked.")
    made_of = read_card(source) if config.corpus is Corpus.compose else None
    options = _options(config, source, made_of) | kind.stated(config)
    if (folder / "corpus.json").is_file() and not config.overwrite:
        card = read_card(folder)
        if card.config_hash == config_hash(options):
            return Summary(folder, card, made=False)
    audit = Audit(config.decode_check, config.workers, lower)
    with building(folder, config.overwrite) as unfinished:
        sizes = {
            name: write_split(unfinished, name, _with_phones(cuts, config.phones))
            for name, cuts in kind.read(config, audit, unfinished).items()
        }
        empty = [name for name, size in sizes.items() if not size.utterances]
        if len(empty) == len(sizes):
            first = f"; the first of {len(audit.problems)}: {audit.problems[0].detail}" if audit.problems else ""
            raise InputError(f"{source} has no usable utterance, check source= and the corpus{first}.")
        for name in empty:
            (unfinished / f"{name}.jsonl.gz").unlink()
        notes = [*(made_of.notes if made_of else kind.notes), *(f"{name} has no usable utterance" for name in empty)]
        if audit.multichannel:
            notes.append(f"{audit.multichannel} utterances have several channels, which are averaged when read")
        card = Card(
            name=config.corpus.value,
            source=options["source"],
            splits={name: size for name, size in sizes.items() if size.utterances},
            config=options,
            config_hash=config_hash(options),
            licence=made_of.licence if made_of else kind.licence,
            normalizer=f"{kind.normalizer}, white space joined" + (", lower case" if lower else ""),
            notes=tuple(notes),
            left_out=dict(sorted(Counter(problem.reason for problem in audit.problems).items())),
        )
        write_problems(unfinished, audit.problems)
        write_card(unfinished, card)
    return Summary(folder, card, made=True)


def _with_phones(cuts: Iterable[Cut], accent: str | None) -> Iterable[Cut]:
    """Adds the pronunciation that espeak-ng gives each transcript, where one is asked for."""
    if accent is None:
        return cuts
    cuts = list(cuts)
    supervisions = [supervision for cut in cuts for supervision in cut.supervisions]
    phones = phonemize([supervision.text or "" for supervision in supervisions], accent)
    for supervision, own in zip(supervisions, phones, strict=True):
        supervision.custom = {**(supervision.custom or {}), "phones": own}
    return cuts


def _options(config: PrepareConfig, source: Path, made_of: Card | None) -> dict[str, Any]:
    """The options that decide what the corpus becomes, as plain values (not its place nor the threads)."""
    options = {"corpus": config.corpus.value, "source": str(source) if config.source else "synthetic speech"}
    options |= {"made_of": made_of.config_hash} if made_of else {}
    plain, kept = dataclasses.asdict(config), ("seed", "lower", "phones", "decode_check", config.corpus.value)
    return options | {k: plain[k] for k in kept if k in plain}

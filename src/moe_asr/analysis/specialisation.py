"""What experts specialise in: a site's first choices against what is said, by whom, where, with a null of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy
from scipy.stats import norm

from moe_asr.analysis.association import chosen_of_others, contingency, explained, permutation_p_value
from moe_asr.analysis.trace import KINDS, Trace, stack_of
from moe_asr.errors import InputError
from moe_asr.measure.comparison import holm
from moe_asr.randomness import numpy_rng

OF_UTTERANCES = ("speaker", "split", "language")
"""Labels that an utterance has as a whole; the splits of a suite of domains are its kinds of speech and noise."""
TENTHS = tuple(f"{10 * i}-{10 * i + 10} %" for i in range(10))


@dataclass(frozen=True)
class Specialisation:
    """Of E experts at a site in C classes."""

    classes: tuple[str, ...]
    table: numpy.ndarray
    """(E,C): positions of each class at which each expert is the first choice."""
    null: numpy.ndarray
    """(D,E,C): the same for labels that were moved elsewhere."""

    @property
    def explained(self) -> float:
        """Share of the entropy of the choice that the class explains, see `association.explained`."""
        return explained(self.table)

    @property
    def null_explained(self) -> numpy.ndarray:
        """(D,): what small numbers, and what the null keeps, explain alone."""
        return numpy.array([explained(table) for table in self.null])

    @property
    def p_value(self) -> float:
        """That of what is explained, see `association.permutation_p_value`."""
        return float(permutation_p_value(self.explained, self.null_explained))

    @property
    def lift(self) -> numpy.ndarray:
        """(E,C): ``log2(p(e|c) / p(e))``: 1 if a class goes to an expert twice as often as others do on average."""
        with numpy.errstate(divide="ignore", invalid="ignore"):
            return numpy.log2(_shares(self.table) * self.table.sum() / self.table.sum(1, keepdims=True))

    @property
    def p_cells(self) -> numpy.ndarray:
        """(E,C): of each share p(e|c), from its normal deviate under the null, adjusted for all cells (Holm 1979).

        The null gives the deviation, as neighbouring positions are alike: residuals that take them for independent
        (Haberman 1973) would call nearly everything significant.
        """
        null = numpy.array([_shares(table) for table in self.null])
        known = ~numpy.isnan(null)
        count = known.sum(0)
        with numpy.errstate(divide="ignore", invalid="ignore"):
            mean = numpy.where(known, null, 0).sum(0) / count
            spread = numpy.sqrt((numpy.where(known, null - mean, 0) ** 2).sum(0) / (count - 1))
            p = 2 * norm.sf(abs(_shares(self.table) - mean) / spread)
        adjusted = holm([None if numpy.isnan(value) else float(value) for value in p.flat])
        return numpy.array([1.0 if value is None else value for value in adjusted]).reshape(p.shape)


def _shares(table: numpy.ndarray) -> numpy.ndarray:
    """(E,C): p(e|c); NaN for a class that never occurs."""
    with numpy.errstate(invalid="ignore"):
        return table / table.sum(0)


def specialisation(
    trace: Trace,
    kind: str,
    stack: str = "encoder",
    draws: int = 200,
    least: int = 50,
    seed: int = 1,
) -> Mapping[str, Specialisation]:
    """By site of a stack. kind: see `labels`; least: classes of fewer positions are left out.

    The null moves labels where the routing cannot have seen them, and keeps what would make a tie of its own. Labels
    of frames and tokens become those of another utterance at the same place; labels of utterances are dealt out anew,
    to speakers if each has one only; the position is counted round from somewhere else. Raises InputError for a stack
    without sites, fewer than 2 utterances, and for labels that are not known.
    """
    sites = [site for site in trace.sites if stack_of(site) == stack]
    if not sites or len(trace.utterances) < 2:
        raise InputError(f"this needs a trace of at least 2 utterances with sites in {stack!r}.")
    known, names = labels(trace, kind, stack)
    often = numpy.bincount(known[known >= 0], minlength=len(names)) >= least
    if often.sum() < 2:
        raise InputError(f"fewer than 2 classes of {kind!r} have {least} positions each: trace more.")
    number = numpy.append(numpy.where(often, numpy.cumsum(often) - 1, -1), -1)
    known, names = number[known], tuple(name for name, kept in zip(names, often, strict=True) if kept)
    experts, rng = int(trace.card["num_experts"]), numpy_rng("specialisation", seed)
    choices = {site: trace.sites[site].ids[:, 0].astype(numpy.int64) for site in sites}

    def tables(of: numpy.ndarray) -> list[numpy.ndarray]:
        return [contingency(chosen, of, experts, len(names)) for chosen in choices.values()]

    observed = tables(known)
    null = numpy.array([tables(moved(trace, known, kind, stack, rng)) for _ in range(draws)])
    return {site: Specialisation(names, observed[i], null[:, i]) for i, site in enumerate(sites)}


def labels(trace: Trace, kind: str, stack: str = "encoder") -> tuple[numpy.ndarray, tuple[str, ...]]:
    """(P,) what every position of a stack is, as an index in the names; -1 where that is not known.

    kind: phone or word (of frames), token (that a decoder reads), speaker, split or language (of the utterance), or
    position (tenths of the utterance). Raises InputError for others, and for those that nobody knows.
    """
    counts = numpy.diff(trace.offsets[stack])
    if kind == "position":
        return numpy.concatenate([numpy.arange(n) * 10 // max(n, 1) for n in counts]), TENTHS
    if kind in KINDS and stack == "encoder":
        found, names = trace.labels[kind], trace.symbols[kind]
    elif kind in OF_UTTERANCES:
        found, names = _numbered([u.get(kind) for u in trace.utterances])
        found = found.repeat(counts)
    elif kind == "token" and stack != "encoder":
        order = -1 if stack == "right_to_left" else 1
        read = [symbol for u in trace.utterances for symbol in ("<sos>", *u["tokens"][::order])]
        found, names = _numbered(read)
    else:
        raise InputError(
            f"positions of {stack!r} have no {kind!r}: frames have {', '.join(KINDS)}, decoders token, "
            f"all have {', '.join(OF_UTTERANCES)} and position."
        )
    if (found < 0).all():
        raise InputError(f"the trace knows no {kind}: the corpora of `moe-asr prepare synthetic` know all of them.")
    return found, names


def _numbered(names: list[str | None]) -> tuple[numpy.ndarray, tuple[str, ...]]:
    numbers = {name: i for i, name in enumerate(sorted({name for name in names if name is not None}))}
    return numpy.array([-1 if name is None else numbers[name] for name in names]), tuple(numbers)


def moved(trace: Trace, known: numpy.ndarray, kind: str, stack: str, rng: numpy.random.Generator) -> numpy.ndarray:
    """(P,): one draw of the null for labels (P,) of a kind, as `specialisation` explains."""
    offsets = trace.offsets[stack]
    counts = numpy.diff(offsets)
    if kind == "position":
        parts = [known[a:b] for a, b in pairwise(offsets)]
        return numpy.concatenate([numpy.roll(part, rng.integers(max(len(part), 1))) for part in parts])
    if kind not in OF_UTTERANCES:
        return chosen_of_others(known[None], offsets, rng)[0]
    whole = numpy.where(counts > 0, numpy.append(known, -1)[offsets[:-1]], -1)
    speakers, _ = _numbered([u.get("speaker") for u in trace.utterances])
    one_each = len(set(zip(speakers, whole, strict=True))) == len(set(speakers)) and (speakers >= 0).all()
    if kind == "speaker" or not one_each:
        return rng.permutation(whole).repeat(counts)
    of_speaker = numpy.zeros(speakers.max() + 1, whole.dtype)
    of_speaker[speakers] = whole
    return rng.permutation(of_speaker)[speakers].repeat(counts)

"""What each option of a grid is worth: its values against the first one, pooled over all other cells."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy

from moe_asr.analysis.report_runs import Entry, Point, Study
from moe_asr.measure.comparison import Comparison, compare_methods, holm
from moe_asr.measure.errors import EditCounts
from moe_asr.measure.intervals import error_interval

LEVEL = 0.05
Tables = Mapping[str, tuple[list[str], list[Any], list[EditCounts]]]
"""By name of the run directory: utterances, their speakers, their edits."""


@dataclass(frozen=True)
class Effect:
    axis: str
    value: str
    against: str
    cells: int
    """Settings of the other options that have both values, those with the most common seeds."""
    seeds: int
    comparison: Comparison | None
    """Of two methods; None with fewer than two seeds, which say nothing about methods."""
    rates: tuple[float, float] | None
    """Pooled error rate of `against` and of `value`."""
    p_holm: float | None = None
    """The comparison's, corrected for all that are shown together."""

    @property
    def verdict(self) -> str:
        if self.comparison is None:
            return "one seed: no claim" if self.rates else "nothing to compare"
        if self.p_holm is None:
            return self.comparison.method
        if self.p_holm >= LEVEL:
            return "unresolved"
        return "better" if self.comparison.difference < 0 else "worse"


def tables(study: Study, name: str) -> Tables:
    """Of all runs that have hypotheses of the test set; those of other utterances than the first are left out."""
    found: dict[str, tuple[list[str], list[Any], list[EditCounts]]] = {}
    for entry in study.entries:
        if name in entry.sets and (counts := entry.counts(name)) is not None:
            first = next(iter(found.values()), counts)
            if first[0] == counts[0] and [c.tokens for c in first[2]] == [c.tokens for c in counts[2]]:
                found[entry.run.path.name] = counts
    return found


def effects(study: Study, counted: Tables) -> list[Effect]:
    """Of every value of every axis but its first one, with Holm's correction over all of them."""
    found = [
        _effect(study, number, values[0], value, counted)
        for number, values in enumerate(study.axes.values())
        for value in values[1:]
    ]
    corrected = holm([effect.comparison.p if effect.comparison else None for effect in found])
    return [replace(effect, p_holm=p) for effect, p in zip(found, corrected, strict=True)]


def _effect(study: Study, number: int, first: str, value: str, counted: Tables) -> Effect:
    axis = list(study.axes)[number]
    pairs: list[dict[str, tuple[Entry, Entry]]] = []
    for point, entries in study.points.items():
        if point[number] != first:
            continue
        other: Point = (*point[:number], value, *point[number + 1 :])
        mine, theirs = (_by_seed(found, counted) for found in (study.points.get(other, []), entries))
        # Points that are one run, such as experts of a dense model, have no effect to show.
        shared = {s: (theirs[s], mine[s]) for s in theirs if s in mine and theirs[s].run.path != mine[s].run.path}
        if shared:
            pairs.append(shared)
    most = max(map(len, pairs), default=0)
    pairs = [cell for cell in pairs if len(cell) == most]  # a cell that is not done takes no seed from the others
    seeds = sorted(set.intersection(*map(set, pairs))) if pairs else []
    if not seeds:
        return Effect(axis, value, first, 0, 0, None, None)
    sides = []
    for side in (0, 1):
        runs = [[counted[cell[seed][side].run.path.name][2] for cell in pairs] for seed in seeds]
        sides.append(numpy.array([[sum(c.errors for c in u) for u in zip(*cells, strict=True)] for cells in runs]))
    _, speakers, counts = counted[pairs[0][seeds[0]][0].run.path.name]
    tokens = len(pairs) * numpy.array([c.tokens for c in counts])
    known: Sequence[Hashable] | None = speakers if all(s is not None for s in speakers) else None
    made = compare_methods(sides[0], sides[1], tokens, known, paired=True) if len(seeds) > 1 else None
    rates = tuple(float(e.mean(0).sum() / max(1, tokens.sum())) for e in sides)
    return Effect(axis, value, first, len(pairs), len(seeds), made, (rates[0], rates[1]))


def _by_seed(entries: Sequence[Entry], counted: Tables) -> dict[str, Entry]:
    return {entry.seed: entry for entry in entries if entry.run.path.name in counted}


def pooled_interval(entries: Sequence[Entry], counted: Tables) -> tuple[float, float] | None:
    """95 % interval of the mean error rate of these very runs, over speakers; None where none can be stated."""
    found = [counted[e.run.path.name] for e in entries if e.run.path.name in counted]
    if not found or len(found) < len(entries):
        return None
    speakers = found[0][1]
    summed = [sum(own, EditCounts()) for own in zip(*(counts for _, _, counts in found), strict=True)]
    return error_interval(summed, speakers if all(s is not None for s in speakers) else None).bounds

"""Edit counts and error rates: counts are summed over a corpus and divided once, so batches cannot matter."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jiwer

from moe_asr.config.score import Unit
from moe_asr.errors import InputError
from moe_asr.measure.normalize import CJK


@dataclass(frozen=True)
class EditCounts:
    """Edits that turn the reference into the hypothesis; one utterance or a sum of many."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: "EditCounts") -> "EditCounts":
        return EditCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def tokens(self) -> int:
        """Tokens of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference token, a fraction that may exceed 1.

        An empty reference adds insertions to the errors and nothing to the tokens. Without any reference
        token the rate is the number of insertions (0 when nothing was recognised), as jiwer defines it.
        """
        return self.errors / max(1, self.tokens)


def total(counts: Iterable[EditCounts]) -> EditCounts:
    return sum(counts, EditCounts())


def split_tokens(text: str, unit: Unit) -> list[str]:
    """The tokens of a text; none for an empty one."""
    words = text.split()
    if unit is Unit.char:
        return list(" ".join(words))
    if unit is Unit.mixed:
        return re.findall(rf"[{CJK}]|[^\s{CJK}]+", text)
    return words


def _process(references: Sequence[str], hypotheses: Sequence[str], unit: Unit) -> jiwer.WordOutput:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references cannot be scored against {len(hypotheses)} hypotheses")

    def split(texts: list[str]) -> list[list[str]]:
        return [split_tokens(text, unit) for text in texts]

    return jiwer.process_words(list(references), list(hypotheses), split, split)


def edit_counts(references: Sequence[str], hypotheses: Sequence[str], unit: Unit = Unit.word) -> list[EditCounts]:
    """The edits of one minimal alignment per utterance, by jiwer (Levenshtein distance, all edits cost 1)."""
    counts = []
    for chunks in _process(references, hypotheses, unit).alignments:
        edits = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
        for c in chunks:
            edits[c.type] += max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx)
        counts.append(EditCounts(*edits.values()))
    return counts


def error_places(references: Sequence[str], hypotheses: Sequence[str], unit: Unit = Unit.word) -> list[list[int]]:
    """Per utterance of N reference tokens 2 N + 1 counts of errors: insertions before the first token, whether that
    is wrong, insertions before the second, ..., insertions after the last."""
    found = []
    output = _process(references, hypotheses, unit)
    for reference, chunks in zip(output.references, output.alignments, strict=True):
        places = [0] * (2 * len(reference) + 1)
        for c in chunks:
            if c.type == "insert":
                places[2 * c.ref_start_idx] += c.hyp_end_idx - c.hyp_start_idx
            elif c.type != "equal":
                for i in range(c.ref_start_idx, c.ref_end_idx):
                    places[2 * i + 1] = 1
        found.append(places)
    return found


def hits(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[int, int]]:
    """(place in the reference, place in the hypothesis) of every word that is right in one minimal alignment."""
    chunks = _process([" ".join(reference)], [" ".join(hypothesis)], Unit.word).alignments[0]
    pairs = (
        zip(range(c.ref_start_idx, c.ref_end_idx), range(c.hyp_start_idx, c.hyp_end_idx), strict=True)
        for c in chunks
        if c.type == "equal"
    )
    return [pair for run in pairs for pair in run]


def alignment(reference: str, hypothesis: str, unit: Unit = Unit.word) -> str:
    """Three lines, REF, HYP and the letters S, D and I below the edits; empty when there is no error."""
    picture = jiwer.visualize_alignment(_process([reference], [hypothesis], unit), show_measures=False)
    return "\n".join(line for line in picture.split("\n")[1:] if line)


def paired_ids(references: Mapping[str, object], hypotheses: Mapping[str, object], partial: bool = False) -> list[str]:
    """The utterances to score, in the order of the references.

    Raises InputError, with counts and an example, unless both have the same ids; `partial` asks only for one.
    """
    common = [i for i in references if i in hypotheses]
    if len(common) == len(references) == len(hypotheses) or (partial and common):
        return common
    sides = (
        ([i for i in references if i not in hypotheses], "without a hypothesis"),
        ([i for i in hypotheses if i not in references], "without a reference"),
    )
    found = " and ".join(f"{len(ids)} {what} (e.g. {ids[0]})" for ids, what in sides if ids)
    remedy = "score the common ones with partial=true" if common else "check that both name utterances alike"
    raise InputError(f"Hypotheses and references differ: {len(common)} utterances in common, {found}; {remedy}.")

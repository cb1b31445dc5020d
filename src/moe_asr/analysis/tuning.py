"""Decode weights chosen on dev: utterances are encoded once, and weights tried on n-bests that keep their parts.

A mode's score is a function of the parts of a hypothesis (log probabilities of CTC, decoders and language model,
number of tokens), so all weights but blank_penalty only choose anew. That is exact except for the language model's:
its hypotheses are those found with the weights given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray

from moe_asr.analysis.evaluation import error_units
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.program import TrainConfig
from moe_asr.config.tune import WEIGHTS
from moe_asr.data.batches import read_all, similar
from moe_asr.data.manifest import Utterance, describe, read_card, read_split
from moe_asr.data.selection import target_text
from moe_asr.decoding.attention import attention_rescoring
from moe_asr.decoding.context import Context, make_context
from moe_asr.decoding.hypotheses import Hypothesis
from moe_asr.decoding.search import search
from moe_asr.errors import InputError
from moe_asr.measure.errors import edit_counts
from moe_asr.measure.normalize import normalizer
from moe_asr.measure.results import Scored, test_set_result
from moe_asr.models.encoder import EncoderOutput
from moe_asr.runs.recognizer import Recognizer
from moe_asr.tensors import Chunking

Array = NDArray[Any]

NEVER = -1e30
"""A log probability that, unlike -inf, can be weighed by 0."""


class Candidate(NamedTuple):
    """A hypothesis and the parts of its score; own: what the search itself gave it, language model excepted."""

    text: str
    own: float
    left_to_right: float
    right_to_left: float
    lm: float
    tokens: int


@dataclass(frozen=True)
class Tuned:
    """best: `given` with the weights of fewest errors (of equals, the nearest to those given); a result each.

    errors: of every point (the values of `weights` in its order); oracle: those of the best hypothesis in every n-best
    under the best blank_penalty; better, worse: utterances with fewer and more errors under `best` than under `given`.
    """

    weights: Mapping[str, Sequence[float]]
    given: DecodeConfig
    best: DecodeConfig
    given_result: dict[str, Any]
    best_result: dict[str, Any]
    errors: Array
    oracle: int
    better: int
    worse: int
    unreadable: int


def tune(
    recognizer: Recognizer,
    config: TrainConfig,
    splits: Sequence[str],
    decode: DecodeConfig,
    values: Mapping[str, Sequence[float]],
) -> Tuned:
    """Tries `values` of the weights that `decode.mode` uses, in all combinations, on `splits` of `config.data.path`.

    Raises InputError for splits that share a recording with the run's test sets (`recognizer.config`).
    """
    cuts = [cut for name in splits for cut in read_split(config.data.path, name)]
    refuse_test(recognizer.config, config.data.path, [describe(cut) for cut in cuts])
    used = [name for name in WEIGHTS[decode.mode] if decode.lm is not None or name not in ("lm_weight", "token_bonus")]
    if "right_to_left" not in recognizer.model.decoders:
        decode, values = replace(decode, reverse_weight=0.0), {**values, "reverse_weight": ()}
    weights = {name: sorted({*values[name], getattr(decode, name)}) for name in used}
    penalties = weights.get("blank_penalty", [decode.blank_penalty])
    found: dict[float, list[list[Candidate]]] = {penalty: [] for penalty in penalties}
    heard, unreadable = [], 0
    for group in similar(cuts, decode.batch, decode.batch_seconds):
        samples, problems = read_all(group, config.features.sample_rate)
        unreadable += len(problems)
        if not samples:
            continue
        heard += [describe(group[i]) for i in samples]
        encoded = recognizer.encode(list(samples.values()), Chunking(decode.chunk, decode.left))
        for penalty, rows in found.items():
            rows += candidates(recognizer, encoded, replace(decode, blank_penalty=penalty))
    if not heard:
        raise InputError(f"None of the {len(cuts)} utterances to tune on can be read; choose other sets=[...].")

    normalize, units = normalizer(config.data.normalizer), error_units(config)
    references = [target_text(utterance, recognizer.tokenizer.unit) for utterance in heard]
    parts = {penalty: _Parts.of(rows) for penalty, rows in found.items()}
    wrong = {}
    for penalty, rows in found.items():
        said = [r for r, row in zip(references, rows, strict=True) for _ in row]
        texts = [normalize(candidate.text) for row in rows for candidate in row]
        counts = edit_counts(list(map(normalize, said)), texts, units[0])
        wrong[penalty] = _padded(numpy.array([c.errors for c in counts]), list(map(len, rows)), 0)

    def chosen(point: DecodeConfig) -> Array:
        """(U,): which hypothesis of each n-best it is."""
        return parts[point.blank_penalty].scores(point).argmax(1)

    def errors_of(point: DecodeConfig) -> Array:
        return wrong[point.blank_penalty][numpy.arange(len(heard)), chosen(point)]

    def result(point: DecodeConfig) -> dict[str, Any]:
        rows = zip(heard, references, found[point.blank_penalty], chosen(point), strict=True)
        scored = [Scored(u.id, reference, row[i].text, u.speaker, u.sources) for u, reference, row, i in rows]
        return test_set_result(scored, normalize, units, speed=None)

    points = [replace(decode, **dict(zip(weights, one, strict=True))) for one in product(*weights.values())]
    errors = numpy.array([errors_of(point).sum() for point in points]).reshape([len(v) for v in weights.values()])
    start = [tried.index(getattr(decode, name)) for name, tried in weights.items()]
    equals = numpy.argwhere(errors == errors.min())
    nearest = equals[abs(equals - start).sum(1).argmin()]
    best = points[int(numpy.ravel_multi_index(tuple(nearest), errors.shape))]
    gain = errors_of(decode) - errors_of(best)
    rows = found[best.blank_penalty]
    oracle = sum(int(w[: len(row)].min()) for w, row in zip(wrong[best.blank_penalty], rows, strict=True))
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    return Tuned(weights, decode, best, result(decode), result(best), errors, oracle, better, worse, unreadable)


def refuse_test(trained: TrainConfig, path: str, dev: Sequence[Utterance]) -> None:
    """Raises InputError if an utterance is, or is composed of, a recording of the run's test sets."""
    judged: set[str] = set()
    for folder in dict.fromkeys((path, trained.data.path)):
        try:
            there = [name for name in trained.data.test if name in read_card(folder).splits]
        except InputError:  # the run's own corpus may be gone
            continue
        judged.update(source for name in there for cut in read_split(folder, name) for source in describe(cut).sources)
    shared = [utterance.id for utterance in dev if judged.intersection(utterance.sources)]
    if shared:
        raise InputError(
            f"{len(shared)} of {len(dev)} utterances belong to the run's test sets (e.g. {shared[0]}), which judge and "
            "never choose: tune on others, sets=[dev] say."
        )


@torch.inference_mode()
def candidates(recognizer: Recognizer, encoded: EncoderOutput, decode: DecodeConfig) -> list[list[Candidate]]:
    """The `decode.beam` best of each utterance, in the order in which the search gives them."""
    model, tokenizer = recognizer.model, recognizer.tokenizer
    rescored = decode.mode is DecodeMode.attention_rescoring
    mode = DecodeMode.ctc_prefix_beam if rescored else decode.mode
    nbest = search(model, encoded, replace(decode, mode=mode, nbest=decode.beam, length_penalty=0.0), tokenizer)
    alone = replace(decode, hotwords=[], hotwords_file=None)
    lm = None if decode.lm is None else make_context(alone, tokenizer)
    shares = [share for share in (0.0, 1.0) if rescored and (share == 0.0 or "right_to_left" in model.decoders)]
    by_share = [attention_rescoring(model, encoded, nbest, 0.0, share) for share in shares]

    def candidate(hypothesis: Hypothesis, decoders: list[dict[tuple[int, ...], float]]) -> Candidate:
        tokens, weighed = len(hypothesis.tokens), 0.0 if lm is None else worth(lm, hypothesis.tokens)
        left, right = ([row[hypothesis.tokens] for row in decoders] + [0.0, 0.0])[:2]
        text, own = tokenizer.decode(hypothesis.tokens), hypothesis.score - weighed
        return Candidate(
            text, own, left, right, (weighed - decode.token_bonus * tokens) / (decode.lm_weight or 1.0), tokens
        )

    found = []
    for i, row in enumerate(nbest):
        decoders = [{h.tokens: h.score for h in rows[i]} for rows in by_share]
        found.append([candidate(hypothesis, decoders) for hypothesis in row])
    return found


def worth(context: Context, tokens: Sequence[int]) -> float:
    """What a context adds to the score of a text."""
    state, total = context.start, 0.0
    for token in tokens:
        state, gain = context.extend(state, token)
        total += gain
    return total + context.finish(state)


def _padded(flat: Array, sizes: list[int], value: float) -> Array:
    """Rows of the given sizes, one after another -> (U,K)."""
    rows = numpy.full((len(sizes), max(sizes)), value, flat.dtype)
    rows[numpy.arange(max(sizes)) < numpy.array(sizes)[:, None]] = flat
    return rows


@dataclass(frozen=True)
class _Parts:
    """The fields of `Candidate`, (U,K) each."""

    own: Array
    left_to_right: Array
    right_to_left: Array
    lm: Array
    tokens: Array

    @staticmethod
    def of(rows: list[list[Candidate]]) -> "_Parts":
        columns = numpy.array([candidate[1:] for row in rows for candidate in row]).T
        beyond = (NEVER, NEVER, NEVER, 0.0, 0.0)
        return _Parts(*(_padded(c, list(map(len, rows)), value) for c, value in zip(columns, beyond, strict=True)))

    def scores(self, point: DecodeConfig) -> Array:
        """What the search of `point.mode` would give each hypothesis, and next to nothing beyond the n-best."""
        if point.mode is DecodeMode.attention:
            return self.own / numpy.maximum(self.tokens, 1) ** point.length_penalty
        ctc = self.own
        if point.lm is not None:
            ctc = ctc + point.lm_weight * self.lm + point.token_bonus * self.tokens
        if point.mode is DecodeMode.attention_rescoring:
            share = point.reverse_weight
            return (1 - share) * self.left_to_right + share * self.right_to_left + point.ctc_weight * ctc
        return ctc

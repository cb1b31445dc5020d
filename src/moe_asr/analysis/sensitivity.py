"""What experts are worth: error rates of a model whose routing is forced, against its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from lhotse.cut import Cut

from moe_asr.analysis.evaluation import error_units, evaluate_set
from moe_asr.analysis.forcing import forced
from moe_asr.config.decode import DecodeConfig
from moe_asr.config.routing import RoutingConfig
from moe_asr.measure.comparison import Comparison, compare_checkpoints
from moe_asr.measure.errors import edit_counts
from moe_asr.measure.normalize import normalizer
from moe_asr.runs.recognizer import Recognizer


class Forced(NamedTuple):
    """A way to force routing (`without_3`: expert 3 removed; `permuted_1`, `random`), where, and what it costs."""

    choose: str
    sites: str
    against_own: Comparison


def sensitivity(
    recognizer: Recognizer,
    cuts: Sequence[Cut],
    choose: Sequence[str],
    sites: Sequence[str] = ("both",),
    decode: DecodeConfig | None = None,
) -> list[Forced]:
    """Every way of `routing.choose` at each of `sites` (placements, ``encoder.3.ffn_out`` for a site), one at a time.

    Decoding the cuts once for each takes its time. Raises InputError for what cannot be forced.
    """
    ways = [(how, where) for where in sites for how in choose]
    asked = {way: forced(recognizer, RoutingConfig(way[0], sites=way[1])) for way in ways}
    decode = decode or DecodeConfig()
    own, tokens, speakers = _errors(recognizer, cuts, decode)
    return [
        Forced(*way, compare_checkpoints(own, _errors(other, cuts, decode)[0], tokens, speakers))
        for way, other in asked.items()
    ]


def _errors(
    recognizer: Recognizer, cuts: Sequence[Cut], decode: DecodeConfig
) -> tuple[list[int], list[int], list[str | None]]:
    """Errors, reference tokens and speaker of each utterance."""
    config = recognizer.config
    with TemporaryDirectory() as folder:
        evaluate_set(recognizer, cuts, config, decode, Path(folder) / "hypotheses.jsonl")
        lines = [json.loads(line) for line in (Path(folder) / "hypotheses.jsonl").read_text("utf8").splitlines()]
    normalize = normalizer(config.data.normalizer)
    references, texts = ([normalize(line[name]) for line in lines] for name in ("reference", "hypothesis"))
    counts = edit_counts(references, texts, error_units(config)[0])
    return [c.errors for c in counts], [c.tokens for c in counts], [line["speaker"] for line in lines]

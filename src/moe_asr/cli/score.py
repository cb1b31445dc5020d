"""`moe-asr score HYP REF`: error rates of transcripts from anywhere."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from moe_asr.config.score import FEWEST_SPEAKERS, ScoreConfig, Unit
from moe_asr.errors import InputError

if TYPE_CHECKING:
    from moe_asr.measure.normalize import Normalizer
    from moe_asr.measure.results import Scored

CONFIG = ScoreConfig


def run(config: ScoreConfig) -> None:
    """Prints the error rate with its edits and interval; writes it as JSON where asked."""
    from moe_asr.measure.errors import alignment, paired_ids
    from moe_asr.measure.normalize import normalizer
    from moe_asr.measure.results import Scored, test_set_result
    from moe_asr.measure.score_files import read_speakers, read_transcripts

    if config.phones and config.unit is not Unit.phone:
        raise InputError(f"phones={config.phones} scores pronunciations: write unit=phone too.")
    if not (config.hypothesis and config.reference):
        raise InputError("Two files are needed: moe-asr score HYPOTHESES REFERENCES.")
    normalize = normalizer(config.normalizer)
    hypotheses = read_transcripts(config.hypothesis, "hypothesis")
    references = read_transcripts(config.reference, "reference")
    speakers = read_speakers(config.utt2spk) if config.utt2spk else references.speakers or hypotheses.speakers
    sources = references.sources or hypotheses.sources
    ids = paired_ids(references.texts, hypotheses.texts, config.partial)
    utterances = [Scored(i, references.texts[i], hypotheses.texts[i], speakers.get(i), sources.get(i, ())) for i in ids]
    if config.phones:
        utterances = _pronounced(utterances, normalize, config.phones)
    result = test_set_result(utterances, normalize, [config.unit], speed=None)

    if config.alignments:
        for u in utterances:
            if picture := alignment(normalize(u.reference), normalize(u.hypothesis), config.unit):
                print(f"{u.id}\n{picture}\n")
    rate, bounds = result[config.unit.rate], result[f"{config.unit.rate}_ci95"]
    interval = "-".join(f"{100 * b:.2f}" for b in bounds) + " %" if bounds else "-"
    rows = {
        config.unit.rate.upper(): f"{100 * rate:.2f} %",
        "95 % interval": f"{interval} ({result['interval']['method']})",
        "utterances": f"{len(ids)} ({len(references.texts)} references, {len(hypotheses.texts)} hypotheses)",
        "tokens": f"{result['num_tokens']} ({config.unit.value})",
        "S / D / I": " / ".join(str(result[kind]) for kind in ("substitutions", "deletions", "insertions")),
        "speakers": str(result["num_speakers"] or "unknown"),
        "normaliser": "{name} {hash}".format(**result["normalizer"]),
    }
    few = (result["num_speakers"] or 0) < FEWEST_SPEAKERS
    for speaker, row in (result.get("per_speaker", {}) if few or config.by_speaker else {}).items():
        rows[f"  {speaker}"] = f"{100 * row[config.unit.rate]:.2f} % of {row['num_tokens']} tokens"
    for name, value in rows.items():
        print(f"{name:<14} {value}")
    if config.json:
        Path(config.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _pronounced(utterances: "list[Scored]", normalize: "Normalizer", accent: str) -> "list[Scored]":
    """The utterances with the phones that espeak-ng gives their normalised texts."""
    from dataclasses import replace

    from moe_asr.data.synthetic.espeak import phonemize

    texts = [normalize(text) for u in utterances for text in (u.reference, u.hypothesis)]
    phones = phonemize(texts, accent)
    pairs = zip(utterances, phones[::2], phones[1::2], strict=True)
    return [replace(u, reference=reference, hypothesis=hypothesis) for u, reference, hypothesis in pairs]

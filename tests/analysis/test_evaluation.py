"""What a trained model is worth: every utterance scored once, what cannot be read as nothing, nothing overwritten."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse.cut import Cut

from moe_asr.analysis.evaluation import error_units, evaluate_run, evaluate_set, evaluate_splits
from moe_asr.config.data import TokenizerConfig, TokenUnit
from moe_asr.config.program import DecodeConfig, TrainConfig
from moe_asr.config.score import Unit
from moe_asr.data.manifest import Card, load_samples, read_split, write_card, write_split
from moe_asr.errors import InputError
from moe_asr.measure.table import results_table
from moe_asr.runs.recognizer import Recognizer

DECODE = DecodeConfig(batch=3)


@pytest.fixture(scope="module")
def recognizer(untrained: Path) -> Recognizer:
    return Recognizer.load(untrained)


@pytest.fixture
def folds(digits: Path, tmp_path: Path) -> Path:
    """A corpus with two folds, whose test sets have the same name, and an empty split."""
    cuts = read_split(digits, "seen")
    parts = {"a/test": cuts[:3], "b/test": cuts[3:5], "empty": []}
    sizes = {name: write_split(tmp_path / "folds", name, part) for name, part in parts.items()}
    write_card(tmp_path / "folds", Card("folds", "somewhere", sizes))
    return tmp_path / "folds"


def unreadable(cut: Cut) -> Cut:
    plain = cut.to_dict()
    plain["recording"]["sources"][0]["source"] = "/nowhere/at-all.flac"
    return type(cut).from_dict(plain)


def test_batches_change_no_hypothesis(recognizer: Recognizer, tiny: TrainConfig, digits: Path, tmp_path: Path) -> None:
    cuts = read_split(digits, "seen")
    for size in (3, 8):
        evaluate_set(recognizer, cuts, tiny, DecodeConfig(batch=size), tmp_path / f"{size}.jsonl")
    assert (tmp_path / "3.jsonl").read_text() == (tmp_path / "8.jsonl").read_text()
    rows = [json.loads(line) for line in (tmp_path / "3.jsonl").read_text().splitlines()]
    alone = {cut.id: recognizer.transcribe(load_samples(cut)).text for cut in cuts}
    assert {row["id"]: row["hypothesis"] for row in rows} == alone


def test_what_cannot_be_read_counts_as_deleted(
    recognizer: Recognizer, tiny: TrainConfig, digits: Path, tmp_path: Path
) -> None:
    cuts = read_split(digits, "seen")
    broken = [unreadable(cuts[0]), *cuts[1:]]
    result = evaluate_set(recognizer, broken, tiny, DECODE, tmp_path / "x.jsonl")
    whole = evaluate_set(recognizer, cuts, tiny, DECODE, tmp_path / "whole.jsonl")
    assert [problem["id"] for problem in result["unreadable"]] == [cuts[0].id]
    assert (result["num_utterances"], result["num_tokens"]) == (whole["num_utterances"], whole["num_tokens"])
    assert whole["unreadable"] == []
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())}
    assert rows[cuts[0].id]["hypothesis"] == ""
    words = len(rows[cuts[0].id]["reference"].split())
    assert result["deletions"] >= words
    table = results_table({"test": {"seen": result}})
    assert "1 utterances could not be read and count as deleted" in table
    with pytest.raises(InputError, match=r"None of 2 utterances can be read: .*cannot be read"):
        evaluate_set(recognizer, [unreadable(cut) for cut in cuts[:2]], tiny, DECODE, tmp_path / "y.jsonl")


def test_references_outside_the_tokenizer_are_counted_not_left_out(
    recognizer: Recognizer, tiny: TrainConfig, digits: Path, tmp_path: Path
) -> None:
    cuts = read_split(digits, "seen")
    cuts[0].supervisions[0].text = "eleven"
    result = evaluate_set(recognizer, cuts, tiny, DECODE, tmp_path / "x.jsonl")
    assert (result["outside_tokenizer"], result["num_utterances"]) == (1, 8)
    assert "1 references hold text outside the tokenizer" in results_table({"test": {"x": result}})


def test_dev_and_test_are_evaluated_once_each(recognizer: Recognizer, tiny: TrainConfig, tmp_path: Path) -> None:
    results = evaluate_run(recognizer, tiny, tmp_path)
    assert {part: list(results[part]) for part in results} == {"dev": ["dev"], "test": ["seen", "unseen"]}
    assert sorted(f.name for f in (tmp_path / "hypotheses").iterdir()) == ["dev.jsonl", "seen.jsonl", "unseen.jsonl"]
    table = results_table({**results, "params_total": 2_500_000, "params_active": 1_500_000, "train_seconds": 60.0})
    assert table.splitlines()[0].startswith(f"dev/dev        WER {100 * results['dev']['dev']['wer']:.2f} %")
    assert "2.50 M parameters, 1.50 M active; trained in 60 s" in table


def test_test_sets_of_equal_names_do_not_overwrite_each_other(
    recognizer: Recognizer, tiny: TrainConfig, folds: Path, tmp_path: Path
) -> None:
    config = replace(tiny, data=replace(tiny.data, path=str(folds)))
    both = evaluate_splits(recognizer, config, ["a/test", "b/test"], DECODE, tmp_path)
    assert {name: result["num_utterances"] for name, result in both.items()} == {"a/test": 3, "b/test": 2}
    assert list(evaluate_splits(recognizer, config, ["b/test"], DECODE, tmp_path)) == ["test"]


def test_an_empty_test_set_is_said_in_one_sentence(
    recognizer: Recognizer, tiny: TrainConfig, folds: Path, tmp_path: Path
) -> None:
    config = replace(tiny, data=replace(tiny.data, path=str(folds)))
    with pytest.raises(InputError, match=r"empty has no utterance"):
        evaluate_splits(recognizer, config, ["empty"], DECODE, tmp_path)


def test_further_chunk_sizes_have_results_of_their_own(
    recognizer: Recognizer, tiny: TrainConfig, tmp_path: Path
) -> None:
    results = evaluate_splits(recognizer, tiny, ["seen"], DecodeConfig(chunks=[4], batch=8), tmp_path)
    assert {name: result["decode"]["chunk"] for name, result in results.items()} == {"seen": None, "seen_c4": 4}
    assert (tmp_path / "hypotheses" / "seen_c4.jsonl").exists()


def test_which_error_rates_are_reported(tiny: TrainConfig) -> None:
    assert error_units(tiny) == (Unit.word, Unit.char)
    assert error_units(replace(tiny, data=replace(tiny.data, error_unit=Unit.char))) == (Unit.char, Unit.word)
    mixed = replace(tiny, data=replace(tiny.data, error_unit=Unit.mixed))
    assert error_units(mixed) == (Unit.mixed, Unit.word, Unit.char)
    phones = replace(tiny, tokenizer=TokenizerConfig(unit=TokenUnit.phone))
    assert error_units(replace(phones, data=replace(tiny.data, error_unit=Unit.phone))) == (Unit.phone,)


def test_expert_shares_add_up_over_batches(
    recognizer: Recognizer, tiny: TrainConfig, digits: Path, tmp_path: Path
) -> None:
    cuts = read_split(digits, "unseen")
    result = evaluate_set(recognizer, cuts, tiny, DecodeConfig(batch=2), tmp_path / "x.jsonl")
    counts = torch.zeros(4)
    for cut in cuts:
        _, trace = recognizer.decode([torch.from_numpy(load_samples(cut))])
        counts += torch.bincount(trace[0].routing.expert_ids[trace[0].valid].flatten(), minlength=4)
    assert result["experts"]["encoder.00.ffn_in"] == pytest.approx((counts / counts.sum()).tolist(), abs=2e-3)

"""A stream that is watched ends with what is said offline, and shows nothing before it can have been heard."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from moe_asr.analysis.evaluation import evaluate_set, evaluate_splits, grid
from moe_asr.analysis.latency import watch
from moe_asr.config.data import TokenUnit
from moe_asr.config.decode import DecodeConfig, DecodeMode
from moe_asr.config.program import TrainConfig
from moe_asr.data.manifest import load_samples, read_split
from moe_asr.errors import InputError
from moe_asr.features.tokenizer import SPECIALS, Tokenizer
from moe_asr.measure.table import results_table
from moe_asr.runs.checkpoint import build
from moe_asr.runs.recognizer import Recognizer


@pytest.fixture(scope="module")
def recognizer(untrained: Path) -> Recognizer:
    return Recognizer.load(untrained)


@pytest.fixture(scope="module")
def speech(digits: Path) -> torch.Tensor:
    cut = max(read_split(digits, "seen"), key=lambda c: c.duration)
    return torch.from_numpy(load_samples(cut))[:24_123]


@pytest.mark.parametrize("mode", DecodeMode)
@pytest.mark.parametrize(("chunk", "left"), [(4, 2), (8, None), (None, None)])
def test_the_last_words_are_those_said_offline(
    recognizer: Recognizer, speech: torch.Tensor, mode: DecodeMode, chunk: int | None, left: int | None
) -> None:
    decode = DecodeConfig(mode=mode, chunk=chunk, left=left, beam=3)
    shown = watch(recognizer, speech, decode)
    final = tuple(recognizer.transcribe(speech, decode).text.split())
    assert (shown[-1].seconds, shown[-1].words, shown[-1].certain) == (24_123 / 16_000, final, len(final))
    assert len(shown) == 1 if chunk is None else len(shown) > 2
    for old, new in pairwise(shown):
        assert old.seconds <= new.seconds
        assert 0 <= old.certain <= len(old.words)
        assert old.words[: old.certain] == final[: old.certain]
    if chunk == 4:  # (4 * 4 + 3 - 1) * 160 + 400 samples make the first chunk, shown with the block that ends it
        assert shown[0].seconds == pytest.approx(0.21)
        assert {round((s.seconds - 0.21) / 0.16, 6) % 1 for s in shown[:-1]} == {0.0}


def test_where_the_last_word_may_go_on_it_is_not_certain(tiny: TrainConfig, speech: torch.Tensor) -> None:
    tokenizer = Tokenizer(TokenUnit.char, (*SPECIALS, "▁", "a", "b"))
    torch.manual_seed(1)
    model = build(tiny, tokenizer)
    with torch.no_grad():
        model.ctc.output.weight.mul_(100)
    shown = watch(Recognizer.of(model, tokenizer, tiny), speech, DecodeConfig(chunk=2))
    assert max(len(s.words) for s in shown[:-1]) > 1
    assert all(s.certain == max(0, len(s.words) - 1) for s in shown[:-1])


def test_a_grid_has_a_point_for_every_mode_chunk_and_left_context() -> None:
    greedy, attention = DecodeMode.ctc_greedy, DecodeMode.attention
    points = grid(DecodeConfig(chunks=[4, 16]), [greedy, attention], [2, None])
    assert list(points)[:5] == ["_ctc_greedy", *(f"_ctc_greedy_c{c}_l{left}" for c in (4, 16) for left in (2, "all"))]
    assert len(points) == 10
    assert (points["_attention"].mode, points["_attention"].chunk) == (attention, None)
    assert (points["_attention_c16_l2"].chunk, points["_attention_c16_l2"].left) == (16, 2)
    assert points["_attention_c16_lall"].left is None
    assert list(grid(DecodeConfig(chunk=8, left=3, chunks=[4]), [], [])) == ["", "_c4"]
    assert grid(DecodeConfig(chunk=8, left=3, chunks=[4]), [], [])["_c4"].left == 3


def test_results_say_when_words_are_shown(recognizer: Recognizer, tiny: TrainConfig, tmp_path: Path) -> None:
    decode = DecodeConfig(chunks=[4], batch=8)
    results = evaluate_splits(recognizer, tiny, ["seen"], decode, tmp_path, (), (2,), streams=3)
    assert list(results) == ["seen", "seen_c4_l2"]
    whole, chunked = (result["latency"] for result in results.values())
    assert chunked["words"] > 0
    assert chunked["first_p50"] <= chunked["settled_p50"] <= chunked["certain_p50"] < whole["settled_p50"]
    assert (whole["first_p50"], whole["revised"]) == (whole["settled_p50"], 0.0)
    assert chunked["stream_rtf"] > 0
    assert (chunked["streams"], results["seen"]["num_utterances"]) == (3, 8)
    table = results_table({"test": results})
    assert f"words settle {chunked['settled_p50']:.2f} s after they end" in table
    assert "ctc_greedy, chunk 4, left 2;" in table


def test_latency_needs_words_and_their_times(
    recognizer: Recognizer, tiny: TrainConfig, digits: Path, tmp_path: Path
) -> None:
    cuts = read_split(digits, "seen")[:2]
    cuts[1].supervisions[0].alignment.pop("word")
    with pytest.raises(InputError, match=f"when the words of {cuts[1].id} end is not known, which latency=true needs"):
        evaluate_set(recognizer, cuts, tiny, DecodeConfig(), tmp_path / "x.jsonl", streams=2)
    phones = Recognizer.of(recognizer.model, Tokenizer(TokenUnit.phone, recognizer.tokenizer.symbols), tiny)
    with pytest.raises(InputError, match="this model writes phones"):
        evaluate_set(phones, cuts[:1], tiny, DecodeConfig(), tmp_path / "x.jsonl", streams=2)

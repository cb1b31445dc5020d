"""Means over domains: what they are, that their intervals cover, and what they refuse."""

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest

from moe_asr.errors import InputError
from moe_asr.measure.domains import FLOOR_ERRORS, domain_lines, domain_means, read_results
from moe_asr.randomness import numpy_rng


def result(split: str, errors: dict[str, int], tokens: int = 100) -> dict[str, Any]:
    """A test set of which every speaker says so many tokens."""
    table = {speaker: {"wer": e / tokens, "num_utterances": 1, "num_tokens": tokens} for speaker, e in errors.items()}
    total = tokens * len(errors)
    rate = sum(errors.values()) / total
    return {"split": split, "unit": "word", "wer": rate, "num_tokens": total, "per_speaker": table}


def suite(seed: int, scale: float = 1.0) -> dict[str, Any]:
    """40 speakers of three domains with shared difficulty, and 6 others of one more; true rates 0.02, 0.1, 0.4, 0.1."""
    rng = numpy_rng("test", seed)
    hard = rng.gamma(4, 1 / 4, 40)
    rates = {"clean": 0.02, "noise": 0.1, "reverb": 0.4}
    test = {
        name: result(name, {f"d{i}": int(rng.poisson(scale * rate * h * 400)) for i, h in enumerate(hard)}, 400)
        for name, rate in rates.items()
    }
    real = {f"r{i}": int(rng.poisson(scale * 0.1 * h * 400)) for i, h in enumerate(rng.gamma(4, 1 / 4, 6))}
    return test | {"real": result("real", real, 400)}


def test_the_means_are_means() -> None:
    test = {"a": result("a", {"x": 1, "y": 3}), "b": result("b", {"x": 10, "y": 22}), "c": result("c", {"x": 40})}
    found = domain_means(test)[""]
    assert found["domains"] == 3
    assert found["mean"] == pytest.approx((0.02 + 0.16 + 0.4) / 3)
    assert found["geometric"] == pytest.approx((0.02 * 0.16 * 0.4) ** (1 / 3))
    assert found["mean_ci95"] is None  # too few speakers
    none = domain_means({"a": result("a", {"x": 0, "y": 0})})[""]
    assert (none["mean"], none["geometric"]) == pytest.approx((FLOOR_ERRORS / 200,) * 2)


def test_one_domain_has_the_interval_of_its_speakers() -> None:
    errors = {f"s{i}": e for i, e in enumerate((3, 9, 1, 4, 12, 6))}
    found = domain_means({"a": result("a", errors)})[""]
    rates = numpy.array(list(errors.values())) / 100
    spread = math.exp(2.5706 * rates.std(ddof=1) / math.sqrt(6) / rates.mean())
    for kind in ("mean", "geometric"):
        assert found[f"{kind}_ci95"] == pytest.approx([rates.mean() / spread, rates.mean() * spread], rel=1e-4)


def test_intervals_cover_what_is_true_and_ratios_are_sharper_than_their_parts() -> None:
    truth = {"mean": (0.02 + 0.1 + 0.4 + 0.1) / 4, "geometric": (0.02 * 0.1 * 0.4 * 0.1) ** 0.25}
    hits = dict.fromkeys(truth, 0)
    for seed in range(400):
        found = domain_means(suite(seed))[""]
        for kind, true in truth.items():
            low, high = found[f"{kind}_ci95"]
            hits[kind] += low <= true <= high
    assert all(0.91 <= hit / 400 <= 0.985 for hit in hits.values()), hits
    # The same speakers, a tenth fewer errors: what is common to both systems does not count.
    better = {
        name: result(name, {s: round(0.9 * o["wer"] * 400) for s, o in r["per_speaker"].items()}, 400)
        for name, r in suite(1).items()
    }
    against = domain_means(better, suite(1))[""]["against"]
    assert against["geometric"] == pytest.approx(0.9, abs=0.01)
    low, high = against["geometric_ci95"]
    assert low < 0.9 < high < 0.93
    same = domain_means(suite(1), suite(1))[""]["against"]
    assert (same["mean"], same["mean_ci95"]) == (1.0, None)


def test_ways_of_decoding_are_told_apart() -> None:
    test = {"a": result("a", {"x": 1}), "a_c16": result("a", {"x": 3}), "b": result("b", {"x": 5})}
    test["b_c16"] = result("fold/b", {"x": 7})
    found = domain_means(test)
    assert {suffix: mean["mean"] for suffix, mean in found.items()} == pytest.approx({"": 0.03, "_c16": 0.05})
    lines = domain_lines(found)
    assert lines[0].split()[:4] == ["domains", "mean", "3.00", "%"]
    assert lines[1].startswith("domains_c16") and "(2 domains)" in lines[1]  # noqa: PT018


def test_other_sets_other_speakers_and_other_files_are_refused(tmp_path: Path) -> None:
    test = {"a": result("a", {"x": 1})}
    with pytest.raises(InputError, match="have no a; evaluate both on the same sets"):
        domain_means(test, {"b": test["a"]})
    with pytest.raises(InputError, match="other speakers"):
        domain_means(test, {"a": result("a", {"y": 1})})
    (tmp_path / "results.json").write_text(json.dumps({"test": test}))
    assert read_results(str(tmp_path)) == read_results(str(tmp_path / "results.json")) == test
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"is no results\.json"):
        read_results(str(tmp_path))

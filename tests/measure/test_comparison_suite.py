"""Suites of domains against each other: what the means are, and what their intervals are about."""

import numpy
import pytest

from moe_asr.measure.comparison import Comparison, compare_methods
from moe_asr.measure.comparison_suite import Mean, compare_suites
from moe_asr.measure.domains import domain_means

RATES = {"clean": 0.02, "noise": 0.1, "reverb": 0.4}


def suite(seed: int, scales: tuple[float, ...], speakers: int = 8) -> tuple[list[numpy.ndarray], list[str], list[str]]:
    """Errors of a run for each scale, 400 tokens of each speaker in each domain, speakers and domains."""
    rng = numpy.random.default_rng(seed)
    hard = rng.gamma(4, 1 / 4, speakers)
    expected = numpy.concatenate([400 * rate * hard for rate in RATES.values()])
    runs = [rng.poisson(scale * expected).astype(float) for scale in scales]
    return runs, [f"s{g}" for _ in RATES for g in range(speakers)], [name for name in RATES for _ in range(speakers)]


def results(errors: numpy.ndarray, speakers: list[str], domains: list[str]) -> dict[str, dict[str, object]]:
    found = {}
    for name in RATES:
        own = {s: e for s, e, d in zip(speakers, errors, domains, strict=True) if d == name}
        table = {s: {"wer": e / 400, "num_tokens": 400} for s, e in own.items()}
        rate, total = sum(own.values()) / 400 / len(own), 400 * len(own)
        found[name] = {"split": name, "unit": "word", "wer": rate, "num_tokens": total, "per_speaker": table}
    return found


def told(found: Comparison) -> tuple[object, ...]:
    assert found.relative_ci95 is not None
    return found.rate_a, found.rate_b, found.relative, *found.relative_ci95, found.p


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("mean", Mean)
def test_of_one_domain_it_is_what_compares_methods_on_a_set(mean: Mean, paired: bool) -> None:
    runs, speakers, _ = suite(1, (1.0, 1.0, 1.1, 0.9, 0.8, 1.0))
    tokens = numpy.full(24, 400)
    expected = compare_methods(runs[:3], runs[3:], tokens, speakers, paired)
    found = compare_suites(runs[:3], runs[3:], tokens, speakers, ["all"] * 24, mean, paired)
    assert told(found) == pytest.approx(told(expected))
    assert (found.seeds, found.speakers) == (expected.seeds, expected.speakers)


def test_the_means_of_checkpoints_are_those_that_evaluate_tells() -> None:
    (a, b), speakers, domains = suite(2, (1.0, 0.8))
    test = domain_means(results(b, speakers, domains), results(a, speakers, domains))[""]
    for mean, key in ((Mean.plain, "mean"), (Mean.geometric, "geometric")):
        found = compare_suites(a, b, numpy.full(24, 400), speakers, domains, mean)
        assert (found.rate_b, 1 + found.relative) == pytest.approx((test[key], test["against"][key]))
        assert found.relative_ci95 is not None
        # The same error; a few speakers make most of the errors, which counts as fewer of them.
        low, high = test["against"][f"{key}_ci95"]
        assert found.relative_ci95[0] < low - 1 < found.relative < high - 1 < found.relative_ci95[1]
        assert "over speakers within domains; new speakers, these 3 domains, these two checkpoints only" in found.method


def test_a_hard_domain_rules_the_plain_mean_alone() -> None:
    """B is twice as good on clean speech, of which there are few errors."""
    runs, speakers, domains = suite(3, (1.0,) * 6)
    clean = numpy.array([name == "clean" for name in domains])
    for run in runs[3:]:
        run[clean] = numpy.floor(run[clean] / 2)
    tokens = numpy.full(24, 400)
    plain, geometric = (compare_suites(runs[:3], runs[3:], tokens, speakers, domains, mean) for mean in Mean)
    assert plain.rate_a == pytest.approx(sum(RATES.values()) / 3, rel=0.3)
    assert plain.relative_ci95[0] < 0 < plain.relative_ci95[1]  # type: ignore[index]
    assert geometric.relative == pytest.approx(0.5 ** (1 / 3) - 1, abs=0.08)
    assert geometric.relative_ci95[1] < 0  # type: ignore[index]
    assert "over paired seeds x speakers within domains; new runs and speakers, these 3 domains" in geometric.method


def test_too_few_speakers_of_one_domain_leave_other_runs_or_nothing() -> None:
    runs, speakers, domains = suite(4, (1.0, 1.1, 0.8, 0.9))
    others = [
        f"r{s}" if d == "reverb" and s in ("s0", "s1", "s2") else s for s, d in zip(speakers, domains, strict=True)
    ]
    tokens = numpy.full(24, 400)
    methods = compare_suites(runs[:2], runs[2:], tokens, others, domains, Mean.plain)
    assert "over paired seeds within domains; new runs, these 3 domains" in methods.method
    assert methods.relative_ci95 is not None
    for known in (others, None):
        alone = compare_suites(runs[0], runs[2], tokens, known, domains, Mean.plain)
        assert alone.relative_ci95 is None
        assert alone.method == "none: fewer than 5 known speakers of the same domains"
    same = compare_suites(runs[:2], runs[:2], tokens, speakers, domains, Mean.plain)
    assert (same.relative, same.p, same.method) == (0.0, None, "none: all errors are the same")

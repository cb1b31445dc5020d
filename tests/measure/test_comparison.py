"""Comparisons of methods and of checkpoints, on numbers that can be worked out by hand and on simulated ones."""

import numpy
import pytest
from scipy.special import stdtrit
from scipy.stats import norm, ttest_rel

from moe_asr.measure.comparison import Comparison, compare_checkpoints, compare_methods, holm, mapsswe
from moe_asr.measure.errors import edit_counts, error_places


def test_errors_stand_where_they_are() -> None:
    reference, hypothesis = "the cat sat on the mat", "a the cat set on mat mat now"
    (places,) = error_places([reference], [hypothesis])
    assert places == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
    assert sum(places) == edit_counts([reference], [hypothesis])[0].errors
    assert error_places(["", "a b"], ["x y", ""]) == [[2], [0, 1, 0, 1, 0]]


def test_mapsswe_by_hand() -> None:
    """Gillick and Cox's statistic on five segments, cut where both systems have two words running right.

    Utterance 1: A errs at b, B at e; between them c, d are right in both: two segments, Z = -1 and +1.
    Utterance 2: A errs at q and (one right word later) s: one segment, B right: Z = -2. Then A inserts one word at
    the end, after t, u, v: Z = -1. Utterance 3: nobody errs. Utterance 4: both get its only word wrong: Z = 0.
    """
    references = ["a b c d e", "p q r s t u v", "k l m", "z"]
    a = ["a x c d e", "p x r x t u v w", "k l m", "y"]
    b = ["a b c d x", "p q r s t u v", "k l m", "x"]
    result = mapsswe(references, a, b)
    z = numpy.array([-1, 1, -2, -1, 0])
    expected = z.mean() / (z.std(ddof=1) / 5**0.5)  # -0.6 / (1.1402 / 2.2361) = -1.1767
    assert (result.segments, result.mean) == (5, -0.6)
    assert result.z == pytest.approx(expected)
    assert expected == pytest.approx(-1.17670, abs=1e-5)
    assert result.p == pytest.approx(2 * norm.cdf(-1.17670), abs=1e-5)
    turned = mapsswe(references, b, a)
    assert (turned.segments, turned.z, turned.p) == (5, pytest.approx(-expected), result.p)


def test_mapsswe_without_spread_says_nothing() -> None:
    assert mapsswe(["a b"], ["a b"], ["a b"]).p is None
    assert mapsswe(["a b"], ["x b"], ["a b"]).segments == 1
    assert mapsswe(["a b"], ["x b"], ["a b"]).p is None


def test_paired_seeds_on_fixed_utterances_are_a_paired_t_test() -> None:
    """Of the runs' errors over their method's mean, which is what the logarithm is to first order."""
    rng = numpy.random.default_rng(1)
    a, b = rng.poisson(3, (6, 50)), rng.poisson(2.5, (6, 50))
    found = compare_methods(a, b, [10] * 50, None, paired=True)
    totals = a.sum(axis=1) / a.sum(axis=1).mean(), b.sum(axis=1) / b.sum(axis=1).mean()
    error = numpy.std(totals[1] - totals[0], ddof=1) / 6**0.5
    assert found.relative == pytest.approx(b.sum() / a.sum() - 1)
    assert found.p == pytest.approx(ttest_rel(totals[1] + numpy.log(b.sum() / a.sum()), totals[0]).pvalue)
    reach = numpy.log1p(found.relative_ci95[1]) - numpy.log1p(found.relative)
    assert reach == pytest.approx(2.5705818 * error)  # t(5) at 0.975
    assert "these test utterances only" in found.method


def balanced(seeds: tuple[float, ...], speakers: tuple[float, ...], size: float = 1000.0) -> numpy.ndarray:
    """Errors whose seeds and speakers have these effects and no interaction: (S, G)."""
    return size * (1 + numpy.array(seeds)[:, None] + numpy.array(speakers)[None])


def test_variance_components_of_a_table_without_interaction() -> None:
    """B's errors are A's times 1 + effect: v_s = var(seeds) / S, v_g = var(speakers) / G, v_e = 0 exactly."""
    seeds, speakers = (-0.1, 0.0, 0.1), (0.02, -0.04, 0.06, -0.06, 0.02)
    a, b = balanced((0, 0, 0), (0,) * 5), balanced(seeds, speakers)
    found = compare_methods(a, b, [10_000] * 5, list("abcde"), paired=True)
    v_s, v_g = numpy.var(seeds, ddof=1) / 3, numpy.var(speakers, ddof=1) / 5
    assert found.spread is not None
    assert found.spread.seed == pytest.approx(0.1)
    assert found.spread.speaker == pytest.approx(numpy.std(speakers, ddof=1))
    assert found.spread.cell == pytest.approx(0, abs=1e-6)
    df = (v_s + v_g) ** 2 / (v_s**2 / 2 + v_g**2 / 4)
    assert found.method.startswith(f"t({df:.1f}) over paired seeds x speakers")
    assert found.relative == pytest.approx(0)
    assert numpy.log1p(found.relative_ci95[1]) == pytest.approx(stdtrit(df, 0.975) * (v_s + v_g) ** 0.5, rel=1e-3)


def test_unpaired_seeds_are_less_certain_where_pairs_move_together() -> None:
    rng = numpy.random.default_rng(2)
    both = rng.standard_normal((8, 1)) * 0.2
    a, b = (rng.poisson(50 * numpy.exp(both) * factor, (8, 20)) for factor in (1, 0.9))
    paired, unpaired = (compare_methods(a, b, [500] * 20, range(20), paired=flag) for flag in (True, False))
    assert paired.relative == unpaired.relative
    assert paired.p < 0.01 < 0.05 < unpaired.p
    assert compare_methods(a, b[:5], [500] * 20, range(20)).seeds == (8, 5)


def test_order_of_utterances_speakers_and_seeds_changes_nothing() -> None:
    rng = numpy.random.default_rng(3)
    a, b, tokens, speakers = rng.poisson(2, (4, 90)), rng.poisson(2, (4, 90)), rng.integers(3, 9, 90), [*range(30)] * 3
    order, rows = rng.permutation(90), rng.permutation(4)
    shuffled = [speakers[i] for i in order]

    def numbers(found: Comparison) -> list[float]:
        return [found.rate_a, found.rate_b, found.relative, *found.relative_ci95, found.p]

    one = compare_methods(a, b, tokens, speakers, True)
    other = compare_methods(a[rows][:, order], b[rows][:, order], tokens[order], shuffled, True)
    assert numbers(one) == pytest.approx(numbers(other))
    one = compare_checkpoints(a[0], b[0], tokens, speakers)
    other = compare_checkpoints(a[0][order], b[0][order], tokens[order], shuffled)
    assert numbers(one) == pytest.approx(numbers(other))
    assert one.method.startswith("bootstrap-t")


def test_the_interval_excludes_zero_exactly_where_p_is_small() -> None:
    rng = numpy.random.default_rng(4)
    for factor in numpy.linspace(0.7, 1, 20):
        for size in (8, 25):
            a, b = rng.poisson(20, (3, size)), rng.poisson(20 * factor, (3, size))
            for found in (
                compare_methods(a, b, [200] * size, range(size)),
                compare_checkpoints(a[0], b[0], [200] * size, range(size)),
            ):
                low, high = found.relative_ci95
                assert (found.p < 0.05) == (low > 0 or high < 0)
                assert low < found.relative < high
                assert found.difference_ci95 == (low * found.rate_a, high * found.rate_a)


def test_what_cannot_be_compared_says_why() -> None:
    same, none, some = [[1, 2], [2, 1]], [[0, 0], [0, 0]], [[1, 0], [0, 2]]
    assert compare_methods(same, same, [5, 5]).method == "none: all errors are the same"
    assert compare_methods(none, some, [5, 5]).relative is None
    assert compare_methods(some, none, [5, 5]).method == "none: without errors there is no ratio"
    assert compare_checkpoints([1, 2], [2, 3], [5, 5], ["a", "b"]).method == "none: fewer than 5 known speakers"
    assert compare_checkpoints([1, 2], [2, 3], [5, 5]).speakers == 0
    with pytest.raises(ValueError, match="do not fit at least 2 seeds"):
        compare_methods([[1, 2]], [[1, 2]], [5, 5])
    with pytest.raises(ValueError, match="2 and 3 seeds cannot be paired"):
        compare_methods(same, [*same, [1, 1]], [5, 5], paired=True)


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, then 0.03 * 2 = 0.06, and 0.5; never below an earlier one, never above 1."""
    assert holm([0.03, None, 0.01, 0.5, 0.02]) == [pytest.approx(0.06), None, 0.04, 0.5, pytest.approx(0.06)]
    assert holm([0.04, 0.03]) == [0.06, 0.06]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []

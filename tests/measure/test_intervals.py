import numpy
import pytest
from scipy.stats import t as student

from moe_asr.measure.errors import EditCounts
from moe_asr.measure.intervals import Interval, error_interval


def counts_of(errors: list[int], tokens: list[int]) -> list[EditCounts]:
    return [EditCounts(hits=n - e, substitutions=e) for e, n in zip(errors, tokens, strict=True)]


def population(speakers: int, rng: numpy.random.Generator) -> tuple[list[EditCounts], list[int]]:
    """60 utterances of 4 words per speaker, the speakers' rates being log-normal around 12 %."""
    rates = numpy.minimum(0.95, 0.12 * numpy.exp(0.4 * rng.standard_normal(speakers) - 0.08))
    errors = rng.binomial(4, numpy.repeat(rates, 60))
    return counts_of(errors.tolist(), [4] * len(errors)), numpy.repeat(numpy.arange(speakers), 60).tolist()


def test_five_speakers_by_hand() -> None:
    errors, tokens = [1, 2, 3, 4, 10], [10, 10, 20, 20, 40]
    interval = error_interval(counts_of(errors, tokens), list("abcde"))
    residuals = [-1, 0, -1, 0, 2]  # e - 0.2 n
    error = (5 / 4 * sum(r * r for r in residuals)) ** 0.5 / 100
    factor = numpy.exp(student.ppf(0.975, 4) * error / 0.2)
    assert interval.bounds == pytest.approx((0.2 / factor, 0.2 * factor), rel=1e-12)
    assert interval.clusters == 5
    assert interval.method.startswith("t(4) over speakers")


def test_only_sums_by_speaker_matter() -> None:
    """Splitting a speaker's utterances, or their order, changes nothing."""
    rng = numpy.random.default_rng(3)
    for speakers in (7, 25):
        counts, names = population(speakers, rng)
        order = rng.permutation(len(counts))
        shuffled = error_interval([counts[i] for i in order], [names[i] for i in order])
        sums = [sum((c for c, s in zip(counts, names, strict=True) if s == k), EditCounts()) for k in range(speakers)]
        assert error_interval(counts, names) == shuffled == error_interval(sums, range(speakers))


def test_the_method_follows_the_number_of_speakers() -> None:
    rng = numpy.random.default_rng(4)
    methods = {g: error_interval(*population(g, rng)) for g in (4, 5, 19, 20)}
    assert methods[4] == Interval(None, "none: fewer than 5 speakers", 4)
    assert [methods[g].method.split()[0] for g in (5, 19, 20)] == ["t(4)", "t(18)", "bootstrap-t"]
    assert error_interval(population(8, rng)[0]) == Interval(None, "none: the speakers are not known", 0)


def test_a_clustered_corpus_gets_a_wider_interval_than_independent_utterances() -> None:
    counts, names = population(40, numpy.random.default_rng(5))
    by_speaker, by_utterance = (error_interval(counts, s).bounds for s in (names, range(len(names))))
    assert by_speaker is not None
    assert by_utterance is not None
    assert by_speaker[1] - by_speaker[0] > 1.8 * (by_utterance[1] - by_utterance[0])


def test_no_interval_without_any_spread() -> None:
    assert error_interval(counts_of([0] * 30, [5] * 30), range(30)).bounds is None
    assert error_interval(counts_of([5] * 30, [5] * 30), range(30)).bounds is None
    assert error_interval([EditCounts(insertions=2)] * 30, range(30)).bounds is None


def test_few_speakers_with_errors_fall_back_from_the_bootstrap() -> None:
    interval = error_interval(counts_of([3] + [0] * 29, [50] * 30), range(30))
    assert interval.bounds is not None
    assert 0 < interval.bounds[0] < 3 / 1500 < interval.bounds[1] < 1
    assert interval.method.startswith("t(29)")


@pytest.mark.parametrize(("speakers", "draws"), [(5, 2000), (8, 2000), (20, 200), (40, 200)])
def test_coverage(speakers: int, draws: int) -> None:
    """A nominal 95 % covers the population's rate in at least 90 % of random corpora (94-95 % of many more)."""
    rng = numpy.random.default_rng(speakers)
    hits = 0
    for _ in range(draws):
        rates = numpy.minimum(0.95, 0.12 * numpy.exp(0.4 * rng.standard_normal(speakers) - 0.08))
        errors = rng.binomial(240, rates).tolist()
        bounds = error_interval(counts_of(errors, [240] * speakers), range(speakers)).bounds
        assert bounds is not None
        hits += bounds[0] <= 0.12 <= bounds[1]
    assert 0.90 <= hits / draws < 0.99


def test_composed_utterances_of_few_speakers_are_tied_by_their_sources() -> None:
    """Strings cut from few recordings say less than strings of recordings of their own; both say which is covered."""
    rng = numpy.random.default_rng(6)
    hard = rng.random(40) < 0.3
    shared = [rng.integers(0, 40, 4).tolist() for _ in range(400)]
    counts = counts_of([int(hard[s].sum()) for s in shared], [4] * 400)
    own = [[(u, i) for i in range(4)] for u in range(400)]
    tied, free = (error_interval(counts, ["one"] * 400, s) for s in (shared, own))
    assert tied.bounds is not None
    assert free.bounds is not None
    assert numpy.log(tied.bounds[1] / tied.bounds[0]) > 2 * numpy.log(free.bounds[1] / free.bounds[0])
    assert "these speakers only" in tied.method
    assert (tied.clusters, free.clusters) == (40, 1600)


def test_disjoint_sources_are_plain_clusters() -> None:
    """With every source in one utterance only, the pair sum is the ordinary linearised variance."""
    errors = [0, 1, 2, 3] * 10
    interval = error_interval(counts_of(errors, [4] * 40), None, [[(u, 0), (u, 1)] for u in range(40)])
    rate, residuals = 60 / 160, numpy.array(errors) - 1.5
    error = numpy.sqrt(40 / 39 * (residuals**2).sum()) / 160
    factor = numpy.exp(student.ppf(0.975, 79) * error / rate)
    assert interval.bounds == pytest.approx((rate / factor, rate * factor), rel=1e-12)


def test_sources_coverage_of_one_speaker() -> None:
    """200 strings of up to 5 words from 200 recordings, a word failing with its recording's and string's ease."""
    rng = numpy.random.default_rng(7)
    ease = rng.standard_normal(200_000) * 1.2**0.5
    truth = (1 / (1 + numpy.exp(1.5 - ease))).mean()
    hits = 0
    for _ in range(150):
        recordings = rng.standard_normal(200)
        sources = [rng.integers(0, 200, rng.integers(2, 6)) for _ in range(200)]
        logit = [recordings[s] + 0.2**0.5 * rng.standard_normal() - 1.5 for s in sources]
        errors = [int((rng.random(len(x)) < 1 / (1 + numpy.exp(-x))).sum()) for x in logit]
        bounds = error_interval(counts_of(errors, [len(s) for s in sources]), None, sources).bounds
        assert bounds is not None
        hits += bounds[0] <= truth <= bounds[1]
    assert 132 <= hits < 150


def test_isolated_recordings_of_few_speakers_get_no_interval() -> None:
    counts = counts_of([0, 1] * 30, [1] * 60)
    assert error_interval(counts, ["one"] * 60, [[u] for u in range(60)]).bounds is None
    assert error_interval(counts, ["one"] * 60, [[0, 1]] * 60).method == "none: fewer than 20 source recordings"

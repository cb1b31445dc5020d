"""Association between sites on constructed traces with known answers."""

import numpy
import pytest
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from moe_asr.analysis.association import (
    agreement,
    chosen_of_others,
    contingency,
    corrected_cramers_v,
    cramers_v,
    explained,
    kappa,
    loss_spikes,
    normalized_mutual_information,
    segment_lengths,
    shuffled_segment_lengths,
    site_association,
    switching_rate,
)
from moe_asr.analysis.trace import SiteRows, Trace
from moe_asr.errors import InputError


def make_trace(**choices):
    """Sites of 4 experts with these first choices (P,), in utterances of 50 positions."""
    count = len(next(iter(choices.values())))
    offsets = numpy.arange(0, count + 1, 50)
    zeros = numpy.zeros(count, numpy.float32)
    sites = {
        f"encoder.{i:02d}.ffn_out": SiteRows(ids[:, None], zeros[:, None], zeros)
        for i, ids in enumerate(choices.values())
    }
    return Trace({"num_experts": 4}, ({},) * (len(offsets) - 1), {"encoder": offsets}, sites, {}, {})


def rng():
    return numpy.random.default_rng(0)


def test_cramers_v_is_that_of_an_independent_implementation():
    table = rng().integers(1, 50, (3, 5))
    assert cramers_v(table) == pytest.approx(association(table, "cramer"))
    gapped = numpy.insert(numpy.insert(table, 1, 0, axis=0), 2, 0, axis=1)  # categories that never occur
    assert cramers_v(gapped) == pytest.approx(association(table, "cramer"))
    phi = chi2_contingency(table, correction=False).statistic / table.sum()
    n, r, c = table.sum(), 3, 5
    least = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1))
    expected = max(0, phi - (r - 1) * (c - 1) / (n - 1)) / (least - 1)
    assert corrected_cramers_v(table) == pytest.approx(expected**0.5)


@pytest.mark.parametrize("measure", [cramers_v, corrected_cramers_v, normalized_mutual_information])
def test_relabelled_choices_agree_and_one_expert_alone_says_nothing(measure):
    a = rng().integers(0, 4, 1000)
    assert measure(contingency(a, (a + 1) % 4, 4, 4)) == pytest.approx(1.0)
    assert numpy.isnan(measure(contingency(a, a * 0, 4, 4)))
    assert numpy.isnan(measure(numpy.zeros((4, 4), int)))
    assert measure(contingency(a, rng().permutation(a), 4, 4)) < 0.1


def test_small_samples_bias_v_upwards_and_the_correction_takes_it_away():
    tables = [contingency(*(numpy.random.default_rng(i).integers(0, 8, (2, 100))), 8, 8) for i in range(50)]
    assert numpy.mean([cramers_v(t) for t in tables]) > 0.2
    assert numpy.mean([corrected_cramers_v(t) for t in tables]) < 0.1


def test_mutual_information_in_closed_form():
    table = numpy.array([[2, 0], [1, 1]])  # H(row) = log 2, H(column) = H(3/4), joint: 1/2, 1/4, 1/4
    column = -(0.75 * numpy.log(0.75) + 0.25 * numpy.log(0.25))
    shared = numpy.log(2) + column - 1.5 * numpy.log(2)
    assert normalized_mutual_information(table) == pytest.approx(shared / (numpy.log(2) * column) ** 0.5)


def test_what_columns_explain_of_rows_in_closed_form():
    table = numpy.array([[2, 0], [1, 1]])
    column = -(0.75 * numpy.log(0.75) + 0.25 * numpy.log(0.25))
    assert explained(table) == pytest.approx((column - 0.5 * numpy.log(2)) / numpy.log(2))
    assert explained(numpy.array([[3, 0, 0], [0, 2, 2]])) == pytest.approx(1.0)  # columns say all of the rows
    assert explained(numpy.array([[3, 0, 0], [0, 2, 2]]).T) < 0.7  # and rows not all of the columns
    assert explained(numpy.outer([1, 2], [3, 4])) == pytest.approx(0.0)
    assert numpy.isnan(explained(numpy.array([[3, 4]])))


def test_agreement_is_of_numbers_and_kappa_without_chance():
    table = numpy.array([[20, 5], [10, 15]])  # an example of the literature: 0.7 and 0.5 by chance
    assert agreement(table) == pytest.approx(0.7)
    assert kappa(table) == pytest.approx(0.4)
    assert agreement(numpy.array([[0, 5], [5, 0]])) == 0.0
    assert kappa(numpy.outer([1, 2], [3, 4])) == pytest.approx(0.0)
    assert numpy.isnan(kappa(numpy.array([[3, 0], [0, 0]])))
    assert numpy.isnan(agreement(numpy.zeros((2, 2))))
    a = rng().integers(0, 4, 2000)
    found = site_association(make_trace(one=a, same=a, other=(a + 1) % 4), measure=kappa, draws=5)
    assert found.observed[0].tolist() == pytest.approx([1.0, 1.0, found.observed[0, 2]])
    assert found.observed[0, 2] < -0.2


def test_equal_routers_correlate_and_independent_ones_stay_in_the_null():
    a, b = rng().integers(0, 4, (2, 5000))
    found = site_association(make_trace(one=a, same=3 - a, other=b), draws=40)
    assert found.observed[0, 1] == pytest.approx(1.0)
    assert found.p_value[0, 1] == pytest.approx(1 / 41)
    assert abs(found.observed[0, 2] - found.null_mean[0, 2]) < 0.02
    assert found.p_value[0, 2] > 0.05
    assert found.observed == pytest.approx(found.observed.T)
    above = (found.observed - found.null_mean)[[0, 0, 1], [1, 2, 2]]
    assert found.excess == pytest.approx(above.mean())
    assert numpy.isnan(site_association(make_trace(one=a), draws=2).excess)


def test_what_the_place_in_the_utterance_says_is_in_the_null():
    """Two routers that know nothing but the position agree, and so do they across utterances."""
    place = numpy.arange(5000) % 50 // 13
    found = site_association(make_trace(one=place, two=place), draws=10)
    assert found.observed[0, 1] == pytest.approx(found.null_mean[0, 1]) == pytest.approx(1.0)
    assert found.p_value[0, 1] == 1.0


def test_only_positions_within_count():
    a, b = rng().integers(0, 4, (2, 2000))
    within = rng().random(2000) < 0.5
    found = site_association(make_trace(one=a, two=numpy.where(within, a, b)), draws=0, within=within)
    assert found.observed[0, 1] == pytest.approx(1.0)
    with pytest.raises(InputError, match="no site in 'left_to_right'"):
        site_association(make_trace(one=a), "left_to_right")


def test_nobody_is_his_own_donor():
    chosen = numpy.repeat(numpy.arange(6), 10)[None]
    moved = chosen_of_others(chosen, numpy.arange(0, 61, 10), rng())
    assert (moved != chosen).all()
    uneven = chosen_of_others(numpy.arange(12)[None], numpy.array([0, 2, 12]), rng())
    assert uneven[0].tolist() == [2, 3, 0, 1, -1, -1, -1, -1, -1, -1, -1, -1]


def test_segments_end_with_the_utterance():
    choices, offsets = numpy.array([1, 1, 2, 2, 2, 2, 3]), numpy.array([0, 4, 7])
    assert segment_lengths(choices, offsets).tolist() == [2, 2, 2, 1]
    assert segment_lengths(numpy.zeros(0, int), numpy.array([0])).tolist() == []
    steady, borders = numpy.repeat(rng().integers(0, 4, 200), 5), numpy.arange(0, 1001, 50)
    assert segment_lengths(steady, borders).mean() > 3 * shuffled_segment_lengths(steady, borders).max()


def test_switches_are_counted_within_utterances():
    choices, offsets = numpy.array([1, 1, 2, 2, 3, 3, 3]), numpy.array([0, 4, 4, 7])
    assert switching_rate(choices, offsets) == pytest.approx(1 / 5)
    assert numpy.isnan(switching_rate(choices[:1], numpy.array([0, 1])))


def test_spikes_of_a_loss():
    losses = list(3 - 0.001 * numpy.arange(300) + 0.05 * rng().standard_normal(300))
    assert loss_spikes(losses) == []
    losses[120], losses[200] = 5.0, float("nan")
    assert loss_spikes(losses) == [120, 200]

"""The bootstrap against all draws there are, the plain loop, scipy, and known true rates."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.evaluation import significance
from edge_asr.evaluation.significance import (
    Sample,
    difference_of,
    paired_draws,
    wer_interval,
)
from edge_asr.store.record import Interval


def sample(errors: list[int], words: list[int], clusters: list[int] | None = None) -> Sample:
    return Sample(
        np.array(errors), np.array(words), None if clusters is None else np.array(clusters)
    )


def random_sample(seed: int, utterances: int = 200, rate: float = 0.2) -> Sample:
    generator = np.random.default_rng(seed)
    words = generator.integers(3, 30, utterances)
    return Sample(generator.binomial(words, rate), words)


def drawn(of: Sample, resamples: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return significance._drawn_percent(significance._units(of), resamples, generator)[:, 0]


def ends(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.estimate, interval.high


@pytest.mark.parametrize(
    ("errors", "words"),
    [([1, 0], [1, 4]), ([0, 3, -1], [5, 3, 2]), ([2, 0, 1, 9, 0], [4, 1, 3, 9, 2])],
)
def test_draws_are_those_of_all_there_are(errors: list[int], words: list[int]) -> None:
    count = len(words)
    rates = [
        100 * sum(errors[i] for i in draw) / sum(words[i] for i in draw)
        for draw in itertools.product(range(count), repeat=count)
    ]
    values = np.unique(np.round(rates, 9))
    expected = np.array([np.isclose(rates, value).mean() for value in values])
    found = drawn(sample(errors, words), 100_000)
    shares = np.array([np.isclose(found, value).mean() for value in values])
    assert shares.sum() == pytest.approx(1)
    # Five standard errors of a share.
    assert np.all(np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / len(found)))


def test_draws_equal_the_plain_sums_over_drawn_utterances() -> None:
    of = random_sample(0, utterances=17)
    # More draws than fit one block.
    draw = np.random.default_rng(5).integers(0, 17, size=(40_000, 17))
    expected = 100 * of.errors[draw].sum(axis=1) / of.words[draw].sum(axis=1)
    np.testing.assert_array_equal(drawn(of, 40_000, seed=5), expected)


def test_two_kinds_of_utterances_are_drawn_binomially() -> None:
    found = drawn(sample([10] * 3 + [0] * 27, [10] * 30), 50_000)
    for probability in (0.025, 0.5, 0.975):
        expected = 100 * scipy.stats.binom.ppf(probability, 30, 0.1) / 30
        assert np.quantile(found, probability) == pytest.approx(expected)


def test_interval_agrees_with_scipy() -> None:
    of = random_sample(1, utterances=60)
    widened = scipy.stats.t.ppf(0.975, 59) * np.sqrt(60 / 59)
    reference = scipy.stats.bootstrap(
        (of.errors, of.words),
        lambda errors, words, axis: 100 * errors.sum(axis) / words.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=50_000,
        confidence_level=1 - 2 * scipy.stats.norm.sf(widened),
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    interval = wer_interval([of], resamples=50_000)
    width = reference.high - reference.low
    assert interval.low == pytest.approx(reference.low, abs=0.02 * width)
    assert interval.high == pytest.approx(reference.high, abs=0.02 * width)


def test_equal_utterances_leave_no_doubt() -> None:
    interval = wer_interval([sample([1] * 7, [3] * 7)])
    assert ends(interval) == pytest.approx((100 / 3, 100 / 3, 100 / 3))
    assert ends(wer_interval([sample([0] * 5, [1, 2, 3, 4, 5])])) == (0, 0, 0)
    assert ends(wer_interval([sample([2], [5])])) == (40, 40, 40)


def test_few_units_widen_the_interval() -> None:
    widened = scipy.stats.t.ppf(0.975, 9) * np.sqrt(10 / 9)
    ten = significance._tail(np.array([4.0]), [10], 0.95)
    assert ten == pytest.approx(scipy.stats.norm.cdf(-widened))
    # Two such sets have twice the degrees of freedom; one without spread adds none.
    widened = scipy.stats.t.ppf(0.975, 18) * np.sqrt(19 / 18)
    twice = significance._tail(np.array([4.0, 4.0]), [10, 10], 0.95)
    assert twice == pytest.approx(scipy.stats.norm.cdf(-widened))
    assert significance._tail(np.array([4.0, 0.0]), [10, 1], 0.95) == pytest.approx(ten)
    assert significance._tail(np.array([4.0]), [10**6], 0.95) == pytest.approx(0.025, rel=1e-4)


def test_speakers_are_drawn_with_all_their_utterances() -> None:
    by_speaker = sample([1, 5, 0, 2, 4, 9], [9, 8, 7, 6, 5, 20], [4, -2, 4, 4, 7, -2])
    totals = sample([14, 3, 4], [28, 22, 5])
    assert wer_interval([by_speaker]) == wer_interval([totals])


def test_one_speaker_is_drawn_by_utterance() -> None:
    errors, words = [1, 5, 0], [9, 8, 7]
    assert wer_interval([sample(errors, words, [3, 3, 3])]) == wer_interval([sample(errors, words)])


def test_the_seed_decides() -> None:
    of = [random_sample(3)]
    assert wer_interval(of, seed=1) == wer_interval(of, seed=1)
    assert wer_interval(of, seed=1) != wer_interval(of, seed=2)


def test_pairing_narrows_the_difference() -> None:
    baseline = random_sample(4)
    worse = baseline.errors + np.random.default_rng(9).binomial(1, 0.3, len(baseline.errors))
    quantized = Sample(worse, baseline.words)
    difference = wer_interval([difference_of(quantized, baseline)])
    alone = wer_interval([quantized])
    assert difference.estimate == pytest.approx(quantized.percent - baseline.percent)
    assert 0 < difference.low < difference.estimate < difference.high
    assert difference.high - difference.low < (alone.high - alone.low) / 2


def test_a_model_does_not_differ_from_itself() -> None:
    of = random_sample(6)
    assert ends(wer_interval([difference_of(of, of)])) == (0, 0, 0)


def test_the_difference_the_other_way_round_is_the_same_with_another_sign() -> None:
    one, other = random_sample(7), random_sample(7, rate=0.3)
    there = wer_interval([difference_of(one, other)])
    back = wer_interval([difference_of(other, one)])
    assert ends(there) == pytest.approx((-back.high, -back.estimate, -back.low))


def test_means_weigh_data_sets_equally() -> None:
    small, large = sample([1, 1], [2, 2]), random_sample(7, utterances=500)
    interval = wer_interval([small, large])
    assert interval.estimate == pytest.approx((50 + large.percent) / 2)
    alone = wer_interval([large])
    # The small set has no spread, so the mean has half the spread of the large one.
    assert interval.high - interval.low == pytest.approx((alone.high - alone.low) / 2, rel=0.1)


def test_a_draw_without_a_word_is_left_out() -> None:
    interval = wer_interval([sample([1, 2], [0, 10])])
    assert (interval.low, interval.high) == (20, 30)


def test_many_utterances_need_little_memory() -> None:
    of = random_sample(8, utterances=20_000)
    tracemalloc.start()
    wer_interval([of], resamples=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize(("utterances", "speakers"), [(100, 0), (200, 10)])
def test_interval_covers_the_true_rate_about_as_often_as_it_says(
    utterances: int, speakers: int
) -> None:
    covered = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        clusters = generator.integers(0, speakers, utterances) if speakers else None
        # Beta(2, 8) by speaker or by utterance: 20 % on average.
        rates = generator.beta(2, 8, speakers or utterances)
        words = generator.integers(3, 30, utterances)
        errors = generator.binomial(words, rates if clusters is None else rates[clusters])
        interval = wer_interval([Sample(errors, words, clusters)], resamples=400)
        covered += interval.low <= 20 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 99),
    st.floats(0.5, 0.999),
)
def test_interval_stays_within_the_utterances_rates(
    rows: list[tuple[int, int, int]], seed: int, level: float
) -> None:
    errors, words, clusters = np.array(rows).T
    interval = wer_interval([Sample(errors, words, clusters)], resamples=50, level=level, seed=seed)
    rates = 100 * errors / words
    assert rates.min() - 1e-9 <= interval.low <= interval.high <= rates.max() + 1e-9


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same utterances"):
        difference_of(sample([1], [2]), sample([1], [3]))
    with pytest.raises(ValueError, match="same clusters"):
        difference_of(sample([1, 1], [2, 2], [0, 0]), sample([1, 1], [2, 2]))
    with pytest.raises(ValueError, match="not all"):
        sample([1, 2], [3])
    with pytest.raises(ValueError, match="not all"):
        sample([1, 2], [3, 4], [0])
    for words in ([0, 0], [-1, 3]):
        with pytest.raises(ValueError, match="positive"):
            sample([1, 2], words)
    with pytest.raises(ValueError, match="at least one"):
        wer_interval([])


@pytest.mark.parametrize(
    "values",
    [
        (1.0, 3.0, 2.0, 0.95, 9),
        (float("nan"), 1.0, 2.0, 0.95, 9),
        (1.0, 0.0, 2.0, 95, 9),
        (1.0, 0.0, 2.0, 0.95, 0),
    ],
)
def test_impossible_intervals_are_refused(values: tuple[float, float, float, float, int]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Interval(*values)


@pytest.mark.parametrize("clusters", [None, 20])
def test_draws_of_many_runs_give_the_interval_of_every_pair(clusters: int | None) -> None:
    """Exactly that of the two alone, of one data set and of the mean of two."""
    generator = np.random.default_rng(0)

    def runs(utterances: int) -> list[Sample]:
        words = generator.integers(3, 30, utterances)
        speakers = None if clusters is None else generator.integers(0, clusters, utterances)
        return [
            Sample(generator.binomial(words, rate), words, speakers) for rate in (0.1, 0.12, 0.5)
        ]

    for sets in (1, 2):
        several = [*zip(*(runs(100 + 50 * index) for index in range(sets)), strict=True)]
        draws = paired_draws(several, seed=3)
        for run, other in itertools.permutations(range(3), 2):
            pairs = zip(several[run], several[other], strict=True)
            wanted = wer_interval([difference_of(*pair) for pair in pairs], seed=3)
            found = draws.difference(run, other)
            assert ends(found) == pytest.approx(ends(wanted), abs=1e-9)
            if found.low <= 0 <= found.high:
                assert draws.may_equal(run)[other]
        assert draws.better(0)[0] == 0.5
        assert draws.better(0)[2] == 1
        assert draws.better(0)[1] == pytest.approx(1 - draws.better(1)[0])
        assert not draws.may_equal(0)[2]


def test_runs_on_other_clips_are_not_drawn_together() -> None:
    one, other = sample([1, 0], [4, 4]), sample([1, 0], [4, 5])
    with pytest.raises(ValueError, match="not of the same utterances"):
        paired_draws([[one], [other]])
    with pytest.raises(ValueError, match="at least one"):
        paired_draws([])

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.evaluation import significance
from edge_asr.evaluation.significance import (
    Interval,
    mean_paired_difference,
    mean_wer_interval,
    paired_difference,
    wer_interval,
)
from edge_asr.evaluation.wer import Score


def make_score(errors: list[int], words: list[int], protocol: str = "plain") -> Score:
    """Errors as deletions and insertions, so that any number of them is possible."""
    wrong, spoken = np.array(errors, dtype=np.int64), np.array(words, dtype=np.int64)
    deletions = np.minimum(wrong, spoken)
    nothing = np.zeros(len(words), dtype=bool)
    return Score(
        protocol=protocol,
        scored=np.arange(len(words)),
        hits=spoken - deletions,
        substitutions=np.zeros_like(spoken),
        deletions=deletions,
        insertions=wrong - deletions,
        empty_outputs=nothing,
        looping_outputs=nothing,
        dropped=0,
    )


def random_score(seed: int, utterances: int = 200, rate: float = 0.2) -> Score:
    generator = np.random.default_rng(seed)
    words = generator.integers(3, 30, utterances)
    return make_score(generator.binomial(words, rate).tolist(), words.tolist())


def test_interval_equals_a_loop_over_the_same_draws() -> None:
    score = random_score(0, utterances=17)
    generator = np.random.default_rng(5)
    rates = []
    for _ in range(300):
        draw = generator.integers(0, 17, size=17)
        wrong = sum(int(score.errors[i]) for i in draw)
        rates.append(100 * wrong / sum(int(score.words[i]) for i in draw))
    interval = wer_interval(score, resamples=300, seed=5)
    assert interval.estimate == score.wer
    assert interval.low == pytest.approx(np.percentile(rates, 2.5))
    assert interval.high == pytest.approx(np.percentile(rates, 97.5))


def test_interval_agrees_with_scipy() -> None:
    score = random_score(1)
    reference = scipy.stats.bootstrap(
        (score.errors, score.words),
        lambda errors, words, axis: 100 * errors.sum(axis) / words.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        method="percentile",
    ).confidence_interval
    interval = wer_interval(score, resamples=20000)
    assert interval.low == pytest.approx(reference.low, abs=0.1)
    assert interval.high == pytest.approx(reference.high, abs=0.1)


def test_memory_chunks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    score = random_score(2, utterances=31)
    whole = wer_interval(score, resamples=100)
    monkeypatch.setattr(significance, "_DRAWS_AT_ONCE", 7 * 31)
    assert wer_interval(score, resamples=100) == whole


def test_the_seed_decides() -> None:
    score = random_score(3)
    assert wer_interval(score, seed=1) == wer_interval(score, seed=1)
    assert wer_interval(score, seed=1) != wer_interval(score, seed=2)


def test_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        interval = wer_interval(random_score(seed, utterances=150), resamples=400)
        covered += interval.low <= 20 <= interval.high
    assert 0.89 <= covered / 200 <= 0.99


def test_pairing_narrows_the_difference() -> None:
    baseline = random_score(4)
    generator = np.random.default_rng(9)
    worse = baseline.errors + generator.binomial(1, 0.3, len(baseline.errors))
    quantized = make_score(worse.tolist(), baseline.words.tolist())
    difference = paired_difference(quantized, baseline)
    alone = wer_interval(quantized)
    assert difference.estimate == pytest.approx(quantized.wer - baseline.wer)
    assert 0 < difference.low < difference.estimate < difference.high
    assert difference.high - difference.low < (alone.high - alone.low) / 2


def test_paired_difference_draws_the_same_utterances_for_both() -> None:
    quantized, baseline = make_score([4, 0, 9], [10, 5, 30]), make_score([1, 1, 3], [10, 5, 30])
    generator = np.random.default_rng(3)
    differences = []
    for _ in range(200):
        draw = generator.integers(0, 3, size=3)
        spoken = baseline.words[draw].sum()
        rates = [100 * one.errors[draw].sum() / spoken for one in (quantized, baseline)]
        differences.append(rates[0] - rates[1])
    interval = paired_difference(quantized, baseline, resamples=200, seed=3)
    assert interval.low == pytest.approx(np.percentile(differences, 2.5))
    assert interval.high == pytest.approx(np.percentile(differences, 97.5))


def test_a_model_does_not_differ_from_itself() -> None:
    score = random_score(6)
    difference = paired_difference(score, score)
    assert (difference.estimate, difference.low, difference.high) == (0, 0, 0)


def test_means_weigh_data_sets_equally() -> None:
    small, large = make_score([1, 1], [2, 2]), random_score(7, utterances=500)
    interval = mean_wer_interval([small, large])
    assert interval.estimate == pytest.approx((50 + large.wer) / 2)
    half = wer_interval(large)
    # The small set has no spread, so the mean has half the spread of the large one.
    assert interval.high - interval.low == pytest.approx((half.high - half.low) / 2, rel=0.1)
    difference = mean_paired_difference([small, large], [make_score([0, 0], [2, 2]), large])
    assert (difference.low, difference.estimate, difference.high) == pytest.approx((25, 25, 25))


def test_different_utterances_are_refused() -> None:
    with pytest.raises(ValueError, match="same utterances"):
        paired_difference(make_score([1], [2]), make_score([1], [3]))
    with pytest.raises(ValueError, match="protocols differ"):
        paired_difference(make_score([1], [2]), make_score([1], [2], "other"))
    with pytest.raises(ValueError, match="at least one"):
        mean_wer_interval([])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(0, 99),
)
def test_interval_stays_within_the_utterances_rates(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    score = make_score([wrong for wrong, _ in pairs], [spoken for _, spoken in pairs])
    interval = wer_interval(score, resamples=50, seed=seed)
    rates = [100 * wrong / spoken for wrong, spoken in pairs]
    assert min(rates) - 1e-9 <= interval.low <= interval.high <= max(rates) + 1e-9


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

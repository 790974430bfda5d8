"""How far a measured word error rate may be from the one on unlimited similar speech.

Utterances are drawn with replacement and the corpus rate, a ratio of two sums over the same
draw, is taken of every draw; the middle 95 % of those rates is the interval (Bisani & Ney,
"Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004,
section 2; for two systems on the same utterances, section 3). Everything is in percent.

The interval covers the choice of utterances alone: not the speakers they share, the
calibration data, or the seed of a learned method.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_asr.evaluation.wer import Counts, Score
from edge_asr.store.record import LEVEL, RESAMPLES, Interval

_DRAWS_AT_ONCE = 1 << 19


def _resampled_percent(
    errors: Counts, words: Counts, resamples: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """`resamples` draws of 100 x sum(errors) / sum(words), both over the same utterances."""
    utterances = len(words)
    rows = max(1, _DRAWS_AT_ONCE // utterances)
    percent = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        draw = generator.integers(0, utterances, size=(stop - start, utterances))
        percent[start:stop] = 100.0 * errors[draw].sum(axis=1) / words[draw].sum(axis=1)
    return percent


def _interval(
    pairs: Sequence[tuple[Counts, Counts]], resamples: int, level: float, seed: int
) -> Interval:
    if not pairs:
        raise ValueError("scores: give at least one")
    generator = np.random.default_rng(seed)
    # Data sets are independent samples, so each is resampled on its own (a stratified draw).
    draws = np.mean([_resampled_percent(*pair, resamples, generator) for pair in pairs], axis=0)
    estimate = float(np.mean([100.0 * errors.sum() / words.sum() for errors, words in pairs]))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level, resamples)


def _paired(quantized: Score, baseline: Score) -> tuple[Counts, Counts]:
    if quantized.protocol != baseline.protocol:
        raise ValueError(f"protocols differ: {quantized.protocol} and {baseline.protocol}")
    same = np.array_equal(quantized.scored, baseline.scored)
    if not (same and np.array_equal(quantized.words, baseline.words)):
        raise ValueError("the two scores are not of the same utterances")
    # The reference words agree, so the difference of the ratios is a ratio itself.
    return quantized.errors - baseline.errors, quantized.words


def wer_interval(
    score: Score, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Corpus WER in percent with its bootstrap percentile interval (Bisani & Ney 2004, sec. 2).

    Args:
        score: Counts of N utterances.
        resamples: Bootstrap draws of N utterances each.
        level: Coverage of the interval.
        seed: Seed of the draws; the same seed gives the same interval.
    """
    return _interval([(score.errors, score.words)], resamples, level, seed)


def paired_difference(
    quantized: Score,
    baseline: Score,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """WER(quantized) - WER(baseline) in percentage points, on the same utterances.

    Each draw picks the same utterances for both (Bisani & Ney 2004, sec. 3), which removes the
    variation that hard and easy utterances share.

    Raises:
        ValueError: The scores are not of the same utterances under the same protocol.
    """
    return _interval([_paired(quantized, baseline)], resamples, level, seed)


def mean_wer_interval(
    scores: Sequence[Score], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Unweighted mean of the WER of several data sets, each resampled on its own.

    Raises:
        ValueError: No score.
    """
    return _interval([(one.errors, one.words) for one in scores], resamples, level, seed)


def mean_paired_difference(
    quantized: Sequence[Score],
    baseline: Sequence[Score],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Difference of the mean WER over data sets, paired by utterance within each of them.

    Raises:
        ValueError: No score, or two that are not of the same utterances.
    """
    pairs = [_paired(one, other) for one, other in zip(quantized, baseline, strict=True)]
    return _interval(pairs, resamples, level, seed)

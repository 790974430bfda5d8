"""Whether two systems differ in word errors on the same utterances, and over many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, ndtr

Marks = npt.NDArray[np.int64]
"""Errors of one system in one utterance of W reference words, [W + 1, 2]: the words inserted
before each reference word, and 1 where that word is substituted or deleted. The last row holds
the words inserted at the end and 0."""

CORRECT_BETWEEN = 2
"""Reference words in a row, right in both systems, that part two segments (sctk: MIN_NUM_GOOD)."""


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test of two systems on the same utterances.

    Attributes:
        statistic: Above zero where the first system makes more errors.
        p_value: Probability of one as far from zero if the systems did not differ.
        segments: Units in which at least one of the two made an error.
        a_worse, b_worse: Those of them in which the first, or the second, made more errors.
    """

    statistic: float
    p_value: float
    segments: int
    a_worse: int
    b_worse: int


def _sign_test(a_worse: int, b_worse: int) -> float:
    """Two-sided p-value of so uneven a split of as many fair coin tosses."""
    return min(1.0, 2 * float(bdtr(min(a_worse, b_worse), a_worse + b_worse, 0.5)))


def _segment_errors(a: Sequence[Marks], b: Sequence[Marks]) -> Marks:
    """Errors of both systems in each segment that has any, [segments, 2].

    Two errors are in the same segment if fewer than `CORRECT_BETWEEN` words lie between them.
    """
    if len(a) != len(b) or any(one.shape != other.shape for one, other in zip(a, b, strict=True)):
        raise ValueError("the two systems are not marked on the same reference words")
    if any(one.ndim != 2 or one.shape[1] != 2 for one in a):
        raise ValueError("marks: each array must be [words + 1, 2]: insertions, and wrong words")
    if not a:
        return np.zeros((0, 2), dtype=np.int64)
    # Insertions and words in turn, in the order of speech: the odd places are the words.
    errors = np.stack([np.concatenate(one).ravel() for one in (a, b)], axis=1)
    utterance = np.repeat(np.arange(len(a)), [one.size for one in a])
    places = np.flatnonzero(errors.any(axis=1))
    before, after = places[:-1], places[1:]
    words_between = after // 2 - (before + 1) // 2
    parted = (words_between >= CORRECT_BETWEEN) | (utterance[before] != utterance[after])
    starts = np.flatnonzero(np.concatenate([[len(places) > 0], parted]))
    return np.add.reduceat(errors[places], starts, axis=0) if len(places) else errors[places]


def mapsswe(a: Sequence[Marks], b: Sequence[Marks]) -> PairedTest:
    """Matched-pairs sentence-segment word error test: do two systems differ in WER?

    An utterance is cut wherever both systems have two words in a row right, as errors on either
    side of that are nearly independent; the differences of the errors in the pieces are then tested
    for zero mean (Gillick & Cox, "Some statistical issues in the comparison of speech recognition
    algorithms", ICASSP 1989; Pallett, Fisher & Fiscus, "Tools for the analysis of benchmark speech
    recognition tests", ICASSP 1990). Segments and statistic are those of NIST's sctk
    (src/sclite/mtchprs.c, commit 9688a26, 2023-11-27): normal also where segments are few, and
    without those in which neither system errs.

    Where all segments differ by the same number there is no spread to judge by: the statistic is
    then infinite and the p-value that of the sign test. (sctk finds no difference there.)

    Args:
        a, b: `Marks` of both systems, an array for each utterance, on the same references.

    Raises:
        ValueError: The two differ in utterances or reference words, or arrays are no marks.
    """
    errors = _segment_errors(a, b)
    differences = errors[:, 0] - errors[:, 1]
    segments = len(differences)
    a_worse, b_worse = int((differences > 0).sum()), int((differences < 0).sum())
    if not differences.any():
        return PairedTest(0.0, 1.0, segments, a_worse, b_worse)
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        statistic, p_value = math.copysign(math.inf, mean), _sign_test(a_worse, b_worse)
    else:
        statistic = mean / (float(differences.std(ddof=1)) / math.sqrt(segments))
        p_value = 2 * float(ndtr(-abs(statistic)))
    return PairedTest(statistic, p_value, segments, a_worse, b_worse)


def mcnemar(a_correct: npt.NDArray[np.bool_], b_correct: npt.NDArray[np.bool_]) -> PairedTest:
    """McNemar's test, exact: does one system get more utterances right without an error?

    Only utterances that one system has right and the other wrong count; if the systems did not
    differ, each were as likely to be the one's as the other's (Gillick & Cox 1989, section 2). The
    statistic is the signed root of the chi-square without continuity correction; the p-value is
    of the binomial distribution and does not use it.

    Args:
        a_correct, b_correct: Whether each utterance has no error, [N], in the same order.

    Raises:
        ValueError: The two differ in length.
    """
    if a_correct.shape != b_correct.shape:
        raise ValueError(f"{a_correct.size} utterances and {b_correct.size}")
    a_worse = int((b_correct & ~a_correct).sum())
    b_worse = int((a_correct & ~b_correct).sum())
    discordant = a_worse + b_worse
    statistic = (a_worse - b_worse) / math.sqrt(discordant) if discordant else 0.0
    wrong = int((~(a_correct & b_correct)).sum())
    return PairedTest(statistic, _sign_test(a_worse, b_worse), wrong, a_worse, b_worse)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that all may be read at the same level.

    Of m, the k-th smallest is multiplied by m - k + 1, and none may fall below one before it: the
    probability of any false finding then keeps the level, however the comparisons depend on one
    another (Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 1979). One that is not a number is no comparison: it stays so and does not count.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)[: int(np.isfinite(values).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted.tolist()

"""The tests of two systems against slow definitions, scipy, and an example of NIST's own."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.evaluation.paired_tests import Marks, holm, mapsswe, mcnemar

# An utterance in letters: C a word that is right, X one that is not, I an inserted word.
Utterance = tuple[str, str]


def marks(letters: str) -> Marks:
    rows = [[0, 0]]
    for letter in letters:
        if letter == "I":
            rows[-1][0] += 1
        else:
            rows[-1][1] = int(letter == "X")
            rows.append([0, 0])
    return np.array(rows, dtype=np.int64)


def run(utterances: Sequence[Utterance]) -> tuple[list[Marks], list[Marks]]:
    return [marks(one) for one, _ in utterances], [marks(other) for _, other in utterances]


def slow_segments(utterance: Utterance) -> list[tuple[int, int]]:
    """Errors of both in each segment, word by word: open at an error, shut at two right words."""
    a, b = (marks(letters).tolist() for letters in utterance)
    segments: list[tuple[int, int]] = []
    current, right = [0, 0], 0
    for (inserted_a, wrong_a), (inserted_b, wrong_b) in zip(a, b, strict=True):
        for in_a, in_b, is_word in ((inserted_a, inserted_b, False), (wrong_a, wrong_b, True)):
            if in_a or in_b:
                current = [current[0] + in_a, current[1] + in_b]
                right = 0
            elif is_word:
                right += 1
            if right == 2 and any(current):
                segments.append((current[0], current[1]))
                current = [0, 0]
    return segments + ([(current[0], current[1])] if any(current) else [])


@st.composite
def utterances(draw: st.DrawFn) -> Utterance:
    words = draw(st.integers(0, 12))
    texts = []
    for _ in range(2):
        text = "".join(
            "I" * draw(st.sampled_from([0, 0, 0, 0, 1, 3])) + draw(st.sampled_from("CCCX"))
            for _ in range(words)
        )
        texts.append(text + "I" * draw(st.sampled_from([0, 0, 0, 2])))
    return texts[0], texts[1]


@given(st.lists(utterances(), min_size=1, max_size=8))
def test_mapsswe_equals_its_definition_on_slow_segments(spoken: list[Utterance]) -> None:
    segments = [segment for utterance in spoken for segment in slow_segments(utterance)]
    differences = [one - other for one, other in segments]
    found = mapsswe(*run(spoken))
    assert found.segments == len(segments)
    assert found.a_worse == sum(one > 0 for one in differences)
    assert found.b_worse == sum(one < 0 for one in differences)
    if len(set(differences)) > 1:
        expected = scipy.stats.ttest_1samp(differences, 0).statistic
        assert found.statistic == pytest.approx(expected)
        assert found.p_value == pytest.approx(2 * scipy.stats.norm.sf(abs(expected)))


@pytest.mark.parametrize(
    ("a", "b", "segments"),
    [
        ("CCXCCXCC", "CCCCCCCC", 2),
        ("CCXCXCCC", "CCCCCCCC", 1),
        ("XCCCCCCC", "CCCXCCCC", 2),
        ("XCCCCCCC", "CCXCCCCC", 1),
        # The word after an insertion is right: it is the first of the two.
        ("ICCXCC", "CCCCC", 2),
        ("CXCICC", "CXCCC", 1),
        ("CXCCI", "CXCC", 2),
        ("II", "", 1),
        ("", "", 0),
        ("CCC", "CCC", 0),
    ],
)
def test_two_right_words_part_segments(a: str, b: str, segments: int) -> None:
    assert mapsswe(*run([(a, b)])).segments == segments


def test_segments_end_with_their_utterance() -> None:
    assert mapsswe(*run([("CX", "CC"), ("XC", "CC")])).segments == 2
    assert mapsswe(*run([("CXXC", "CCCC")])).segments == 1


def test_the_example_of_sctk() -> None:
    # src/sclite/testdata/file1.sgml and file2.sgml, base_sc_stats/test1a.stats.mapsswe (commit
    # 9688a26): 3 segments, 9 and 7 errors, mean 0.667, Z 2.000.
    found = mapsswe(*run([("I", ""), ("CXXCXXXCCXCII", "CXXCXXXCCXX")]))
    assert (found.segments, found.a_worse, found.b_worse) == (3, 2, 0)
    assert found.statistic == pytest.approx(2.0)
    assert found.p_value == pytest.approx(0.0455, abs=1e-4)


def test_the_other_way_round_is_the_same_with_another_sign() -> None:
    one, other = run([("XCCXCCC", "CCCCCCX"), ("CXXXCC", "CCCXCC"), ("CCIC", "CXC")])
    there, back = mapsswe(one, other), mapsswe(other, one)
    assert (there.statistic, there.p_value) == (-back.statistic, back.p_value)
    assert (there.a_worse, there.b_worse) == (back.b_worse, back.a_worse)


def test_a_system_does_not_differ_from_itself() -> None:
    same, _ = run([("XCCXCCC", ""), ("CXXXCC", "")])
    found = mapsswe(same, same)
    assert (found.statistic, found.p_value, found.segments) == (0.0, 1.0, 3)
    assert mapsswe([], []).p_value == 1.0


def test_equal_differences_leave_the_sign_test() -> None:
    found = mapsswe(*run([("XCCXCCXCCXCCXCC", "CCCCCCCCCCCCCCC")]))
    assert found.statistic == math.inf
    assert found.p_value == pytest.approx(2 / 2**5)
    assert mapsswe(*run([("CC", "XX")])).statistic == -math.inf
    assert mapsswe(*run([("CC", "XX")])).p_value == 1.0


def test_marks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same reference words"):
        mapsswe([marks("CC")], [marks("CCC")])
    with pytest.raises(ValueError, match="same reference words"):
        mapsswe([marks("CC")], [])
    with pytest.raises(ValueError, match=r"\[words \+ 1, 2\]"):
        mapsswe([np.zeros(3, dtype=np.int64)], [np.zeros(3, dtype=np.int64)])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_discordant(right: list[tuple[bool, bool]]) -> None:
    a, b = np.array(right).T
    found = mcnemar(a, b)
    lost, won = int((b & ~a).sum()), int((a & ~b).sum())
    assert (found.a_worse, found.b_worse) == (lost, won)
    if lost + won:
        assert found.p_value == pytest.approx(scipy.stats.binomtest(lost, lost + won).pvalue)
        assert found.statistic**2 == pytest.approx((lost - won) ** 2 / (lost + won))
    else:
        assert (found.statistic, found.p_value) == (0.0, 1.0)


def test_mcnemar_of_many_utterances() -> None:
    a = np.arange(20_000) % 2 == 0
    b = np.arange(20_000) % 2 == 1
    b[:200] = True
    found = mcnemar(a, b)
    expected = scipy.stats.binomtest(found.a_worse, found.a_worse + found.b_worse).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="utterances"):
        mcnemar(a, b[:9])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_leaves_out_what_is_no_number() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    # A hypothesis falls if Bonferroni's test rejects every set of hypotheses that holds it.
    for index, adjusted in enumerate(holm(p_values)):
        others = [value for place, value in enumerate(p_values) if place != index]
        worst = max(
            (size + 1) * min(p_values[index], *chosen, 1.0)
            for size in range(len(others) + 1)
            for chosen in itertools.combinations(others, size)
        )
        assert adjusted == pytest.approx(min(worst, 1.0))

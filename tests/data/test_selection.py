"""The choice that a limit makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_asr.data.selection import chosen_rows


@given(st.integers(0, 300), st.none() | st.integers(1, 400), st.integers(0, 5))
def test_choice_is_ordered_repeatable_and_of_the_asked_size(
    count: int, limit: int | None, seed: int
) -> None:
    rows = chosen_rows(count, limit, seed)
    assert rows == sorted(set(rows))
    assert rows == chosen_rows(count, limit, seed)
    assert len(rows) == (count if limit is None else min(count, limit))
    assert set(rows) <= set(range(count))


@given(st.integers(1, 300), st.data())
def test_a_smaller_limit_is_part_of_a_larger_one(count: int, data: st.DataObject) -> None:
    small = data.draw(st.integers(1, count))
    large = data.draw(st.integers(small, count))
    assert set(chosen_rows(count, small)) <= set(chosen_rows(count, large))


def test_the_rows_are_the_same_on_every_machine() -> None:
    assert chosen_rows(1000, 5) != chosen_rows(1000, 5, seed=1)
    assert chosen_rows(1000, 5) == [162, 206, 222, 459, 711]

"""The clock that says where time went."""

from __future__ import annotations

import time

import pytest

from edge_asr.clock import PhaseClock


def test_what_an_inner_phase_takes_is_its_own() -> None:
    clock = PhaseClock()
    began = time.perf_counter()
    with clock.phase("outer"):
        time.sleep(0.01)
        for _ in range(2):
            with clock.phase("inner"), clock.phase("innermost"):
                time.sleep(0.02)
    passed = time.perf_counter() - began
    seconds = clock.take()
    assert list(seconds) == ["innermost", "inner", "outer"]
    assert sum(seconds.values()) == pytest.approx(passed, rel=0.05)
    assert seconds["innermost"] >= 0.04
    assert seconds["outer"] >= 0.01
    assert clock.take() == {}


def test_a_phase_that_fails_is_over() -> None:
    clock = PhaseClock()
    with pytest.raises(ZeroDivisionError), clock.phase("outer"), clock.phase("inner"):
        _ = 1 / 0
    with clock.phase("next"):
        pass
    assert set(clock.take()) == {"outer", "inner", "next"}

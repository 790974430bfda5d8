"""AdaRound's annealing."""

from __future__ import annotations

import pytest

from edge_asr.quant.rounding.adaround import exponent_at


def test_exponent_waits_then_falls_from_20_to_2() -> None:
    assert exponent_at(0.0) == exponent_at(0.2) == 20
    assert exponent_at(0.6) == pytest.approx(11)
    assert exponent_at(1.0) == pytest.approx(2)

"""Peak memory of a piece of work, on systems that can reset it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edge_asr.memory import peak_memory_bytes, reset_peak_memory

SIZE = 200 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_the_peak_is_that_of_the_work_since_the_reset() -> None:
    block = np.ones(SIZE, dtype=np.uint8)
    high = peak_memory_bytes()
    del block
    reset_peak_memory()
    low = peak_memory_bytes()
    assert low < high - SIZE // 2
    block = np.ones(SIZE, dtype=np.uint8)
    del block
    assert peak_memory_bytes() > low + SIZE // 2

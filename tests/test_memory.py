"""Peak memory of a piece of work, on systems that can reset it."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest

from edge_asr.memory import peak_memory_bytes, release_freed_memory, reset_peak_memory

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


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="other C libraries cannot be asked",
)
def test_what_was_freed_goes_back_to_the_system() -> None:
    kept, freed = [], []
    for _ in range(20_000):
        freed.append(bytes(10_000))
        kept.append(bytes(600))  # so that no freed block is the last of the heap
    reset_peak_memory()
    before = peak_memory_bytes()
    del freed
    release_freed_memory()
    reset_peak_memory()
    assert peak_memory_bytes() < before - 100e6
    assert len(kept) == 20_000

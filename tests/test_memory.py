"""Peak memory of a piece of work, on systems that can reset it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_asr import memory
from edge_asr.memory import peak_memory_bytes, release_freed_memory, reset_peak_memory

SIZE = 200 * 2**20


def peak() -> int:
    found = peak_memory_bytes()
    assert found is not None
    return found


def test_a_peak_that_is_not_known_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    if memory.resource is not None:
        assert peak() > 2**20
    monkeypatch.setattr(memory, "resource", None)
    assert peak_memory_bytes() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_the_peak_is_that_of_the_work_since_the_reset() -> None:
    block = np.ones(SIZE, dtype=np.uint8)
    high = peak()
    del block
    reset_peak_memory()
    low = peak()
    assert low < high - SIZE // 2
    block = np.ones(SIZE, dtype=np.uint8)
    del block
    assert peak() > low + SIZE // 2


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
    before = peak()
    del freed
    release_freed_memory()
    reset_peak_memory()
    assert peak() < before - 100e6
    assert len(kept) == 20_000


LIMITED = """
import resource, numpy, torch
from edge_asr.memory import is_out_of_memory
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + 2**28, -1))
for work in (torch.empty, numpy.empty, lambda count: torch.empty(count // 8).repeat(16)):
    try:
        work(2**28)
    except Exception as error:
        print(is_out_of_memory(error))
for other in (RuntimeError("shapes do not match"), ValueError("DefaultCPUAllocator")):
    print(is_out_of_memory(other))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_what_the_allocators_say_is_known() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "True", "False", "False"]

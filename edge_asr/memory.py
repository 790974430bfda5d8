"""Resident memory of this process: the largest during a piece of work, and less of it."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

resource: Any = None
with suppress(ImportError):  # Windows has none
    resource = import_module("resource")

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
CPU_ALLOCATOR = "DefaultCPUAllocator"
RESET_PEAK = "5"  # proc(5): "Reset the peak resident set size"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory, the processor's or an accelerator's, was not enough.

    PyTorch has an exception of its own for accelerators, and names its allocator of the processor's
    memory in a plain RuntimeError (c10/core/impl/alloc_cpu.cpp, v2.13).
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)


def release_freed_memory() -> None:
    """Give the system back what was freed, where the C library keeps it until told (glibc).

    It keeps freed blocks of up to 32 MB: a quarter of a gigabyte between blocks of Whisper small.
    """
    with suppress(OSError, AttributeError, TypeError):  # as other systems refuse it
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory() -> None:
    """Start measuring anew. Where the system cannot, the peak stays that of the whole process."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return


def peak_memory_bytes() -> int | None:
    """The largest resident memory since `reset_peak_memory`, or None where it is not known."""
    try:
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""Real files that are no part of the repository: published checkpoints, speech, cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("EDGE_ASR_SHARED") or Path(__file__).parents[2] / "shared")


def shared(*parts: str) -> Path:
    """A file or folder below EDGE_ASR_SHARED, by default ../shared; the test is skipped where it
    is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there; set EDGE_ASR_SHARED")
    return path

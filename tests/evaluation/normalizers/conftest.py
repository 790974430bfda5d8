"""Fixtures of the normalizers' tests."""

from __future__ import annotations

import json
from importlib import resources

import pytest


@pytest.fixture(scope="session")
def embedded_texts() -> list[str]:
    """The transcripts of every clip in the package."""
    assets = resources.files("edge_asr") / "assets"
    lines = "".join(
        (assets / name).read_text(encoding="utf-8") for name in ("test.jsonl", "calibration.jsonl")
    )
    return [json.loads(line)["text"] for line in lines.splitlines()]

"""Checkpoints whose files are there, as an exporter needs them."""

from __future__ import annotations

import pytest
from tiny import tiny_moonshine, tiny_whisper

from edge_asr.models.loading import Checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def moonshine(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(str(tiny_moonshine(tmp_path_factory.mktemp("moonshine"))), name="tiny")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(str(tiny_whisper(tmp_path_factory.mktemp("whisper"))), name="tiny")


@pytest.fixture(scope="module", params=["whisper", "moonshine"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    """Either family in turn."""
    loaded: Checkpoint = request.getfixturevalue(request.param)
    return loaded

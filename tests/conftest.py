"""Fixtures that tests of several parts share."""

from __future__ import annotations

import os

# Before torch starts its threads: waiting ones sleep, for tests run side by side on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from tiny import tiny_checkpoint, tiny_whisper

from edge_asr.models.loading import Checkpoint, load_checkpoint

# The models are too small to share: more threads only wait for one another, and on a busy machine
# that costs thirty times the work itself.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def whisper() -> Checkpoint:
    return tiny_checkpoint("whisper")


@pytest.fixture(scope="session")
def moonshine() -> Checkpoint:
    return tiny_checkpoint("moonshine")


@pytest.fixture(scope="session")
def wide_whisper(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One that whisper.cpp's blocks fit: of 32 columns, and 4 times the width inside."""
    folder = tiny_whisper(tmp_path_factory.mktemp("wide"), width=96, inner=384)
    return load_checkpoint(str(folder), name="wide")


@pytest.fixture(scope="session", params=["whisper", "moonshine"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    """Either family in turn. Shared: a test that changes the model must copy it first."""
    loaded: Checkpoint = request.getfixturevalue(request.param)
    return loaded

"""How far a run is, told to a terminal and to a log."""

from __future__ import annotations

import io
import logging
import time

import pytest
from rich.console import Console
from rich.progress import Progress

from edge_asr.cli.progress import BarProgress, LoggedProgress


def test_the_log_tells_of_every_stage_when_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="edge_asr")
    progress = LoggedProgress(3600)
    progress.show("load")
    for done in range(3):
        progress.show("transcribe clips (float model)", done, 3)
    progress.show("quantize gptq", 1, 7, "model.encoder.layers.0")
    progress.show("quantize gptq", 2, 7, "model.encoder.layers.1")
    assert caplog.messages == ["load", "transcribe clips (float model)", "quantize gptq"]


def test_the_log_tells_now_and_then_how_far_a_stage_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="edge_asr")
    progress = LoggedProgress(0.01)
    with progress.beating():
        progress.show("quantize gptq", 2, 7, "model.encoder.layers.1")
        deadline = time.monotonic() + 10
        while len(caplog.messages) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    told = len(caplog.messages)
    assert caplog.messages[:2] == ["quantize gptq", "quantize gptq: 2 of 7, model.encoder.layers.1"]
    time.sleep(0.05)
    assert len(caplog.messages) == told, "it ends with the run"


def test_every_stage_has_a_bar_and_total_of_its_own() -> None:
    with Progress(console=Console(file=io.StringIO())) as bar:
        progress = BarProgress(bar)
        progress.show("quantize", 7, 7, "the last block")
        assert (bar.tasks[0].total, bar.tasks[0].completed) == (7, 7)
        progress.show("load the quantized model")
        assert bar.tasks[0].total is None
        progress.show("quantize another")
        progress.show("quantize another", 2, 5, "a block")
        assert (bar.tasks[0].total, bar.tasks[0].completed) == (5, 2)
        progress.show("transcribe clips (quantized model)", 0, 800)
        progress.show("transcribe clips (quantized model)", 32, 800)
        (task,) = bar.tasks
        assert (task.description, task.total, task.completed) == (
            "transcribe clips (quantized model)", 800, 32,
        )  # fmt: skip

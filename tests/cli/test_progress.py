"""How far a run is, told to a terminal and to a log."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console
from rich.progress import Progress

from edge_asr.cli.progress import BarProgress, LoggedProgress


def test_the_log_tells_of_every_stage_and_now_and_then_how_far_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="edge_asr")
    seldom, often = LoggedProgress(3600), LoggedProgress(0)
    for progress in (seldom, often):
        progress.show("load")
        for done in range(3):
            progress.show("transcribe clips (float model)", done, 3)
        progress.show("quantize gptq", 1, 7, "model.encoder.layers.0")
        progress.show("quantize gptq", 2, 7, "model.encoder.layers.1")
    half = len(caplog.messages) - 6
    assert caplog.messages[:3] == ["load", "transcribe clips (float model)", "quantize gptq"]
    assert half == 3
    assert caplog.messages[3:] == [
        "load",
        "transcribe clips (float model)",
        "transcribe clips (float model): 1 of 3",
        "transcribe clips (float model): 2 of 3",
        "quantize gptq",
        "quantize gptq: 2 of 7, model.encoder.layers.1",
    ]


def test_every_stage_has_a_bar_and_total_of_its_own() -> None:
    with Progress(console=Console(file=io.StringIO())) as bar:
        progress = BarProgress(bar)
        progress.show("quantize", 7, 7, "the last block")
        assert (bar.tasks[0].total, bar.tasks[0].completed) == (7, 7)
        progress.show("load the quantized model")
        assert bar.tasks[0].total is None
        progress.show("transcribe clips (quantized model)", 0, 800)
        progress.show("transcribe clips (quantized model)", 32, 800)
        (task,) = bar.tasks
        assert (task.description, task.total, task.completed) == (
            "transcribe clips (quantized model)", 800, 32,
        )  # fmt: skip

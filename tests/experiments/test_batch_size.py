"""Where memory is not enough for a batch, the whole run is one with smaller batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from options import composed
from tiny import tiny_moonshine, tone

from edge_asr.config import Settings
from edge_asr.experiments.ptq import run_experiment
from edge_asr.runtimes.base import DecodedBatch, runtimes
from edge_asr.runtimes.torch_greedy import TorchRuntime
from edge_asr.store.record import Record, find_records

CLIPS = 5


class Small(TorchRuntime):
    """Has memory for so many clips at once, and for more it says what a GPU does.

    A real allocation that fails changes how glibc serves the rest of the process; tests/test_memory
    has such in one of its own.
    """

    room = 2

    def decode(self, prepared: Any, limits: Sequence[int]) -> DecodedBatch:
        if len(limits) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().decode(prepared, limits)


class TooSmall(Small):
    """Has memory for none."""

    room = 0


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setitem(runtimes._entries, "small", Small)
    monkeypatch.setitem(runtimes._entries, "too_small", TooSmall)
    rows = []
    for index in range(CLIPS):
        soundfile.write(tmp_path / f"{index}.wav", tone(0.3 + index / 5), 16_000)
        rows.append({"audio": f"{index}.wav", "text": f"clip {index}"})
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = composed(
        "model=custom", f"model.path={tiny_moonshine(tmp_path / 'model')}", "data=manifest",
        f"data.path={path}", f"results={tmp_path / 'runs'}", "protocol.resamples=100",
        "method=rtn", "batch_size=8",
    )  # fmt: skip
    return replace(made, runtime="small")


def keys(record: Record) -> str:
    return record.keys["transcribe"]


def test_the_run_is_that_of_the_size_for_which_memory_is_enough(settings: Settings) -> None:
    outcome = run_experiment(settings)
    for record in (outcome.record, outcome.baseline):
        assert record is not None
        assert record.batch_size == 2
        assert record.warnings[0].startswith("batch_size=2: memory was not enough for batches of 4")
        assert record.results[0].utterances == CLIPS
    assert len(find_records(settings.results_folder)) == 2
    assert len(list(settings.results_folder.glob("*/*"))) == 2, "none of what did not fit"
    # Who asks for that size finds it.
    again = run_experiment(replace(settings, batch_size=2))
    assert again.stored
    assert keys(again.record) == keys(outcome.record)
    assert run_experiment(settings).stored


def test_a_single_clip_that_is_too_much_is_an_error(settings: Settings) -> None:
    with pytest.raises(MemoryError, match="for batches of 1 clips"):
        run_experiment(replace(settings, runtime="too_small", batch_size=2))
    assert find_records(settings.results_folder) == ()

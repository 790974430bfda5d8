from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edge_asr.cost.model import Cost, cost_of
from edge_asr.cost.records import LayerRecord, ModelSummary, Workload
from edge_asr.store.record import (
    CostSection,
    Environment,
    Interval,
    LayerSection,
    MethodSection,
    ModelSection,
    Record,
    Result,
)

RecordMaker = Callable[..., Record]


def model_cost(bits: int) -> Cost:
    weight = LayerRecord("head", "decoder", "head", (1000, 100), "token", bits * 1e5, bits)
    workload = Workload(2.0, {"frame": 10}, prompt_tokens=1, generated_tokens=4)
    return cost_of(ModelSummary((weight,), (), 10, 320), [workload])


@pytest.fixture
def make_record() -> RecordMaker:
    def make(
        method: str = "rtn",
        bits: int = 4,
        wer: float = 26.8,
        results: tuple[Result, ...] | None = None,
        **changes: Any,
    ) -> Record:
        quantized = method != "float"
        layer = LayerSection("head", "decoder", "head", 100000, bits, bits + 0.5)
        difference = Interval(wer - 20, wer - 21.5, wer - 18.5) if quantized else None
        result = Result(
            dataset="speech",
            protocol="open_asr_2024",
            utterances=100,
            seconds=250.0,
            wer=wer,
            interval=Interval(wer, wer - 1.7, wer + 1.8),
            float_wer=20.0,
            difference=difference,
            empty=2,
            looping=3,
        )
        fields: dict[str, Any] = {
            "run_id": f"{method}{bits}".ljust(12, "0"),
            "created": "2026-01-02T03:04:05+00:00",
            "config": {"model": "tiny"},
            "environment": Environment(
                "0.1.0", "abc123", False, "3.11", {}, "Linux x86_64", "cpu", 2
            ),
            "model": ModelSection("whisper-micro", "embedded", "whisper", 100010, 32, "00"),
            "method": MethodSection(
                method, bits, 64 if quantized else None, None, (layer,) if quantized else ()
            ),
            "results": (result,) if results is None else results,
            "batch_size": 1,
            "cost": CostSection(model_cost(bits), model_cost(32)),
        }
        return Record(**{**fields, **changes})

    return make

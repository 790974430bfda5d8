from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_asr.config import ProtocolSettings
from edge_asr.cost.model import Cost, cost_of
from edge_asr.cost.records import LayerRecord, ModelSummary, Workload
from edge_asr.evaluation.hypotheses import Hypothesis, Transcription
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.scoring import results_of, score_data_set
from edge_asr.experiments.files import write_alignments, write_manifest
from edge_asr.store.record import (
    CostSection,
    DataSection,
    Environment,
    Interval,
    LayerSection,
    MethodSection,
    ModelSection,
    Record,
    Result,
    write_record,
)

RecordMaker = Callable[..., Record]
RunMaker = Callable[..., Path]
HeardMaker = Callable[..., list[Hypothesis]]


def model_cost(bits: int) -> Cost:
    weight = LayerRecord("head", "decoder", "head", (1000, 100), "token", bits * 1e5, bits)
    workload = Workload(2.0, {"frame": 10}, prompt_tokens=1, generated_tokens=4)
    return cost_of(ModelSummary((weight,), (), 10, 320), [workload])


def _heard(errors: Sequence[int], words: int = 10, damage: str = "x") -> list[Hypothesis]:
    """A clip of `words` words for each count, so many of which are not what was said."""
    rows = []
    for number, count in enumerate(errors):
        said = [f"word{number}a{place}" for place in range(words)]
        texts = [f"{damage}{one}" if place < count else one for place, one in enumerate(said)]
        speaker = {"speaker": f"s{number % 25}"}
        rows.append(
            Hypothesis(
                f"{number}.wav", " ".join(said), " ".join(texts), 5.0, 0.5, f"clip {number}",
                metadata=speaker,
            )
        )  # fmt: skip
    return rows


@pytest.fixture
def heard() -> HeardMaker:
    return _heard


@pytest.fixture
def make_run(make_record: RecordMaker, tmp_path: Path) -> RunMaker:
    """A run folder with hypotheses and alignments, as an experiment leaves it."""

    def make(method: str, clips: Sequence[Hypothesis], **changes: Any) -> Path:
        settings = ProtocolSettings("open_asr_2024")
        scored = score_data_set(
            protocol_named(settings.name), "speech", Transcription(tuple(clips)), None
        )
        name = "MODEL_any_DATASET_speech.jsonl"
        record = make_record(
            method,
            32 if method == "float" else 4,
            results=results_of(settings, scored),
            data=(DataSection("speech", len(clips), "ab", {}, name),),
            **changes,
        )
        folder = tmp_path / "runs" / record.model.name / method
        write_record(folder, record)
        write_manifest(folder / name, scored)
        write_alignments(folder, [scored])
        return folder

    return make


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

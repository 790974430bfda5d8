"""What the quantize step says, as its file holds it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from edge_asr.cost.records import AttentionRecord, LayerRecord, ModelSummary, RuntimeOpRecord
from edge_asr.errors import UserError
from edge_asr.experiments.steps import RESULT, QuantizeResult, quantize_result
from edge_asr.store.artefacts import Artefact
from edge_asr.store.record import LayerSection


def test_a_quantize_result_reads_back_or_names_what_is_wrong(tmp_path: Path) -> None:
    summary = ModelSummary(
        (LayerRecord("l", "decoder", "fc1", (4, 6), "token", 64, 4),),
        (AttentionRecord("a", "decoder", "self", 2, 3),),
        other_parameters=1,
        other_parameter_bits=32,
        runtime_ops=(RuntimeOpRecord("turn", "encoder", "frame", 36),),
    )
    section = LayerSection("l", "decoder", "fc1", 24, 4, 4.5, output_error_after=0.5)
    whole = QuantizeResult((section,), {"warnings": []}, summary)
    path = tmp_path / RESULT
    text = json.dumps(asdict(whole))
    artefact = Artefact(tmp_path, "transcribe", "key", 1.0, None)
    path.write_text(text)
    assert quantize_result(artefact) == whole
    for old, new, said in (
        (text, text[:-9], "Invalid JSON"),
        (text, "[" * 100_000, "Invalid JSON"),
        ('"stack": "encoder"', '"stack": "middle"', r"runtime_ops\[0\].stack='middle': .*decoder"),
        ('"weight_shape": [4, 6]', '"weight_shape": [4]', r"layers\[0\]: l: weight_shape \(4,\)"),
        ('"weight_shape": [4, 6]', '"weight_shape": [4, true]', r"weight_shape\[1\]=True: "),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=f"^{path}: .*{said}") as caught:
            quantize_result(artefact)
        assert len(str(caught.value).splitlines()) == 1

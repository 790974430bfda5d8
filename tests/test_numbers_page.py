"""docs/the_numbers.md explains every figure that is written, and its examples are the code's."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from edge_asr.cost.model import cost_of
from edge_asr.cost.records import AttentionRecord, LayerRecord, ModelSummary, Workload
from edge_asr.evaluation.hypotheses import Hypothesis
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.wer import score
from edge_asr.quant.formats import Grid
from edge_asr.quant.outlier_rule import kept_weights
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.weight import QuantizedWeight, round_nearest
from edge_asr.report.cells import headings
from edge_asr.report.tables import tables
from edge_asr.store.failure import ERROR_NAME, failure_noted
from edge_asr.store.record import (
    ALL,
    LEVEL,
    RESAMPLES,
    SCHEMA_VERSION,
    Record,
    find_records,
    read_record,
)

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/the_numbers.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S)
    return found


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, titles included."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_column_and_heading_of_a_table_is_explained_in_its_order() -> None:
    record = read_record(find_records(ROOT / "results")[0])
    whole = next(one for one in record.results if one.condition == ALL)
    part = next(one for one in record.results if one.condition != ALL)
    # Called as the page calls them.
    results = (
        dataclasses.replace(whole, dataset="<dataset>"),
        dataclasses.replace(part, dataset="<dataset>", condition="<condition>"),
    )
    (frame,) = tables([dataclasses.replace(record, results=results)]).values()
    explained = rows(section("CSV columns"))
    assert [name for cells in explained for name in names(cells[0])] == list(frame.columns)
    assert [name for cells in explained for name in names(cells[1])] == list(headings(frame))


def dataclasses_in(kind: Any) -> dict[str, list[str]]:
    """The fields of every dataclass that is reachable from a type, by the class's name."""
    found: dict[str, list[str]] = {}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        found[kind.__name__] = [one.name for one in dataclasses.fields(kind)]
        hints = get_type_hints(kind)
        parts = [hints[name] for name in found[kind.__name__]]
    else:
        parts = list(get_args(kind))
    for part in parts:
        found |= dataclasses_in(part)
    return found


def test_every_field_of_a_record_is_explained_with_its_class_and_no_other() -> None:
    explained: dict[str, list[str]] = {}
    classes: list[str] = []
    for first, second, *_ in rows(section("record.json field by field")):
        classes = names(first) or classes
        for name in classes:
            explained.setdefault(name, []).extend(names(second))
    expected = dataclasses_in(Record)
    assert {"Interval", "PhaseMacs", "Size", "Stage"} <= expected.keys()
    assert {name: sorted(fields) for name, fields in explained.items()} == {
        name: sorted(fields) for name, fields in expected.items()
    }
    assert f"(schema {SCHEMA_VERSION})" in PAGE


def test_every_field_of_hypotheses_and_of_a_failure_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"), failure_noted(tmp_path, {}):
        raise OSError("gone")
    failure = json.loads((tmp_path / ERROR_NAME).read_text())
    heard = [one.name for one in dataclasses.fields(Hypothesis)]
    paragraphs = section("Provenance").split("\n\n")
    for start, fields in (("**`error.json`**", failure), ("**`MODEL_...jsonl`**", heard)):
        (paragraph,) = [one for one in paragraphs if one.startswith(start)]
        assert set(fields) <= set(names(paragraph)), start


def test_the_interval_is_of_as_many_draws_as_the_page_says() -> None:
    low, high = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
    assert f"the {low:g} % and {high:g} % quantiles of {RESAMPLES} draws" in PAGE


def test_the_rate_of_the_example_is_that_of_the_corpus() -> None:
    words = ["red", "green", "blue", "black", "white", "grey", "pink", "brown", "gold", "silver"]
    spoken = [words[:5], words, words[5:]]
    heard = [words[:4], words, words[7:]]
    clips = [
        Hypothesis(f"{index}.wav", " ".join(reference), " ".join(hypothesis))
        for index, (reference, hypothesis) in enumerate(zip(spoken, heard, strict=True))
    ]
    found = score(clips, protocol_named("open_asr_2024"))
    assert (found.errors.tolist(), found.words.tolist()) == ([1, 0, 2], [5, 10, 5])
    mean = float((100 * found.errors / found.words).mean())
    assert f"{found.wer:.1f} %; the mean of the three rates would be {mean:.1f} %" in PAGE


def layer(symmetric: bool = False, column: bool = False) -> QuantizedWeight:
    """The layer of the example, perhaps with an outlier column."""
    weight = torch.randn(144, 144, generator=torch.Generator().manual_seed(0))
    grid = Grid(4, symmetric, granularity="group", group_size=32)
    rounded = round_nearest(weight, minmax_parameters(weight, grid), grid)
    columns = torch.arange(144) == 0
    kept = kept_weights(weight, torch.zeros(144, 144, dtype=torch.bool), columns)
    return dataclasses.replace(rounded, outliers=kept) if column else rounded


def test_stored_bits_of_the_example_are_those_that_are_charged() -> None:
    weight = layer()
    codes, scales = weight.codes.numel() * 4, weight.parameters.scale.numel() * 16
    expected = {
        "codes, bits": codes,
        "scales, bits": scales,
        "zero points, bits": weight.parameters.bits_on(weight.grid) - scales,
        "stored, bits": weight.stored_bits,
        "`effective_bits`": weight.effective_bits,
        "`effective_bits`, symmetric": layer(symmetric=True).effective_bits,
        "`effective_bits`, one outlier column": layer(column=True).effective_bits,
    }
    shown = {name: value for name, value in rows(section("Size and bits")) if name in expected}
    assert shown == {
        name: f"{value:.4f}" if "effective" in name else f"{value:g}"
        for name, value in expected.items()
    }


def summary(bits: float, stored: float, input_bits: int) -> ModelSummary:
    """A decoder's query layer and its self-attention."""
    query = LayerRecord(
        "query", "decoder", "qkv", (144, 144), "token", stored, bits, input_bits=input_bits
    )
    return ModelSummary((query,), (AttentionRecord("attention", "decoder", "self", 6, 24),), 0, 0)


def test_costs_of_the_example_are_those_of_the_cost_model() -> None:
    stored = layer().stored_bits
    workload = Workload(1.0, {"frame": 1}, prompt_tokens=4, generated_tokens=10)
    plain, w4, w4a8 = (
        cost_of(one, [workload])
        for one in (summary(32, 144 * 144 * 32, 32), summary(4, stored, 32), summary(4, stored, 8))
    )

    def both(phases: Any, name: str = "") -> list[str]:
        return [
            f"{getattr(phase, name) if name else phase:.0f}"
            for phase in (phases.prefill, phases.decode)
        ]

    expected = {
        "MACs, layer": both(plain.macs, "layers"),
        "MACs, attention": both(plain.macs, "attention"),
        "BOPs, float": both(plain.bit_operations),
        "BOPs, W4 g32": both(w4.bit_operations),
        "BOPs, W4 g32 A8": both(w4a8.bit_operations),
        "`weights`, float, bytes": both(plain.memory_io, "weights"),
        "`weights`, W4 g32, bytes": both(w4.memory_io, "weights"),
        "`key_value`, bytes": both(w4.memory_io, "key_value"),
        "`activations`, W4 g32 A8, bytes": both(w4a8.memory_io, "activations"),
    }
    shown = {name: figures for name, *figures in rows(section("Arithmetic")) if name in expected}
    assert shown == expected
    by_hand = " ".join(section("Arithmetic").split())
    assert f"32 = {expected['BOPs, W4 g32'][0]} BOPs" in by_hand

"""The distance of an exported encoder from its simulation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export.models import quantized
from file_and_simulation import distance, distances, graph_of
from tiny import ListCorpus, tiny_whisper, tone

from edge_asr.config import target_named
from edge_asr.data.corpus import Utterance
from edge_asr.export.write import export
from edge_asr.models.loading import load_checkpoint
from edge_asr.quant.formats import Grid

pytest.importorskip("onnxruntime")


def test_a_file_of_quantized_weights_is_as_near_as_floats_can_be(tmp_path: Path) -> None:
    exact = load_checkpoint(str(tiny_whisper(tmp_path / "float")))
    own = quantized(exact, Grid(4, granularity="group", group_size=16))
    folder = export(own, target_named("onnx_nbits"), tmp_path / "out")
    clips = [
        one for one in ListCorpus([(tone(0.7), ""), (tone(1.3), "")]) if isinstance(one, Utterance)
    ]
    found = dict(distances(own, exact, folder, iter(clips)))
    assert list(found) == [clip.id for clip in clips]
    for one in found.values():
        assert one.file_simulation < 1e-4
        assert 0 < one.changed_simulation < 1e-4
        assert one.simulation_float > 0.01
        assert one.file_float == pytest.approx(one.simulation_float, rel=1e-3)
    own_parameters = dict(graph_of(exact).named_parameters())
    assert {name.split(".")[0] for name in own_parameters} == {"encoder", "keys", "values"}


def test_distances_are_relative() -> None:
    values = torch.randn(3, 4)
    assert distance(1.5 * values, values) == pytest.approx(0.5)

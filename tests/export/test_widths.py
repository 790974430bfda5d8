"""Widths of published models against block sizes: exported and read back, or refused with why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from export.models import READ_IN_BLOCKS, SIGNED, WIDTHS, quantized
from tiny import tiny_whisper

from edge_asr.config import target_named
from edge_asr.errors import UserError
from edge_asr.export.base import exporters
from edge_asr.export.write import export
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.formats import Grid
from edge_asr.quant.layers import quantized_layers

for package in ("onnxruntime", "compressed_tensors", "gguf"):
    pytest.importorskip(package)
BLOCKS = (32, 64, 128, 256)
CASES = [
    # The others, layer by layer, in test_onnx.py: a graph takes seconds to make.
    ("onnx_nbits", 256),
    *(("compressed_tensors", block) for block in BLOCKS),
    *(("ggml_q4_0", block) for block in BLOCKS),
]


@pytest.fixture(scope="module", params=WIDTHS[:3])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Its layers read `WIDTHS[:3]`, and those behind the activation four times as many columns,
    which are the others."""
    width = request.param
    folder = tiny_whisper(tmp_path_factory.mktemp("wide"), width=width, inner=4 * width, heads=8)
    return load_checkpoint(str(folder), name=f"width-{width}")


def with_blocks(wide: Checkpoint, target: str, block: int) -> Checkpoint:
    blocks: dict[str, Any] = {"granularity": "group", "group_size": block}
    if target == "onnx_nbits":
        return quantized(wide, Grid(4, **blocks))
    grid = Grid(4, **SIGNED, signed_scale=True, **blocks)
    if target == "compressed_tensors":
        return quantized(wide, grid)
    return quantized(wide, grid, READ_IN_BLOCKS, others={"embedding": None, "head": READ_IN_BLOCKS})


@pytest.mark.parametrize(("target", "block"), CASES)
def test_a_block_fits_a_width_or_is_refused(
    wide: Checkpoint, target: str, block: int, tmp_path: Path
) -> None:
    own = with_blocks(wide, target, block)
    columns = {layer.in_features for layer in wide.model.modules() if hasattr(layer, "in_features")}
    assert columns <= {*WIDTHS}
    fits = {
        "onnx_nbits": True,
        "compressed_tensors": all(width % block == 0 for width in columns),
        "ggml_q4_0": block == 32,
    }[target]
    if not fits:
        with pytest.raises(UserError, match=r"group_size=|groups of") as refused:
            export(own, target_named(target), tmp_path / "out")
        assert str(refused.value).startswith(f"target={target}: ")
        assert not list(tmp_path.iterdir())
        return
    folder = export(own, target_named(target), tmp_path / "out")  # which compares every weight
    assert set(exporters[target]().read_back(folder)) >= set(quantized_layers(own.model))

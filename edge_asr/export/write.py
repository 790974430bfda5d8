"""Write a model for a target, and be sure that it is the same one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

# Importing the formats registers their exporters.
import edge_asr.export.formats  # noqa: F401
from edge_asr.config import target_named
from edge_asr.errors import UserError
from edge_asr.export.base import (
    GGML_TARGETS,
    ONNX_TARGETS,
    exporters,
    format_of,
    require_packages,
)
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.layers import QuantizedLinear, quantized_layers, runtime_ops
from edge_asr.quant.target import Target

READABLE = 0o755  # a temporary folder is its maker's alone


def export(checkpoint: Checkpoint, target: Target, folder: Path) -> Path:
    """Write a quantized model for `target` into `folder`, which appears only once it is whole.

    Raises:
        UserError: the target or its format cannot hold the model, something that it needs is not
            installed, `folder` is there already, or what was read back differs.
    """
    exporter = exporters[target.name]()
    require_packages(f"--target={target.name}", exporter.packages, exporter.extra)
    if folder.exists():
        raise UserError(f"--out={folder}: is there already; choose another folder or remove it")
    refuse_model(checkpoint, target)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        exporter.write(checkpoint, made)
        compare(checkpoint, exporter.read_back(made))
        made.chmod(READABLE)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def write_onnx(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a model, float or quantized, for ONNX Runtime into a folder that is there.

    Raises UserError where no target of it can hold the model.
    """
    _write_for("onnxruntime", ONNX_TARGETS, checkpoint, folder)


def write_ggml(checkpoint: Checkpoint, folder: Path) -> None:
    """The same for whisper.cpp, a float model in float16."""
    _write_for("whisper_cpp", GGML_TARGETS, checkpoint, folder)


def _write_for(runtime: str, targets: Sequence[str], checkpoint: Checkpoint, folder: Path) -> None:
    reasons = []
    for name in targets:
        target = target_named(name)
        try:
            refuse_layers(checkpoint, target)
        except UserError as error:
            reasons.append(str(error))
        else:
            exporter = exporters[name]()
            exporter.write(checkpoint, folder)
            compare(checkpoint, exporter.read_back(folder))
            return
    raise UserError(f"runtime={runtime}: " + "; ".join(reasons))


def refuse_model(checkpoint: Checkpoint, target: Target) -> None:
    """Raises UserError where `target` cannot hold a layer of the model, or what runs with it."""
    if not quantized_layers(checkpoint.model):
        raise UserError(f"{checkpoint.name}: is not quantized; there is nothing to export")
    refuse_layers(checkpoint, target)


def refuse_layers(checkpoint: Checkpoint, target: Target) -> None:
    """The same, but for a float model, which has no such layer."""
    for name, layer in checkpoint.model.named_modules():
        if not isinstance(layer, QuantizedLinear):
            continue
        target.refuse(name, format_of(layer), layer.in_features)
        weight = layer.quantized
        if weight is not None and weight.parameters.order is not None:
            raise UserError(
                f"target={target.name}: groups of {name} run over its columns in an order of their "
                "own, which no format holds; quantize with method.rounding.ordered_groups=false"
            )
        if weight is not None and weight.outliers is not None and not target.outliers:
            raise UserError(
                f"target={target.name}: {name} keeps weights in floating point, which its runtime "
                "cannot; quantize with method/outliers=none"
            )
    ops = runtime_ops(checkpoint.model)
    if ops and not target.runtime_ops:
        raise UserError(
            f"target={target.name}: {next(iter(ops))} runs with the model, and its runtime has no "
            "operations that do not belong to the checkpoint; quantize with method/transform=none"
        )


def compare(checkpoint: Checkpoint, found: Mapping[str, Tensor]) -> None:
    """Raises UserError unless what was read back is what the simulation computes with."""
    for name, layer in quantized_layers(checkpoint.model).items():
        if name not in found or not torch.equal(found[name], layer.weight.detach().cpu()):
            raise UserError(
                f"{name}: is not the same in the file that was written; nothing was exported. This "
                "is a bug"
            )

"""Write a model for a target, and be sure that it is the same one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Importing the formats registers their exporters.
import edge_asr.export.formats  # noqa: F401
from edge_asr.config import target_named
from edge_asr.errors import UserError
from edge_asr.export.base import (
    RUNTIME_TARGETS,
    exporters,
    format_of,
    narrowest,
    require_packages,
    stored_weight,
    weighted_layers,
)
from edge_asr.export.exported import describe
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.layers import quantized_layers, runtime_ops
from edge_asr.quant.target import Target

READABLE = 0o755  # a temporary folder is its maker's alone


def export(checkpoint: Checkpoint, target: Target, folder: Path) -> Path:
    """Write a quantized model for `target` into `folder`, which appears only once it is whole.

    Raises:
        UserError: the target or its format cannot hold the model, something that it needs is not
            installed, `folder` is there already, or what was read back differs.
    """
    _refuse_place(target, folder)
    refuse_model(checkpoint, target)
    return write_whole(checkpoint, target.name, folder)


def export_float(checkpoint: Checkpoint, target: Target, folder: Path) -> Path:
    """Write a float model in the format of `target`, for a quantized one to be compared with.

    Raises UserError as `export`, and where the format is none of float models.
    """
    _refuse_place(target, folder)
    if not exporters[target.name].writes_floats:
        raise UserError(
            f"--float --target={target.name}: its format is one of quantized models alone; the "
            f"float one is {checkpoint.files.reference}"
        )
    return write_whole(checkpoint, target.name, folder)


def _refuse_place(target: Target, folder: Path) -> None:
    exporter = exporters[target.name]
    require_packages(f"--target={target.name}", exporter.packages, exporter.extra)
    if folder.exists():
        raise UserError(f"--out={folder}: is there already; choose another folder or remove it")


def write_whole(checkpoint: Checkpoint, target: str, folder: Path) -> Path:
    """The same for any model that the target holds, a float one too; nothing else is asked."""
    exporter = exporters[target]()
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        exporter.write(checkpoint, made)
        compare(checkpoint, exporter.read_back(made))
        describe(checkpoint, target, made)
        made.chmod(READABLE)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def write_for(runtime: str, checkpoint: Checkpoint, folder: Path) -> None:
    """Write a model, float or quantized, for a runtime into a folder that is there: in the format
    of the first of its targets that holds the model.

    Raises UserError where none does.
    """
    reasons = []
    for name in RUNTIME_TARGETS[runtime]:
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
    formats = {
        slot: format_of(layer, stored_weight(checkpoint, slot))
        for slot, layer in weighted_layers(checkpoint)
    }
    for slot, layer in weighted_layers(checkpoint):
        name, weight = slot.name, stored_weight(checkpoint, slot)
        if any(one != TensorFormat() for one in formats.values()):
            target.refuse(slot, formats[slot], layer.weight[0].numel())
        if weight is not None and weight.parameters.order is not None:
            raise UserError(
                f"target={target.name}: groups of {name} run over its columns in an order of their "
                "own, which no format holds; quantize with method.rounding.ordered_groups=false"
            )
        halves = weight is None or narrowest(weight.parameters.scale).dtype == torch.float16
        if target.half_scales and not halves:
            raise UserError(
                f"target={target.name}: {name} has scales that are no float16 numbers, which are "
                "exported alone; quantize with method/range=minmax or mse"
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
    for name in {*quantized_layers(checkpoint.model), *found}:
        layer: Any = checkpoint.model.get_submodule(name)
        own = layer.weight.detach().flatten(1).cpu()
        if name not in found or not torch.equal(found[name].flatten(1), own):
            raise UserError(
                f"{name}: is not the same in the file that was written; nothing was exported. This "
                "is a bug"
            )

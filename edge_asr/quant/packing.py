"""A quantized weight as the tensors that are stored of it, and back, bit for bit.

Codes of b bits lie side by side without gaps: code number i of a tensor is bits b i to b i + b - 1
of a little-endian stream, and the last byte is filled up with zeros. Signed codes are stored less
their lowest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_asr.quant.formats import INDEX_BITS, Grid
from edge_asr.quant.grid import DoubleQuantized, GridParameters, away_from_zero, code_dtype
from edge_asr.quant.weight import FloatWeights, QuantizedWeight


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes from 0 to 2^bits - 1 (`bits` 1 to 8, any shape) as bytes, uint8 [ceil(n bits / 8)]."""
    values = codes.detach().cpu().numpy().astype(np.uint8).reshape(-1, 1)
    stream = np.unpackbits(values, axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(stream.reshape(-1), bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of `pack`, uint8 [count]."""
    stream = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little")
    values = np.packbits(stream.reshape(count, bits), axis=1, bitorder="little")
    return torch.from_numpy(values[:, 0].copy())


def _indices(values: Tensor) -> Tensor:
    return values.to(torch.uint16)


def weight_tensors(weight: QuantizedWeight) -> dict[str, Tensor]:
    """What is stored of `weight`, by name; `weight_description` says how to read it."""
    grid, parameters, outliers = weight.grid, weight.parameters, weight.outliers
    codes = weight.codes.short() - grid.lowest
    kept = None if outliers is None else outliers.columns
    coded = codes if kept is None else codes[:, ~kept]
    tensors = {"codes": pack(coded, grid.bits)}
    if parameters.double_scale is None:
        tensors["scale"] = parameters.scale.half()
    else:
        tensors |= _double_tensors("scale", parameters.double_scale)
    if grid.stores_zero:
        if parameters.double_zero is not None:
            tensors |= _double_tensors("zero", parameters.double_zero)
        elif grid.zero_point == "integer":
            tensors["zero"] = pack(parameters.zero - grid.lowest, grid.bits)
        else:
            tensors["zero"] = parameters.zero.half()
    if parameters.order is not None:
        tensors["order"] = _indices(parameters.order)
    if outliers is not None:
        tensors |= _outlier_tensors(outliers)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _double_tensors(name: str, double: DoubleQuantized) -> dict[str, Tensor]:
    return {
        f"{name}_codes": pack(double.codes, double.bits),
        f"{name}_scale": double.scale.half(),
        f"{name}_zero": double.zero.half(),
    }


def _outlier_tensors(outliers: FloatWeights) -> dict[str, Tensor]:
    """Whole columns by index; single weights as compressed rows."""
    tensors: dict[str, Tensor] = {}
    single = outliers.mask
    if outliers.columns is not None:
        tensors["columns"] = _indices(outliers.columns.nonzero()[:, 0])
        tensors["column_values"] = outliers.values[:, outliers.columns].half()
        single = single & ~outliers.columns
    if bool(single.any()):
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), single.sum(1).cumsum(0)])
        wide = torch.uint16 if int(starts[-1]) < 2**INDEX_BITS else torch.int32
        tensors["row_starts"] = starts.to(wide)
        tensors["indices"] = _indices(single.nonzero()[:, 1])
        tensors["values"] = outliers.values[single].half()
    return tensors


def weight_description(weight: QuantizedWeight) -> dict[str, Any]:
    """Everything but tensors, as JSON values."""
    parameters = weight.parameters

    def double(part: DoubleQuantized | None) -> dict[str, int] | None:
        return None if part is None else {"bits": part.bits, "run": part.run}

    return {
        "shape": list(weight.codes.shape),
        "grid": asdict(weight.grid),
        "columns_per_group": parameters.group_size,
        "groups": list(parameters.scale.shape),
        "double_scale": double(parameters.double_scale),
        "double_zero": double(parameters.double_zero),
    }


def read_weight(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    """The weight of which `weight_description` and `weight_tensors` are."""
    grid = Grid(**description["grid"])
    rows, columns = description["shape"]
    outliers = _read_outliers(rows, columns, tensors)
    kept = None if outliers is None else outliers.columns
    coded = columns if kept is None else columns - int(kept.sum())
    codes = unpack(tensors["codes"], grid.bits, rows * coded).short().reshape(rows, coded)
    if kept is not None:
        whole = torch.zeros(rows, columns, dtype=codes.dtype)
        whole[:, ~kept] = codes
        codes = whole
    codes = (codes + grid.lowest).to(code_dtype(grid))
    return QuantizedWeight(codes, _read_parameters(description, grid, tensors), grid, outliers)


def _read_parameters(
    description: Mapping[str, Any], grid: Grid, tensors: Mapping[str, Tensor]
) -> GridParameters:
    groups = description["groups"]
    doubles: dict[str, DoubleQuantized | None] = {}
    for name in ("scale", "zero"):
        double = description[f"double_{name}"]
        doubles[name] = double and DoubleQuantized(
            unpack(tensors[f"{name}_codes"], double["bits"], groups[0] * groups[1]).reshape(groups),
            tensors[f"{name}_scale"].float(),
            tensors[f"{name}_zero"].float(),
            **double,
        )
    double_scale, double_zero = doubles["scale"], doubles["zero"]
    if double_scale is None:
        scale = tensors["scale"].float()
    else:
        scale = away_from_zero(double_scale.values(), grid)
    if not grid.stores_zero:
        zero = torch.full_like(scale, 0 if grid.signed else (grid.steps + 1) / 2)
    elif double_zero is not None:
        zero = double_zero.values()
    elif grid.zero_point == "integer":
        zero = unpack(tensors["zero"], grid.bits, scale.numel()).float().reshape(groups)
        zero = zero + grid.lowest
    else:
        zero = tensors["zero"].float()
    order = tensors["order"].to(torch.int64) if "order" in tensors else None
    return GridParameters(
        scale, zero, description["columns_per_group"], order, double_scale, double_zero
    )


def _read_outliers(rows: int, columns: int, tensors: Mapping[str, Tensor]) -> FloatWeights | None:
    if not {"columns", "values"} & tensors.keys():
        return None
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    values = torch.zeros(rows, columns)
    whole = None
    if "columns" in tensors:
        whole = torch.zeros(columns, dtype=torch.bool)
        whole[tensors["columns"].to(torch.int64)] = True
        mask |= whole
        values[:, whole] = tensors["column_values"].float()
    if "values" in tensors:
        counts = torch.diff(tensors["row_starts"].to(torch.int64))
        row = torch.repeat_interleave(torch.arange(rows), counts)
        place = (row, tensors["indices"].to(torch.int64))
        mask[place] = True
        values[place] = tensors["values"].float()
    return FloatWeights(mask, values, whole)

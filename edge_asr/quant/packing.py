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
from edge_asr.quant.grid import (
    DoubleQuantized,
    GridParameters,
    away_from_zero,
    code_dtype,
    minimum_of,
)
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


def _packed_bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _short(values: Tensor) -> Tensor:
    return values.to(torch.uint16)


def weight_tensors(weight: QuantizedWeight) -> dict[str, Tensor]:
    """What is stored of `weight`, by name; `weight_description` says how to read it.

    Few tensors, since each has a line in the header of its file: `codes`; `scale` and `zero` or
    `minimum`, or
    where they are quantized themselves `levels` (the codes of both) and `level_floats` (scale and
    zero point of each); `order`; whole outlier columns as `columns` and `column_values`; single
    outliers as `values` with `indices`, which begin with where every row starts.
    """
    grid, parameters, outliers = weight.grid, weight.parameters, weight.outliers
    codes = weight.codes.short() - grid.lowest
    kept = None if outliers is None else outliers.columns
    tensors = {"codes": pack(codes if kept is None else codes[:, ~kept], grid.bits)}
    doubles = [one for one in (parameters.double_scale, parameters.double_zero) if one is not None]
    if doubles:
        tensors["levels"] = torch.cat([pack(one.codes, one.bits) for one in doubles])
        floats = [part for one in doubles for part in (one.scale, one.zero)]
        tensors["level_floats"] = torch.stack(floats).half()
    if parameters.double_scale is None:
        tensors["scale"] = parameters.scale.half()
    if grid.stores_zero and parameters.double_zero is None:
        zero = parameters.zero
        if grid.zero_point == "integer":
            tensors["zero"] = pack(zero - grid.lowest, grid.bits)
        elif grid.zero_point == "minimum":
            tensors["minimum"] = minimum_of(zero, parameters.scale, grid).half()
        else:
            tensors["zero"] = zero.half()
    if parameters.order is not None:
        tensors["order"] = _short(parameters.order)
    if outliers is not None:
        tensors |= _outlier_tensors(outliers)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _outlier_tensors(outliers: FloatWeights) -> dict[str, Tensor]:
    """Whole columns by index; single weights as compressed rows."""
    tensors: dict[str, Tensor] = {}
    single = outliers.mask
    if outliers.columns is not None:
        tensors["columns"] = _short(outliers.columns.nonzero()[:, 0])
        tensors["column_values"] = outliers.values[:, outliers.columns].half()
        single = single & ~outliers.columns
    if bool(single.any()):
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), single.sum(1).cumsum(0)])
        wide = int(starts[-1]) >= 2**INDEX_BITS
        heads = starts.to(torch.int32).view(torch.uint16) if wide else _short(starts)
        tensors["indices"] = torch.cat([heads, _short(single.nonzero()[:, 1])])
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


def _read_doubles(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, DoubleQuantized]:
    rows, groups = description["groups"]
    found: dict[str, DoubleQuantized] = {}
    first = 0
    for name in ("scale", "zero"):
        double = description[f"double_{name}"]
        if double is not None:
            last = first + _packed_bytes(rows * groups, double["bits"])
            scale, zero = tensors["level_floats"][2 * len(found) :][:2].float()
            codes = unpack(tensors["levels"][first:last], double["bits"], rows * groups)
            found[name] = DoubleQuantized(codes.reshape(rows, groups), scale, zero, **double)
            first = last
    return found


def _read_parameters(
    description: Mapping[str, Any], grid: Grid, tensors: Mapping[str, Tensor]
) -> GridParameters:
    doubles = _read_doubles(description, tensors)
    double_scale, double_zero = doubles.get("scale"), doubles.get("zero")
    if double_scale is None:
        scale = tensors["scale"].float()
    else:
        scale = away_from_zero(double_scale.values(), grid)
    if not grid.stores_zero:
        zero = torch.full_like(scale, 0 if grid.signed else (grid.steps + 1) / 2)
    elif double_zero is not None:
        zero = double_zero.values()
    elif grid.zero_point == "integer":
        zero = unpack(tensors["zero"], grid.bits, scale.numel()).float().reshape(scale.shape)
        zero = zero + grid.lowest
    elif grid.zero_point == "minimum":
        zero = -tensors["minimum"].float() / scale
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
        count, indices = len(tensors["values"]), tensors["indices"]
        heads, column = indices[: len(indices) - count], indices[len(indices) - count :]
        starts = heads if len(heads) == rows + 1 else heads.view(torch.int32)
        row = torch.repeat_interleave(torch.arange(rows), torch.diff(starts.to(torch.int64)))
        place = (row, column.to(torch.int64))
        mask[place] = True
        values[place] = tensors["values"].float()
    return FloatWeights(mask, values, whole)

"""Packed weights: every width round-trips, and reads back bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.quant.formats import BITS, SYMMETRIC, Grid
from edge_asr.quant.outlier_rule import kept_weights
from edge_asr.quant.packing import (
    pack,
    read_weight,
    unpack,
    weight_description,
    weight_tensors,
)
from edge_asr.quant.range.double_quantization import double_quantized_parameters
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.weight import QuantizedWeight, round_nearest


def bit_by_bit(codes: list[int], bits: int) -> list[int]:
    """The same stream, written one bit at a time."""
    stream = [code >> place & 1 for code in codes for place in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [
        sum(bit << place for place, bit in enumerate(stream[start : start + 8]))
        for start in range(0, len(stream), 8)
    ]


@given(st.integers(1, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_codes_of_every_width_round_trip(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert packed.tolist() == bit_by_bit(codes, bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes


def weight_of(grid: Grid, rows: int = 21, columns: int = 37) -> QuantizedWeight:
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(rows, columns))).float()
    return round_nearest(weight, minmax_parameters(weight, grid), grid)


def check_read_back(weight: QuantizedWeight) -> None:
    tensors, description = weight_tensors(weight), weight_description(weight)
    again = read_weight(description, tensors)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert again.grid == weight.grid
    for name in ("scale", "zero"):
        one, other = (getattr(w.parameters, name) for w in (again, weight))
        assert torch.equal(one, other)
    assert again.stored_bits == weight.stored_bits
    bits = sum(8 * tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert 0 <= bits - weight.stored_bits < 8 * len(tensors) + 8


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [None, 16])
def test_asymmetric_weights_read_back(bits: int, group_size: int | None) -> None:
    grouped = "channel" if group_size is None else "group"
    for signed in (False, True):
        grid = Grid(bits, signed=signed, granularity=grouped, group_size=group_size)  # type: ignore[arg-type]
        check_read_back(weight_of(grid))
    floating = dataclasses.replace(grid, zero_point="float", include_zero=False)
    check_read_back(weight_of(floating))


@pytest.mark.parametrize("bits", BITS)
def test_minima_read_back(bits: int) -> None:
    """As ggml computes with them, to the last bit: `d q + m` in halves."""
    grid = Grid(bits, zero_point="minimum", include_zero=False, granularity="group", group_size=16)
    weight = weight_of(grid)
    check_read_back(weight)
    stored = weight_tensors(weight)
    scale, minimum = (
        stored[name].float().repeat_interleave(16, 1)[:, : weight.codes.shape[1]]
        for name in ("scale", "minimum")
    )
    assert torch.equal(weight.dequantize(), scale * weight.codes + minimum)


@pytest.mark.parametrize("convention", SYMMETRIC)
def test_symmetric_weights_read_back(convention: str) -> None:
    check_read_back(weight_of(Grid(4, symmetric=True, **SYMMETRIC[convention])))  # type: ignore[arg-type]


@pytest.mark.parametrize("zero_bits", [3, 5])
def test_doubly_quantized_scales_read_back(zero_bits: int) -> None:
    grid = Grid(3, include_zero=False, zero_point="float", granularity="group", group_size=8)
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(21, 37))).float()
    first = minmax_parameters(weight, dataclasses.replace(grid, half_scales=False))
    parameters = double_quantized_parameters(
        first, grid, scale_bits=3, zero_bits=zero_bits, group_size=16
    )
    check_read_back(round_nearest(weight, parameters, grid))
    ordered = dataclasses.replace(parameters, order=torch.randperm(37))
    check_read_back(round_nearest(weight, ordered, grid))


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("whole_columns", [False, True])
def test_outliers_read_back(share: float, whole_columns: bool) -> None:
    weight = weight_of(Grid(3))
    generator = torch.Generator().manual_seed(0)
    single = torch.rand(weight.codes.shape, generator=generator) < share
    columns = None
    if whole_columns:
        columns = torch.zeros(weight.codes.shape[1], dtype=torch.bool)
        columns[::5] = True
    values = torch.randn(weight.codes.shape, generator=generator)
    check_read_back(dataclasses.replace(weight, outliers=kept_weights(values, single, columns)))


def test_more_single_outliers_than_sixteen_bits_count() -> None:
    weight = weight_of(Grid(2), rows=300, columns=260)
    values = torch.randn(weight.codes.shape, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(weight.codes.shape, dtype=torch.bool)
    kept = kept_weights(values, everywhere, None)
    assert kept is not None
    assert kept.single_weights > 2**16
    check_read_back(dataclasses.replace(weight, outliers=kept))


def test_ggmls_convention_puts_the_extreme_on_the_lowest_code() -> None:
    """q4_0 of ggml: d = max / -8 with the sign of the value of largest magnitude, codes q = x / d
    from -8 to 7 (stored plus 8), written out here value by value."""
    grid = Grid(
        4, symmetric=True, signed=True, signed_scale=True, granularity="group", group_size=32,
        half_scales=False,
    )  # fmt: skip
    weight = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 64))).float()
    weight[0, 3], weight[1, 40] = 9.0, -9.0
    rounded = round_nearest(weight, minmax_parameters(weight, grid), grid)
    for row in range(5):
        for group in range(2):
            values = weight[row, 32 * group : 32 * group + 32]
            extreme = values[values.abs().argmax()]
            scale = float(extreme) / -8
            assert float(rounded.parameters.scale[row, group]) == pytest.approx(scale, rel=1e-6)
            codes = rounded.codes[row, 32 * group : 32 * group + 32]
            expected = [max(-8, min(7, round(float(value) / scale))) for value in values]
            assert codes.tolist() == expected
            assert int(codes[values.abs().argmax()]) == -8

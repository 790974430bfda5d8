"""HQQ against its authors' package and against a loop over the groups."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from options import composed
from quant.passes import quantized_with, stages
from quant.sites import served_grid, site_context
from tiny import ListCorpus, tone

from edge_asr.calibration.batches import calibration_batches
from edge_asr.errors import UserError
from edge_asr.experiments.ptq import run_experiment
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.range.hqq import Hqq, hqq_parameters, shrink, starting_point
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.rounding.gptq import Gptq
from edge_asr.quant.rounding.nearest import Nearest
from edge_asr.quant.weight import round_nearest

PUBLISHED: dict[str, Any] = {"lp_norm": 0.7, "beta": 10.0, "kappa": 1.01, "iterations": 20}


def heavy_tailed(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Weights with a few large ones, of the size that trained layers have, float32."""
    values = np.random.default_rng(seed).standard_t(4, (rows, columns)) * 0.05
    return torch.from_numpy(values).float()


def float_grid(bits: int, group_size: int | None, **options: Any) -> Grid:
    """The grid that HQQ makes of the user's, at full precision unless told."""
    asked = Grid(
        bits,
        granularity="group" if group_size else "channel",
        group_size=group_size,
        **{"half_scales": False, **options},
    )
    return served_grid(Hqq(), asked)


def slow_hqq(
    weight: np.ndarray,
    bits: int,
    size: int,
    *,
    lp_norm: float,
    beta: float,
    kappa: float,
    iterations: int,
    round_zero: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point [rows, groups], group by group and weight by weight in float64."""
    rows, columns = weight.shape
    groups = [(row, start) for row in range(rows) for start in range(0, columns, size)]
    values = {key: weight[key[0], key[1] : key[1] + size].astype(float) for key in groups}
    scales, zeros = {}, {}
    for key, part in values.items():
        extent = part.max() - part.min()
        scales[key] = 1.0 if extent <= 1e-4 else max(extent / (2**bits - 1), 1 / 20_000)
        zeros[key] = -part.min() / scales[key]
        if round_zero:
            zeros[key] = np.round(zeros[key])
    least = np.inf
    for _ in range(iterations):
        deviations = []
        for key, part in values.items():
            scale, zero, terms = scales[key], zeros[key], []
            for value in part:
                code = np.clip(np.round(value / scale + zero), 0, 2**bits - 1)
                error = value - scale * (code - zero)
                deviations.append(abs(error))
                small = 0.0
                if error:
                    size_left = abs(error) - abs(error) ** (lp_norm - 1) / beta
                    small = np.sign(error) * max(size_left, 0.0)
                terms.append(code - (value - small) / scale)
            zeros[key] = np.mean(terms)
        beta *= kappa
        if np.mean(deviations) >= least:
            break
        least = np.mean(deviations)
    shape = (rows, -1)
    return (
        np.array([scales[key] for key in groups]).reshape(shape),
        np.array([zeros[key] for key in groups]).reshape(shape),
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("changed", [{}, {"kappa": 1.5}, {"lp_norm": 1.0}, {"iterations": 2}])
def test_zero_points_are_those_of_the_slow_loop(bits: int, changed: dict[str, Any]) -> None:
    weight = heavy_tailed(bits, 4, 70).double()
    weight[1, :32] = 0.0
    options = {**PUBLISHED, **changed, "round_zero": bits == 4}
    grid = float_grid(bits, 32)
    fitted = hqq_parameters(weight, grid, **options)
    scale, zero = slow_hqq(weight.numpy(), bits, 32, **options)
    np.testing.assert_allclose(fitted.scale, scale, rtol=1e-12)
    np.testing.assert_allclose(fitted.zero, zero, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [64, 32, 16])
def test_codes_and_zero_points_are_those_of_the_authors_package(bits: int, size: int) -> None:
    quantizer = pytest.importorskip("hqq.core.quantize").Quantizer
    weight = heavy_tailed(10 * bits + size, 48, 192)
    weight[2, :size] = 0.3
    codes, meta = quantizer.quantize(
        weight,
        nbits=bits,
        group_size=size,
        optimize=True,
        round_zero=bits == 4,
        axis=1,
        bitpack=False,
        device="cpu",
    )
    # The default optimizer of release 0.2.8 lost the growth of beta when it was refactored.
    part = Hqq(kappa=1.0)
    grid = float_grid(bits, size)
    fitted = part.fit(weight, grid, None, None)  # type: ignore[arg-type]
    shape = fitted.scale.shape
    np.testing.assert_allclose(fitted.scale, meta["scale"].reshape(shape), rtol=1e-6)
    # Both work in float32, one with scales and one with their inverses.
    np.testing.assert_allclose(fitted.zero, meta["zero"].reshape(shape), rtol=1e-6, atol=1e-5)
    assert torch.equal(
        round_nearest(weight, fitted, grid).codes, codes.reshape(48, 192).to(torch.uint8)
    )


@pytest.mark.parametrize("lp_norm", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("gain", [1.0, 20.0])
@pytest.mark.parametrize("kappa", [1.01, 1.3])
def test_beta_grows_as_in_the_authors_other_optimizer(
    lp_norm: float, gain: float, kappa: float
) -> None:
    # `optimize_weights_proximal_v2` does grow beta; told not to stop early, its steps are ours
    # for as long as the error falls, which eight steps on these weights let it do.
    optimize = pytest.importorskip("hqq.core.optimize").optimize_weights_proximal_v2
    weight = heavy_tailed(1, 40, 64) * gain
    grid = float_grid(3, None)
    start = starting_point(weight, grid, round_zero=False)
    theirs = {"lp_norm": lp_norm, "beta": 10.0, "kappa": kappa, "iters": 8}
    theirs |= {"tol": 0.0, "early_stop": False, "scale_gridsearch": False}
    codes, _, zero = optimize(
        weight, 1 / start.scale, start.zero, [0, 7], axis=1, device="cpu", opt_params=theirs
    )
    ours = {"lp_norm": lp_norm, "beta": 10.0, "kappa": kappa, "iterations": 8}
    fitted = hqq_parameters(weight, grid, **ours, round_zero=False)
    np.testing.assert_allclose(fitted.zero, zero, rtol=1e-6, atol=1e-5)
    assert torch.equal(round_nearest(weight, fitted, grid).codes, codes.to(torch.uint8))


def test_beta_grows_every_iteration() -> None:
    weight = heavy_tailed(2, 8, 64)
    grid = float_grid(2, 32)
    zeros = [
        hqq_parameters(weight, grid, **{**PUBLISHED, "kappa": kappa}, round_zero=False).zero
        for kappa in (1.0, 1.3)
    ]
    assert not torch.allclose(zeros[0], zeros[1], atol=1e-4)


def test_the_threshold_lowers_magnitudes_and_keeps_signs() -> None:
    error = torch.tensor([-3.0, -0.01, 0.0, 0.01, 3.0])
    expected = 3.0 - 3.0**-0.3 / 10
    torch.testing.assert_close(
        shrink(error, 10.0, 0.7), torch.tensor([-expected, 0.0, 0.0, 0.0, expected])
    )


def lp_error(weight: torch.Tensor, fitted: GridParameters, grid: Grid, norm: float) -> float:
    error = round_nearest(weight, fitted, grid).dequantize() - weight
    return float(error.abs().pow(norm).double().sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("size", [None, 32, 60])
@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_the_norm_of_the_error_is_smaller_than_by_min_max(
    bits: int, size: int | None, gain: float
) -> None:
    # No theorem: the authors stop on the mean error of the whole matrix and keep the last step
    # even where it did not help. A few rows can lose by a hair; these draws do not.
    grid = float_grid(bits, size)
    for seed in range(3):
        weight = heavy_tailed(seed, 64, 256) * gain
        fitted = Hqq(round_zero=False).fit(weight, grid, None, None)  # type: ignore[arg-type]
        before = lp_error(weight, minmax_parameters(weight, grid), grid, 0.7)
        assert lp_error(weight, fitted, grid, 0.7) < before


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    size=st.sampled_from([None, 32, 20]),
    columns=st.integers(2, 70),
    iterations=st.integers(1, 20),
    seed=st.integers(0, 10_000),
)
def test_without_a_threshold_the_squared_error_never_rises(
    bits: int, size: int | None, columns: int, iterations: int, seed: int
) -> None:
    # A tiny beta shrinks every error to nothing: what is left alternates between the best codes
    # and the best zero points for the squared error, and neither can raise it.
    weight = heavy_tailed(seed, 3, columns).double()
    grid = float_grid(bits, size)
    part = Hqq(beta=1e-9, iterations=iterations, round_zero=False)
    fitted = part.fit(weight, grid, None, None)  # type: ignore[arg-type]
    before = lp_error(weight, starting_point(weight, grid, round_zero=False), grid, 2.0)
    assert lp_error(weight, fitted, grid, 2.0) <= before * (1 + 1e-9) + 1e-20


def test_it_makes_a_grid_with_float_zero_points_that_need_not_hold_zero() -> None:
    asked = Grid(3, granularity="group", group_size=16)
    made = served_grid(Hqq(), asked)
    assert (made.zero_point, made.include_zero, made.bits) == ("float", False, 3)
    assert made.minimum_scale == 1 / 2e4
    weight = heavy_tailed(3, 5, 40)
    quantized = Nearest().round(site_context(weight, torch.randn(9, 40), made, Hqq()))["layer"]
    # 16 bits for the scale and 16 for the zero point of each of the three groups of a row.
    assert quantized.stored_bits == 5 * (40 * 3 + 3 * 32)
    for stored in (quantized.parameters.scale, quantized.parameters.zero):
        assert torch.equal(stored, stored.half().float())
    assert not torch.equal(quantized.parameters.zero, quantized.parameters.zero.round())


@pytest.mark.parametrize("signed", [False, True])
def test_a_signed_grid_only_moves_the_codes(signed: bool) -> None:
    weight = heavy_tailed(4, 6, 48)
    grid = float_grid(3, 16, signed=signed)
    fitted = Hqq().fit(weight, grid, None, None)  # type: ignore[arg-type]
    plain = Hqq().fit(weight, float_grid(3, 16), None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(fitted.zero - grid.lowest, plain.zero, rtol=1e-4, atol=1e-4)


def test_the_starting_zero_point_is_rounded_at_four_bits_only() -> None:
    weight = heavy_tailed(5, 4, 32)
    for bits, part, rounded in (
        (4, Hqq(), True),
        (3, Hqq(), False),
        (3, Hqq(round_zero=True), True),
        (4, Hqq(round_zero=False), False),
    ):
        grid = float_grid(bits, None)
        expected = hqq_parameters(weight, grid, **PUBLISHED, round_zero=rounded)
        fitted = part.fit(weight, grid, None, None)  # type: ignore[arg-type]
        assert torch.equal(fitted.zero, expected.zero)
        start = starting_point(weight, grid, round_zero=rounded).zero
        assert torch.equal(start, start.round()) == rounded


def test_constant_and_tiny_groups_stay_finite() -> None:
    weight = torch.cat([torch.full((1, 16), 4.0), torch.zeros(1, 16), torch.full((1, 16), -1e-6)])
    grid = float_grid(4, 16, half_scales=True)
    fitted = Hqq().fit(weight, grid, None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(
        round_nearest(weight, fitted, grid).dequantize(), weight, rtol=1e-3, atol=1e-5
    )


def test_gptq_rounds_on_hqqs_grid() -> None:
    weight = heavy_tailed(6, 12, 70)
    inputs = torch.randn(200, 70) @ torch.randn(70, 70)
    context = site_context(weight, inputs, float_grid(3, 32, half_scales=True), Hqq())
    error = context.statistics.output_error
    gptq, nearest = (part.round(context)["layer"].dequantize() for part in (Gptq(), Nearest()))
    assert error(weight - gptq) < 0.7 * error(weight - nearest)


def test_the_pass_puts_every_layer_on_hqqs_grid(moonshine: Checkpoint) -> None:
    batches = calibration_batches(moonshine, ListCorpus([(tone(1.0), "one two")]), 1, 1, seed=0)
    asked = Grid(3, granularity="group", group_size=32)
    model, result = quantized_with(moonshine, stages(range={"name": "hqq"}), asked, batches=batches)
    assert result.layers
    for name, layer in result.layers.items():
        assert layer.weight.grid == served_grid(Hqq(), asked)
        groups = layer.weight.parameters.scale.numel()
        assert layer.weight.stored_bits == 3 * layer.weight.codes.numel() + 32 * groups
        assert torch.equal(model.get_submodule(name).weight, layer.weight.dequantize())


def test_a_symmetric_grid_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"symmetric=true with method/range=hqq.*zero point"):
        served_grid(Hqq(), Grid(4, symmetric=True))
    results = f"results={tmp_path / 'runs'}"
    asked = composed("method=hqq", "symmetric=true", results, "model.path=nowhere")
    with pytest.raises(UserError, match=r"symmetric=true"):
        run_experiment(asked)
    assert not (tmp_path / "runs").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_defaults_are_the_authors_settings() -> None:
    assert dataclasses.asdict(Hqq()) == {**PUBLISHED, "round_zero": None}

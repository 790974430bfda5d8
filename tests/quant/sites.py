"""The context of one site, made of a weight matrix and the rows it is calibrated on."""

from __future__ import annotations

import torch

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.models.families.sites import Site
from edge_asr.models.tensors import Role, Slot
from edge_asr.quant.context import Fit, Layer, SiteContext
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.protection import sealed, without_outliers
from edge_asr.quant.range.minmax import MinMax, minmax_parameters
from edge_asr.quant.stages import LayerFit, Part, Range, SiteRounding
from edge_asr.quant.weight import QuantizedWeight


def correlated_inputs(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Random rows [rows, columns] with strong correlation and uneven column scales."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    scale = torch.exp(torch.randn(columns, generator=generator))
    return (torch.randn(rows, columns, generator=generator) @ mixing) * scale


def statistics_of(inputs: torch.Tensor, floats: torch.Tensor | None = None) -> InputStatistics:
    """The statistics of `inputs` [rows, columns], all rows valid and of one clip.

    With `floats`, what the float model reads, three clips have a third of the rows each.
    """
    paired = floats is not None
    statistics = InputStatistics(inputs.shape[1], paired=paired, held_out=paired)
    clips = inputs.unflatten(0, (3, -1)) if paired else inputs[None]
    valid = torch.ones(clips.shape[:2], dtype=torch.bool)
    statistics.update(clips, valid, None if floats is None else floats.unflatten(0, (3, -1)))
    return statistics


def site_context(
    weight: torch.Tensor,
    inputs: torch.Tensor,
    grid: Grid,
    ranges: Range | None = None,
    floats: torch.Tensor | None = None,
) -> SiteContext:
    """A site with one layer named `layer`."""
    statistics = statistics_of(inputs, floats)
    site = Site("fc1", "encoder", ("layer",), None, "frame")
    fit = LayerFit(ranges or MinMax(), grid, statistics, Layer("layer", False))
    return SiteContext(site, {"layer": weight}, statistics, {"layer": grid}, {"layer": fit})


def rounded(rounding: SiteRounding, context: SiteContext) -> QuantizedWeight:
    """`layer` of the site as the sequential pass stores it, outliers put back."""
    seen = context if rounding.updates_outliers else without_outliers(context)
    return sealed(type(rounding).__name__, seen, "layer", rounding.round(seen)["layer"])


def served_format(
    part: Part, grid: Grid, activation: ActivationGrid | None = None, role: Role = "fc1"
) -> TensorFormat:
    """What `part` makes of the format that is asked for."""
    slot = Slot("layer", "encoder", role, "linear")
    return part.constrain(TensorFormat(grid, activation), slot)


def served_grid(part: Part, grid: Grid, role: Role = "fc1") -> Grid:
    """What `part` makes of the grid of weights that is asked for."""
    served = served_format(part, grid, role=role).weights
    assert served is not None
    return served


def minmax_fit(grid: Grid) -> Fit:
    """What fits min-max ranges on `grid`."""

    def fit(weight: torch.Tensor, first: int = 0) -> GridParameters:
        del first
        return minmax_parameters(weight, grid)

    return fit

"""Walk a model block by block: capture, quantize, bake, go on with the quantized prefix.

Every block sees inputs that already passed through the quantized blocks before it, so later
layers are fitted to the errors of earlier ones (as GPTQ's authors do).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedModel

from edge_asr.calibration.capture import Batch, KeptOutputs, Outputs, Passage, Station
from edge_asr.memory import release_freed_memory
from edge_asr.models.families.base import Architecture, Site
from edge_asr.quant.activation import ActivationGrid, InputQuantizer, quantize_inputs
from edge_asr.quant.grid import Grid, QuantizedWeight
from edge_asr.quant.layers import install_layers
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.rounding.nearest import round_nearest
from edge_asr.quant.stages import LayerFit
from edge_asr.quant.work import BlockWork, Fit, Layer, ModelWork, Reconstruction, SiteWork


@dataclass(frozen=True)
class LayerResult:
    """One quantized layer.

    Attributes:
        weight: Its codes and grid.
        output_error: Mean square of the change of the layer's output that its weights make, in
            units of the output's variance, on the inputs of the quantized prefix.
        nearest_error: The same, had the weights only been rounded to the nearest grid point of
            their min-max range before the block was rewritten (but after the whole model was, as
            rotations do: see a run of `rtn` for what those change).
    """

    weight: QuantizedWeight
    output_error: float
    nearest_error: float


@dataclass(frozen=True)
class BlockResult:
    """One quantized block.

    Attributes:
        seconds: Wall time of all stages on it.
        reconstructions: What each learned stage did to its loss.
    """

    seconds: float
    reconstructions: tuple[Reconstruction, ...] = ()


@dataclass
class Quantization:
    """All quantized layers and blocks by name, warnings, and what a rewrite of the whole model
    did to its loss."""

    layers: dict[str, LayerResult] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    blocks: dict[str, BlockResult] = field(default_factory=dict)
    reconstructions: list[Reconstruction] = field(default_factory=list)

    def summary(self, block: str) -> str:
        """The block's name, and what learning did to its loss."""
        losses = [
            f"loss {learned.loss_before:.3g} to {learned.loss_after:.3g}"
            for learned in self.blocks[block].reconstructions
        ]
        return ", ".join([block, *losses])

    @property
    def output_error(self) -> float:
        """Summed output error of all layers."""
        return sum(layer.output_error for layer in self.layers.values())

    @property
    def nearest_error(self) -> float:
        """Summed output error that rounding to nearest would have had on the same inputs."""
        return sum(layer.nearest_error for layer in self.layers.values())


Progress = Callable[[str, int, int], None]


@torch.no_grad()
def quantize_model(
    model: PreTrainedModel,
    architecture: Architecture,
    batches: Sequence[Batch],
    recipe: Recipe,
    grid: Grid,
    *,
    activation: ActivationGrid | None = None,
    progress: Progress = lambda *_: None,
) -> Quantization:
    """Quantize every block of `model` in place by `recipe`.

    Args:
        model: The float model; the Linears of its blocks become `QuantizedLinear`s.
        architecture: Its map.
        batches: Calibration batches.
        recipe: The method.
        grid: The weight grid.
        activation: The grid of what the blocks' Linears read, or None to leave it float.
        progress: Called with (what goes on, blocks done, total) while a part learns, and with
            (block and its losses, done, total) after every block.
    """
    blocks = list(architecture.blocks(model.config))
    install_layers(model, (name for block in blocks for name in block.layers))
    bench = ModelWork(model, architecture, batches, grid, activation)
    bench.on_step = lambda step, steps: progress(f"model, step {step} of {steps}", 0, len(blocks))
    recipe.transform.rewrite_model(bench)
    walk = _Walk(model, architecture, recipe, grid, activation)
    walk.result.warnings += bench.warnings
    walk.result.reconstructions += bench.reconstructions
    stations = Passage(model, architecture, batches).stations()
    reference = None
    if recipe.learned:
        reference = Passage(copy.deepcopy(model), architecture, batches).stations()
    for done, station in enumerate(stations, start=1):
        targets = KeptOutputs() if reference is None else next(reference).outputs()
        walk.quantize(station, targets, partial(_show, progress, done - 1, len(blocks)))
        progress(walk.result.summary(station.block.module), done, len(blocks))
    return walk.result


def _show(progress: Progress, done: int, total: int, text: str) -> None:
    progress(text, done, total)


class _Walk:
    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        recipe: Recipe,
        grid: Grid,
        activation: ActivationGrid | None,
    ) -> None:
        self.model, self.architecture = model, architecture
        self.recipe, self.grid, self.activation = recipe, grid, activation
        self.result = Quantization()

    def quantize(self, station: Station, targets: Outputs, on_step: Callable[[str], None]) -> None:
        """Run all stages on one block.

        `targets` are the float model's outputs, if learned from; `on_step` hears how it goes.
        """
        began = time.perf_counter()
        work = BlockWork(
            self.model, self.architecture, station.block, station.module,
            station.calls, station.masks, self.grid, targets, self.activation,
        )  # fmt: skip
        work.on_evaluation = lambda step, steps, loss: on_step(
            f"{station.block.module}, step {step} of {steps}, loss {loss:.3g}"
        )
        nearest_errors: dict[str, float] = {}
        for site in station.block.sites:
            nearest_errors |= self._nearest_errors(work, site)
        self.recipe.transform.rewrite_block(work)
        self._quantize_inputs(work)
        self.recipe.learn_ranges(work)
        sites = [self._site(work, site) for site in station.block.sites]
        for bench in sites:
            self._keep_columns(work, bench)
        release_freed_memory()  # of the passes, before the wide matrices of rounding
        for name, weight in self.recipe.rounding.round_block(work, sites).items():
            self._bake(work, sites, name, weight, nearest_errors[name])
        for bench in sites:
            self.recipe.correction.repair(bench, work.layers(bench.site))
        self.result.warnings += work.warnings
        self.result.blocks[station.block.module] = BlockResult(
            time.perf_counter() - began, tuple(work.reconstructions)
        )
        release_freed_memory()

    def _nearest_errors(self, work: BlockWork, site: Site) -> dict[str, float]:
        """Output errors of plain rounding to nearest, before anything is rewritten."""
        errors = {}
        for name, layer in work.layers(site).items():
            weight = layer.weight.detach().cpu()
            nearest = round_nearest(weight, minmax_parameters(weight, self.grid), self.grid)
            rounded = nearest.dequantize()
            errors[name] = work.statistics(site).relative_output_error(weight, rounded)
        return errors

    def _quantize_inputs(self, work: BlockWork) -> None:
        """Put input quantizers into the block, so that whatever learns from here on sees them.

        Statistics stay those of their float inputs (behind the quantized prefix), as GPTQ's
        Hessians are taken in QuaRot.
        """
        if self.activation is None:
            return
        statistics = {site: work.statistics(site) for site in work.block.sites}
        for site, observed in statistics.items():
            layers = work.layers(site).values()
            learned = self.recipe.transform.learned
            settings = self.recipe.outliers.activation(self.activation, site)
            quantize_inputs(layers, settings, observed, range_gradient=learned)

    def _site(self, work: BlockWork, site: Site) -> SiteWork:
        """One site, ready to be rounded."""
        layers = work.layers(site)
        statistics = work.statistics(site)
        if statistics.rows == 0:
            work.warnings.append(f"no calibration rows reached {', '.join(site.layers)}")
        grid = self.recipe.range.grid(self.recipe.outliers.grid(self.grid, site))
        rule = self.recipe.outliers.rule(site, statistics)
        rounded = statistics
        if rule.columns is not None and self.recipe.range.reads_statistics:
            # What no range will round shall not decide where one is clipped.
            rounded = statistics.without(rule.columns)
        fits: dict[str, Fit] = {
            name: LayerFit(self.recipe.range, grid, rounded, Layer(name, name in site.logit_layers))
            for name in layers
        }
        return SiteWork(
            site=site,
            weights={name: layer.weight.detach().cpu().clone() for name, layer in layers.items()},
            statistics=statistics,
            grid=grid,
            fits={name: work.learned_fits.get(name, fit) for name, fit in fits.items()},
            warnings=work.warnings,
            outliers=rule,
        )

    def _keep_columns(self, work: BlockWork, bench: SiteWork) -> None:
        """Leave outlier columns float in what the site reads, before anything learns from it."""
        columns = bench.outliers.columns
        if columns is None:
            return
        for layer in work.layers(bench.site).values():
            if isinstance(layer.quantize_input, InputQuantizer):
                layer.quantize_input.keep_float(columns.to(layer.weight.device), bench.statistics)

    def _bake(
        self,
        work: BlockWork,
        sites: Sequence[SiteWork],
        name: str,
        weight: QuantizedWeight,
        nearest_error: float,
    ) -> None:
        """Note the quantized weight and put its dequantized values in place."""
        (site,) = (site for site in sites if name in site.weights)
        baked = weight.dequantize()
        error = site.statistics.relative_output_error(site.weights[name], baked)
        self.result.layers[name] = LayerResult(weight, error, nearest_error)
        layer = work.layer(name)
        layer.weight.copy_(baked)

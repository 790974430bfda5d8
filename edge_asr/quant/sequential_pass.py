"""One pass over a model: the stages of a recipe on every block it is shown; see `sequential.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edge_asr.calibration.capture import Batch, CapturedBlock
from edge_asr.calibration.statistics import InputStatistics
from edge_asr.clock import PhaseClock
from edge_asr.memory import release_freed_memory
from edge_asr.models.families.base import Architecture
from edge_asr.models.families.sites import Block, Site
from edge_asr.quant import artefact
from edge_asr.quant.activation import InputQuantizer, quantize_inputs
from edge_asr.quant.artefact import StoredDtype
from edge_asr.quant.context import BlockContext, Fit, Layer, ModelContext, SiteContext
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.layers import QuantizedLayer, RuntimeOp
from edge_asr.quant.outside_blocks import captured_layers, with_one_table
from edge_asr.quant.protection import sealed, without_outliers
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.result import BlockResult, LayerResult, Quantization
from edge_asr.quant.stages import Correction, LayerFit, Part, roundings
from edge_asr.quant.weight import round_nearest

# The stems of what a rewrite of the whole model made, and its repair.
MODEL, REPAIR = "model", "repair"


class SequentialPass:
    """The stages of a recipe on a model, and all that they found."""

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        recipe: Recipe,
        formats: Mapping[str, TensorFormat],
        stored_dtype: StoredDtype,
        layer_errors: bool,
        finished: Path | None,
    ) -> None:
        self.model, self.architecture, self.recipe = model, architecture, recipe
        self.asked = formats
        self.served = recipe.serve(formats, architecture.slots(model.config))
        self._stored_dtype, self._finished = stored_dtype, finished
        self._layer_errors = layer_errors
        self.result = Quantization()
        self.clock = PhaseClock()

    def rewrite_model(self, batches: Sequence[Batch], on_step: Callable[[str], None]) -> None:
        """The transform's rewrite of the whole float model."""
        transform = self.recipe.transform
        if not transform.rewrites_model:
            return
        self._change_model(MODEL, transform, transform.rewrite_model, batches, on_step)

    def repair_model(
        self,
        batches: Sequence[Batch],
        on_step: Callable[[str], None],
        reference: PreTrainedModel | None,
    ) -> None:
        """The correction's repair of the whole quantized model; `reference` is the float one."""
        correction = self.recipe.correction
        if type(correction).repair_model is Correction.repair_model:
            return
        self._change_model(REPAIR, correction, correction.repair_model, batches, on_step, reference)

    def _change_model(
        self,
        stem: str,
        part: Part,
        change: Callable[[ModelContext], None],
        batches: Sequence[Batch],
        on_step: Callable[[str], None],
        reference: PreTrainedModel | None = None,
    ) -> None:
        """Let `part` change the whole model, or take over what it made of it before."""
        if self._resume(stem):
            return
        context = ModelContext(self.model, self.architecture, batches, self.served, reference)
        context.on_step = lambda step, steps: on_step(f"{stem}, step {step} of {steps}")
        began = time.perf_counter()
        with self.clock.phase(part.stage):
            change(context)
        for module in self.model.modules():
            if isinstance(module, RuntimeOp):
                module.round_stored()
        self._round_floats(name for name, _ in self.model.named_parameters())
        spent = BlockResult(time.perf_counter() - began, phases=self.clock.take())
        found = Quantization(
            {}, context.warnings, {stem: spent}, reconstructions=context.reconstructions
        )
        self.result.join(found)
        if part.trains_model:
            self._keep(stem, None, found)

    def quantize_outside(self, batches: Sequence[Batch], on_step: Callable[[str], None]) -> None:
        """Quantize layers outside of blocks, by what the recipe has for them."""
        formats = with_one_table(self.asked, self.model, self.architecture)
        outside = SequentialPass(
            self.model, self.architecture, self.recipe.outside_blocks, formats,
            self._stored_dtype, self._layer_errors, self._finished,
        )  # fmt: skip
        found = captured_layers(self.model, self.architecture, batches, formats)
        for done, captured in enumerate(found):
            on_step(captured.block.module)
            outside.quantize(f"outside-{done:03d}", captured, None, on_step)
        if outside.result.blocks and (left_out := self.recipe.for_blocks_alone):
            outside.result.warnings.append(
                f"layers outside of blocks are quantized without {', '.join(left_out)}, for blocks "
                "alone"
            )
        self.result.join(outside.result)

    def quantize(
        self,
        stem: str,
        captured: CapturedBlock,
        floats: CapturedBlock | None,
        on_step: Callable[[str], None],
    ) -> None:
        """Run all stages on one block, which is kept under `stem`.

        `floats` is the float model's, where the recipe follows it; `on_step` is told how it goes.
        """
        if self._resume(stem):
            return
        began = time.perf_counter()
        context = self._context(captured, floats)
        context.on_evaluation = lambda step, steps, loss: on_step(
            f"{captured.block.module}, step {step} of {steps}, loss {loss:.3g}"
        )
        part = Quantization(warnings=context.warnings)
        if any(self.served[name] != TensorFormat() for name in captured.block.layers):
            self._run_stages(context, part)
        if context.reference is not None:
            context.reference.take_back()
        self._round_floats(self._floats_of(captured.block))
        part.blocks[captured.block.module] = BlockResult(
            time.perf_counter() - began, tuple(context.reconstructions), self.clock.take()
        )
        self.result.join(part)
        self._keep(stem, self._touched(captured.block), part)
        release_freed_memory()

    def _context(self, captured: CapturedBlock, floats: CapturedBlock | None) -> BlockContext:
        observation = self.recipe.rounding.observation
        context = BlockContext(
            self.model, self.architecture, captured.block, captured.module,
            captured.calls, captured.row_weights, self.served,
            observation=observation, clock=self.clock,
        )  # fmt: skip
        if floats is not None and self.recipe.learned:
            with self.clock.phase("targets"):
                context.targets = floats.outputs()
        if floats is not None and observation.paired:
            context.reference = BlockContext(
                floats.model, self.architecture, floats.block, floats.module,
                floats.calls, floats.row_weights, self.served,
            )  # fmt: skip
        return context

    def _run_stages(self, context: BlockContext, part: Quantization) -> None:
        nearest_errors: dict[str, float | None] = {}
        by_site = context.observation.by_site
        rewrites = self.recipe.transform.may_rewrite(
            self.served[name] for name in context.block.layers
        )
        if rewrites or not by_site:
            for site in context.block.sites:
                nearest_errors |= self._nearest_errors(context, site)
        with self.clock.phase("transform"):
            self.recipe.transform.rewrite_block(context)
        if self._round_floats(self._floats_of(context.block)):
            context.inputs_changed()
        self._quantize_inputs(context)
        with self.clock.phase("range"):
            self.recipe.learn_ranges(context)
        if self._round_floats(self._floats_of(context.block)):
            context.inputs_changed()
        sites = [site for site in context.block.sites if context.grids(site.layers)]
        if not by_site:
            self._round(context, sites, nearest_errors, part)
            return
        for site in sites:
            context.observe(site)
            if not rewrites:
                nearest_errors = self._nearest_errors(context, site)
            self._round(context, [site], nearest_errors, part)

    def _round(
        self,
        context: BlockContext,
        chosen: Sequence[Site],
        nearest_errors: Mapping[str, float | None],
        part: Quantization,
    ) -> None:
        """Round every layer of the sites `chosen`, check what comes back, put it in place, and
        repair it."""
        sites = [self._site(context, site) for site in chosen]
        for site in sites:
            self._keep_columns(context, site)
        release_freed_memory()  # of the passes, before the wide matrices of rounding
        rounding = self.recipe.rounding
        seen = list(sites)
        if not rounding.updates_outliers:
            seen = [without_outliers(site) for site in sites]
        with self.clock.phase("rounding"):
            rounded = rounding.round_block(context, seen)
        for site, view in zip(sites, seen, strict=True):
            for name, weight in site.weights.items():
                stored = sealed(roundings.name_of(rounding), view, name, rounded[name])
                error = self._output_error(site.statistics, weight, stored.dequantize())
                part.layers[name] = LayerResult(error, nearest_errors.get(name))
                context.layer(name).store(stored)
        for site in sites:
            layers = {name: context.layer(name) for name in site.weights}
            with self.clock.phase("correction"):
                self.recipe.correction.repair(site, layers)
            for layer in layers.values():
                # Whatever a correction did to a weight, its codes say what it is.
                if layer.quantized is not None:
                    layer.store(layer.quantized)

    def _nearest_errors(self, context: BlockContext, site: Site) -> dict[str, float | None]:
        """Output errors of plain rounding to nearest, before anything is rewritten."""
        if not (context.calls and self._layer_errors):
            return {}
        errors: dict[str, float | None] = {}
        for name in context.grids(site.layers):
            grid, weight = self.asked[name].weights, context.layer(name).matrix.cpu()
            if grid is not None:
                statistics = context.statistics(site)
                nearest = round_nearest(weight, minmax_parameters(weight, grid), grid)
                errors[name] = self._output_error(statistics, weight, nearest.dequantize())
        return errors

    def _output_error(
        self, statistics: InputStatistics, weight: Tensor, stored: Tensor
    ) -> float | None:
        if not (statistics.rows and self._layer_errors):
            return None
        with self.clock.phase("errors"):
            return statistics.relative_output_error(weight, stored)

    def _quantize_inputs(self, context: BlockContext) -> None:
        """Put input quantizers into the block, so that whatever learns from here on sees them.

        Statistics stay those of their float inputs (behind the quantized prefix), as GPTQ's
        Hessians are taken in QuaRot.
        """
        chosen = [
            (name, self.served[name].inputs, context.statistics(site))
            for site in context.block.sites
            for name in site.layers
            if self.served[name].inputs is not None
        ]
        learned = self.recipe.transform.learned
        for name, inputs, observed in chosen:
            if inputs is not None:
                quantize_inputs([context.layer(name)], inputs, observed, range_gradient=learned)

    def _site(self, context: BlockContext, site: Site) -> SiteContext:
        """One site, ready to be rounded."""
        grids, statistics = context.grids(site.layers), context.statistics(site)
        if context.calls and statistics.rows == 0:
            context.warnings.append(f"no calibration rows reached {', '.join(site.layers)}")
        rule = self.recipe.outliers.rule(site, statistics)
        rounded = statistics
        if rule.columns is not None and self.recipe.range.reads_statistics:
            # What no range will round shall not decide where one is clipped.
            rounded = statistics.without(rule.columns)
        fits: dict[str, Fit] = {
            name: LayerFit(self.recipe.range, grid, rounded, Layer(name, name in site.logit_layers))
            for name, grid in grids.items()
        }
        return SiteContext(
            site=site,
            weights={name: context.layer(name).matrix.cpu().clone() for name in grids},
            statistics=statistics,
            grids=grids,
            fits={name: context.learned_fits.get(name, fit) for name, fit in fits.items()},
            warnings=context.warnings,
            outliers=rule,
        )

    def _keep_columns(self, context: BlockContext, site: SiteContext) -> None:
        """Leave outlier columns float in what the site reads, before anything learns from it."""
        columns = site.outliers.columns
        if columns is None:
            return
        for name in site.weights:
            layer = context.layer(name)
            if isinstance(layer.quantize_input, InputQuantizer):
                layer.quantize_input.keep_float(columns.to(layer.weight.device), site.statistics)

    def _round_floats(self, names: Iterable[str]) -> bool:
        """Round parameters that stay floating point to the dtype they are stored in; whether one
        of them changed."""
        changed = False
        for name in names:
            layer = self.model.get_submodule(name.rpartition(".")[0])
            path = name.rpartition(".")[0]
            pending = path in self.served and self.served[path].weights is not None
            if isinstance(layer, QuantizedLayer) and pending and name.endswith(".weight"):
                continue
            parameter = self.model.get_parameter(name)
            rounded = parameter.to(self._stored_dtype(name)).to(parameter.dtype)
            if not torch.equal(rounded, parameter):
                parameter.copy_(rounded)
                changed = True
        return changed

    def _floats_of(self, block: Block) -> list[str]:
        """The parameters of `block`, and of what feeds it, by path."""
        names = [name for name, _ in self.model.named_parameters()]
        return [name for name in names if any(name.startswith(f"{one}.") for one in block.modules)]

    def _touched(self, block: Block) -> set[str]:
        """Modules that a part may change when `block` is quantized: those of the block, what feeds
        it, and later layers that read one of its own (whose columns take up a scale)."""
        readers = {
            name
            for other in self.architecture.blocks(self.model.config)
            for site in other.sites
            if site.source in block.layers
            for name in site.layers
        }
        return {*block.modules, *readers}

    def _resume(self, stem: str) -> bool:
        """Take over what an earlier call finished under `stem`, if it did."""
        found = None if self._finished is None else artefact.read(self._finished, stem)
        if found is None:
            return False
        tensors, description = found
        artefact.restore(self.model, tensors, description)
        self.result.join(Quantization.from_plain(description["result"]))
        return True

    def _keep(self, stem: str, within: Iterable[str] | None, part: Quantization) -> None:
        if self._finished is None:
            return
        tensors, description = artefact.capture(self.model, within)
        description["result"] = part.to_plain()
        artefact.write(self._finished, stem, (tensors, description))

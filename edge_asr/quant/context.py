"""What the parts of a method are given: the whole model, one block, or one site of it.

Parts read and change these; the sequential pass puts them together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.calibration.capture import Batch, Call, KeptOutputs, Outputs
from edge_asr.calibration.statistics import InputStatistics
from edge_asr.clock import PhaseClock
from edge_asr.models.families.base import Architecture
from edge_asr.models.families.sites import Block, Site, counted_rows
from edge_asr.quant import artefact
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.layers import QuantizedLayer
from edge_asr.quant.outlier_rule import OutlierRule
from edge_asr.quant.weight import FloatWeights


@dataclass(frozen=True)
class Layer:
    """What a part may know of a layer besides its weight.

    Attributes:
        name: Module path.
        makes_logits: Its outputs are queries or keys, whose products pass a softmax.
    """

    name: str
    makes_logits: bool


class Fit(Protocol):
    """Fits scales and zero points to a layer's weight, or to its columns from `first` on."""

    def __call__(self, weight: Tensor, first: int = 0) -> GridParameters: ...


@runtime_checkable
class ReorderableFit(Fit, Protocol):
    """A `Fit` that can also be had for other orders of the columns."""

    def reordered(self, order: Tensor) -> Fit:
        """For a weight whose columns are in `order`."""
        ...


@dataclass
class ModelContext:
    """The whole model, float before the sequential pass over its blocks or quantized after it.

    Attributes:
        model: Changed in place; every layer in `formats` is a `QuantizedLayer`.
        architecture: Its map.
        batches: Calibration batches.
        formats: What every layer is stored as and reads: Linears of blocks, and what else is asked
            to be quantized.
        reference: The float model, after the pass and where a part learns from it.
        warnings: Sentences for the record.
        reconstructions: What training did to its loss.
        on_step: Called with (steps done, steps in all) while a part is trained.
    """

    model: PreTrainedModel
    architecture: Architecture
    batches: Sequence[Batch]
    formats: Mapping[str, TensorFormat]
    reference: PreTrainedModel | None = None
    warnings: list[str] = field(default_factory=list)
    reconstructions: list[Reconstruction] = field(default_factory=list)
    on_step: Callable[[int, int], None] = lambda *_: None


@dataclass(frozen=True)
class Reconstruction:
    """What learning did to one block, or to the model.

    Attributes:
        loss_before: Loss of the starting point as it would be stored, on the clips that evaluations
            look at. Of a block: squared distance summed over channels, weighted mean over rows; of
            the model: mean over tokens of the part's own loss.
        loss_after: The same of the best iterate, which is the one kept.
        iterations: Steps taken.
        step_seconds: Wall time of all steps, without evaluations.
    """

    loss_before: float
    loss_after: float
    iterations: int
    step_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Observation:
    """How the statistics are taken that weights are rounded by.

    Attributes:
        by_site: Of one site after the other, each with the block's earlier sites rounded.
        paired: With what the float model reads at the same rows.
        held_out: Those of some clips apart, too.
    """

    by_site: bool = False
    paired: bool = False
    held_out: bool = False


# What sites read, and what the rows of it count.
SiteInputs = tuple[dict[Site, Tensor], Tensor]


class _AllSeen(Exception):
    """Ends a forward pass once the inputs of all sites are known."""


@dataclass
class BlockContext:
    """One block, while the parts rewrite and quantize it.

    Attributes:
        model: The whole model; what a part changes in it stays changed.
        architecture: Its map.
        block: The block's map.
        module: Runs the block; its weights are float until they are rounded.
        calls: Its inputs of every calibration batch, on the quantized prefix.
        row_weights: What the rows of every calibration batch count, [batch, positions].
        targets: Outputs of the float model's block on the float model's own inputs, a batch
            each, perhaps made anew at every look; empty unless a part of the recipe learns.
        observation: How statistics are taken.
        reference: The same block of the float model on the float model's own inputs, rewritten
            with this one; None unless statistics are paired.
        formats: What every layer is stored as and, once the transform is done, reads.
        warnings: Sentences for the record; a part appends whatever it could not do as asked.
        learned_fits: Ranges of layers where they were learned; they go before the range part.
        reconstructions: What every learned part did to the block's loss.
        on_evaluation: Called with (step, steps in all, loss) now and then while a part learns.
        clock: Is told what the time goes to.
    """

    model: PreTrainedModel
    architecture: Architecture
    block: Block
    module: nn.Module
    calls: Sequence[Call]
    row_weights: Sequence[Tensor]
    formats: Mapping[str, TensorFormat]
    targets: Outputs = field(default_factory=KeptOutputs)
    observation: Observation = Observation()
    reference: BlockContext | None = None
    warnings: list[str] = field(default_factory=list)
    learned_fits: dict[str, Fit] = field(default_factory=dict)
    reconstructions: list[Reconstruction] = field(default_factory=list)
    on_evaluation: Callable[[int, int, float], None] = lambda *_: None
    clock: PhaseClock = field(default_factory=PhaseClock)
    _statistics: dict[Site, InputStatistics] = field(default_factory=dict)
    _originals: dict[nn.Module, nn.Module] = field(default_factory=dict)

    def layer(self, name: str) -> QuantizedLayer:
        layer = self.model.get_submodule(name)
        if not isinstance(layer, QuantizedLayer):
            raise TypeError(f"{name} is no QuantizedLayer")
        return layer

    def grids(self, names: Iterable[str]) -> dict[str, Grid]:
        """The grids of those among the layers `names` whose weights are to be quantized."""
        formats = {name: self.formats[name].weights for name in names}
        return {name: grid for name, grid in formats.items() if grid is not None}

    def layers(self, site: Site) -> dict[str, QuantizedLayer]:
        return {name: self.layer(name) for name in site.layers}

    def statistics(self, site: Site) -> InputStatistics:
        """Calibration statistics of the site's input, after runtime ops, before its quantizer.

        The block's own input quantizers do not act while they are taken.
        """
        if site not in self._statistics:
            # One site at a time is what `observe` is for.
            paired = not self.observation.by_site
            self._statistics |= self._observe(self.block.sites, paired=paired)
        return self._statistics[site]

    def observe(self, site: Site) -> None:
        """Take the statistics of `site` anew, the block's other sites as they are by now.

        Input quantizers of the others act.
        """
        self._statistics |= self._observe([site], paired=True)

    def inputs_changed(self) -> None:
        """To be called by whoever changed what a site reads: statistics are taken anew, and the
        float model's block is changed likewise."""
        self._statistics = {}
        if self.reference is not None:
            self.reference.rewrite_like(self)

    def rewrite_like(self, other: BlockContext) -> None:
        """Take over runtime ops and parameters of the same block of another model.

        Those of what feeds it too, but for a layer of another block, and no input quantizers.
        """
        sources = {site.source for site in self.block.sites if site.source}
        modules = {name: self.model.get_submodule(name) for name in {*self.block.layers, *sources}}
        norms = {name for name in sources if not isinstance(modules[name], nn.Linear)}
        names = norms | {*self.block.layers}
        if not self._originals:
            self._originals = {modules[name]: copy.deepcopy(modules[name]) for name in names}
        artefact.restore(self.model, *artefact.capture(other.model, names))
        for name in self.block.layers:
            self.layer(name).quantize_input = nn.Identity()

    def take_back(self) -> None:
        """Undo `rewrite_like`, so that whatever follows does not depend on it in the last bit."""
        for module, original in self._originals.items():
            vars(module).update(vars(original))
        self._originals = {}

    @cached_property
    def on_counted_rows(self) -> tuple[nn.Module, Sequence[Call]]:
        """What to call, and how, where only the rows that count of the block's outputs matter.

        Outputs may then have no others: see `output_rows`. Hooks on the block's layers act as
        ever, and so do changes of its parameters.
        """
        if self._cut is None:
            return self.module, self.calls
        return self._cut, [
            replace(call, kwargs={**call.kwargs, "weights": weights})
            for call, weights in zip(self.calls, self.row_weights, strict=True)
        ]

    @cached_property
    def _cut(self) -> nn.Module | None:
        return self.architecture.on_counted_rows(self.block, self.module)

    def output_rows(self, weights: Tensor) -> slice | Tensor:
        """Positions of the outputs that `on_counted_rows` gives of clips whose rows have `weights`
        [batch, positions]."""
        return slice(None) if self._cut is None else counted_rows(weights)

    @contextmanager
    def float_inputs(self, sites: Iterable[Site] | None = None) -> Iterator[None]:
        """The input quantizers of `sites` (None: of the block) do not act inside the context."""
        with ExitStack() as hooks:
            for site in self.block.sites if sites is None else sites:
                for name in site.layers:
                    entry = self.layer(name).quantize_input
                    hooks.enter_context(entry.register_forward_hook(lambda _, args, __: args[0]))
            yield

    @torch.no_grad()
    def calls_of(self, module: nn.Module) -> list[tuple[Call, Tensor]]:
        """The calls that `module`, a part of the block, receives, and what their rows count.

        Every calibration batch is passed a few clips at a time, and of these only rows that count
        where others can be left out.
        """
        caught: list[Call] = []
        row_weights: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = dict(kwargs)
            if not args:
                args = (names.pop("hidden_states"),)
            caught.append(Call(args, names, self.calls[0].dtype))

        with module.register_forward_pre_hook(catch, with_kwargs=True):
            for block, call, weights in self.parts():
                row_weights.append(weights)
                call.run(block)
        return list(zip(caught, row_weights, strict=True))

    def parts(self) -> Iterator[tuple[nn.Module, Call, Tensor]]:
        """What to call, how, and what the rows of the outputs count, a few clips at a time."""
        block, calls = self.on_counted_rows
        for call, row_weights in zip(calls, self.row_weights, strict=True):
            for clips in call.parts():
                weights = row_weights[clips.to(row_weights.device)]
                yield block, call.select(clips), weights[:, self.output_rows(weights)]

    def _observe(self, sites: Sequence[Site], *, paired: bool) -> dict[Site, InputStatistics]:
        """Run the block on all batches; statistics of the input of every one of `sites`."""
        reference = self.reference if paired else None
        held_out = paired and self.observation.held_out
        with self.clock.phase("statistics"):
            statistics = {
                site: InputStatistics(
                    self.layer(site.layers[0]).matrix.shape[1],
                    paired=reference is not None,
                    held_out=held_out,
                )
                for site in sites
            }
            floats: Iterator[SiteInputs] = repeat(({}, torch.empty(0)))
            if reference is not None:
                floats = reference.site_inputs(sites)
            for (read, weights), (float_read, _) in zip(
                self.site_inputs(sites), floats, strict=False
            ):
                for site, inputs in read.items():
                    statistics[site].update(inputs, weights, float_read.get(site))
        return statistics

    @torch.no_grad()
    def site_inputs(self, sites: Sequence[Site]) -> Iterator[SiteInputs]:
        """What `sites` read, and what its rows count, a few clips at a time."""
        read: dict[Site, Tensor] = {}

        def watch(site: Site) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                read[site] = args[0]
                if len(read) == len(sites):
                    raise _AllSeen

            return see

        with ExitStack() as hooks:
            hooks.enter_context(self.float_inputs(sites))
            for site in sites:
                entry = self.layer(site.layers[0]).quantize_input
                hooks.enter_context(entry.register_forward_pre_hook(watch(site)))
            for block, call, weights in self.parts():
                # What the last site's layers make of their input nobody asks for.
                with suppress(_AllSeen):
                    call.run(block)
                yield dict(read), weights
                read.clear()


@dataclass
class SiteContext:
    """One site, when its weights are about to be rounded.

    Attributes:
        site: The site.
        weights: Float weight [out_features, in_features] of every layer that is to be rounded, on
            the CPU, by the layer's module path, which is unique in the model.
        statistics: Calibration statistics of their common input.
        grids: By the same paths, the grid that a layer's weights go to.
        fits: By the same paths, what fits scales and zero points to a layer's weight.
        warnings: Sentences for the record.
        outliers: What stays off the grid.
        kept: Outliers that were chosen already; in `weights` others of their group stand for them.
    """

    site: Site
    weights: Mapping[str, Tensor]
    statistics: InputStatistics
    grids: Mapping[str, Grid]
    fits: Mapping[str, Fit]
    warnings: list[str] = field(default_factory=list)
    outliers: OutlierRule = field(default_factory=OutlierRule)
    kept: Mapping[str, FloatWeights] = field(default_factory=dict)

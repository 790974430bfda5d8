"""Walk a model block by block: capture, quantize, bake, go on with the quantized prefix.

Every block sees inputs that already passed through the quantized blocks before it, so later
layers are fitted to the errors of earlier ones (as GPTQ's authors do).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.models.architecture import Architecture, Block, Site
from edge_asr.quant.grid import Grid, QuantizedWeight
from edge_asr.quant.layers import install_layers
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.rounding.nearest import round_nearest
from edge_asr.quant.stages import LayerFit
from edge_asr.quant.work import (
    Batch,
    BlockWork,
    Call,
    Layer,
    ModelWork,
    SharedMemory,
    SiteWork,
)


@dataclass(frozen=True)
class LayerResult:
    """One quantized layer.

    Attributes:
        weight: Its codes and grid.
        output_error: Mean over calibration rows of the squared norm of the change of the
            layer's output, on the inputs of the quantized prefix.
        nearest_error: The same on the same inputs, had the weights only been rounded to the
            nearest grid point of their min-max range.
    """

    weight: QuantizedWeight
    output_error: float
    nearest_error: float


@dataclass
class Quantization:
    """All quantized layers by name, warnings, and what each block cost."""

    layers: dict[str, LayerResult] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0

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
    progress: Progress | None = None,
) -> Quantization:
    """Quantize every block of `model` in place by `recipe`.

    Args:
        model: The float model; the Linears of its blocks become `QuantizedLinear`s.
        architecture: Its map.
        batches: Calibration batches.
        recipe: The method.
        grid: The weight grid.
        progress: Called with (block, done, total) after every block.
    """
    blocks = list(architecture.blocks(model.config))
    install_layers(model, (name for block in blocks for name in block.layers))
    bench = ModelWork(model, architecture, batches)
    recipe.transform.rewrite_model(bench)
    walk = _Walk(model, architecture, batches, recipe, grid)
    walk.result.warnings += bench.warnings
    for index, _ in enumerate(walk.run()):
        if progress is not None:
            progress(blocks[index].module, index + 1, len(blocks))
    walk.result.peak_memory_bytes = peak_memory_bytes()
    return walk.result


def peak_memory_bytes() -> int:
    """The process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Captured(Exception):
    """Stops a forward pass once the first block's inputs are known."""


class _Walk:
    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        batches: Sequence[Batch],
        recipe: Recipe,
        grid: Grid,
    ) -> None:
        self.model, self.architecture, self.batches = model, architecture, batches
        self.recipe, self.grid = recipe, grid
        self.result = Quantization()

    def _placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def run(self) -> Iterator[Block]:
        """Quantize block after block, yielding after each."""
        config = self.model.config
        encoder = self.model.get_submodule(self.architecture.encoder_module)
        calls = [
            self._capture(
                encoder, self.architecture.encoder_block(0), self._placed(batch.encoder_inputs)
            )
            for batch in self.batches
        ]
        frames = [batch.frame_mask.to(self.model.device) for batch in self.batches]
        for block in self.architecture.encoder_blocks(config):
            calls = self._block(block, calls, frames)
            yield block
        memory = self._memory(calls, frames)
        yield self.architecture.memory_block(config)
        decoder = self.model.get_submodule(self.architecture.decoder_module)
        calls = [
            self._capture(
                decoder,
                self.architecture.decoder_block(0),
                {
                    "input_ids": batch.decoder_input_ids.to(self.model.device),
                    "encoder_hidden_states": states,
                    "use_cache": False,
                    **self.architecture.memory_mask(
                        self._placed(batch.encoder_inputs), states.shape[1]
                    ),
                },
            )
            for batch, states in zip(self.batches, memory, strict=True)
        ]
        tokens = [batch.token_mask.to(self.model.device) for batch in self.batches]
        for block in self.architecture.decoder_blocks(config):
            calls = self._block(block, calls, tokens)
            yield block

    def _capture(self, stack: nn.Module, first: Block, inputs: Mapping[str, Any]) -> Call:
        caught: list[Call] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args:
                args = (kwargs.pop("hidden_states"),)
            caught.append(Call(args, dict(kwargs)))
            raise _Captured

        module = self.model.get_submodule(first.module)
        with module.register_forward_pre_hook(catch, with_kwargs=True):
            try:
                stack(**inputs)
            except _Captured:
                return caught[0]
        raise RuntimeError(f"{first.module} was never called: the architecture map is wrong")

    def _block(self, block: Block, calls: Sequence[Call], masks: Sequence[Tensor]) -> list[Call]:
        """Quantize one block; returns the next block's calls."""
        module = self.model.get_submodule(block.module)
        self._quantize(block, module, calls, masks)
        return [call.follow(call.run(module)) for call in calls]

    def _memory(self, calls: Sequence[Call], masks: Sequence[Tensor]) -> list[Tensor]:
        """Quantize all cross-attention keys and values; returns the encoder's output states."""
        block = self.architecture.memory_block(self.model.config)
        norm = self.model.get_submodule(block.module)
        memory = SharedMemory(norm, [self.model.get_submodule(name) for name in block.layers])
        self._quantize(block, memory, [Call((call.hidden,), {}) for call in calls], masks)
        return [norm(call.hidden) for call in calls]

    def _quantize(
        self, block: Block, module: nn.Module, calls: Sequence[Call], masks: Sequence[Tensor]
    ) -> None:
        """Run all stages on one block."""
        began = time.perf_counter()
        work = BlockWork(self.model, self.architecture, block, module, calls, masks, self.grid)
        nearest_errors = {site: self._nearest_errors(work, site) for site in block.sites}
        self.recipe.transform.rewrite_block(work)
        for site in block.sites:
            self._site(work, site, nearest_errors[site])
        self.result.warnings += work.warnings
        self.result.seconds[block.module] = time.perf_counter() - began

    def _nearest_errors(self, work: BlockWork, site: Site) -> dict[str, float]:
        """Output errors of plain rounding to nearest, before anything is rewritten."""
        errors = {}
        for name, layer in work.layers(site).items():
            weight = layer.weight.detach().cpu()
            nearest = round_nearest(weight, minmax_parameters(weight, self.grid), self.grid)
            errors[name] = work.statistics(site).output_error(weight - nearest.dequantize())
        return errors

    def _site(self, work: BlockWork, site: Site, nearest_errors: Mapping[str, float]) -> None:
        """Round the weights of one site and bake the dequantized ones."""
        layers = work.layers(site)
        statistics = work.statistics(site)
        if statistics.rows == 0:
            work.warnings.append(f"no calibration rows reached {', '.join(site.layers)}")
        bench = SiteWork(
            site=site,
            weights={name: layer.weight.detach().cpu().clone() for name, layer in layers.items()},
            statistics=statistics,
            grid=self.grid,
            fits={
                name: LayerFit(
                    self.recipe.range, self.grid, statistics, Layer(name, name in site.logit_layers)
                )
                for name in layers
            },
            warnings=work.warnings,
        )
        for name, weight in self.recipe.rounding.round(bench).items():
            baked = weight.dequantize()
            error = statistics.output_error(bench.weights[name] - baked)
            self.result.layers[name] = LayerResult(weight, error, nearest_errors[name])
            layers[name].weight.copy_(baked)
        self.recipe.correction.repair(bench, layers)

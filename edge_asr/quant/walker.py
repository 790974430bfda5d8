"""Walk a model block by block: capture, quantize, bake, go on with the quantized prefix.

Every block sees inputs that already passed through the quantized blocks before it, so later
layers are fitted to the errors of earlier ones (as GPTQ's authors do).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.models.architecture import Architecture, Block, Site
from edge_asr.quant.grid import Grid, QuantizedWeight
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.rounding.nearest import round_nearest
from edge_asr.quant.stages import SiteWork
from edge_asr.quant.statistics import InputStatistics


class Batch(Protocol):
    """What the walker needs of a calibration batch."""

    @property
    def encoder_inputs(self) -> Mapping[str, Tensor]: ...
    @property
    def frame_mask(self) -> Tensor: ...
    @property
    def decoder_input_ids(self) -> Tensor: ...
    @property
    def token_mask(self) -> Tensor: ...


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
        model: The float model; its Linear weights are overwritten with dequantized ones.
        architecture: Its map.
        batches: Calibration batches.
        recipe: The method.
        grid: The weight grid.
        progress: Called with (block, done, total) after every block.
    """
    walk = _Walk(model, architecture, batches, recipe, grid)
    blocks = list(architecture.blocks(model.config))
    for index, _ in enumerate(walk.run()):
        if progress is not None:
            progress(blocks[index].module, index + 1, len(blocks))
    walk.result.peak_memory_bytes = peak_memory_bytes()
    return walk.result


def peak_memory_bytes() -> int:
    """The process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass
class _Call:
    """The arguments of one block call; the hidden states are the first positional one."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module) -> Tensor:
        output = block(*self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def follow(self, hidden: Tensor) -> _Call:
        return _Call((hidden, *self.args[1:]), self.kwargs)


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

    def _capture(self, stack: nn.Module, first: Block, inputs: Mapping[str, Any]) -> _Call:
        caught: list[_Call] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args:
                args = (kwargs.pop("hidden_states"),)
            caught.append(_Call(args, dict(kwargs)))
            raise _Captured

        module = self.model.get_submodule(first.module)
        with module.register_forward_pre_hook(catch, with_kwargs=True):
            try:
                stack(**inputs)
            except _Captured:
                return caught[0]
        raise RuntimeError(f"{first.module} was never called: the architecture map is wrong")

    def _block(self, block: Block, calls: Sequence[_Call], masks: Sequence[Tensor]) -> list[_Call]:
        """Quantize one block; returns the next block's calls."""
        began = time.perf_counter()
        module = self.model.get_submodule(block.module)
        statistics = self._observe(block, module, calls, masks)
        for site, observed in zip(block.sites, statistics, strict=True):
            self._site(site, observed)
        following = [call.follow(call.run(module)) for call in calls]
        self.result.seconds[block.module] = time.perf_counter() - began
        return following

    def _observe(
        self, block: Block, module: nn.Module, calls: Sequence[_Call], masks: Sequence[Tensor]
    ) -> list[InputStatistics]:
        """Run the float block on all batches; statistics of the input of every site."""
        current: list[Tensor] = []
        statistics = [self._statistics(site) for site in block.sites]

        def watch(observed: InputStatistics) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, args: observed.update(args[0], current[0])

        with ExitStack() as hooks:
            for site, observed in zip(block.sites, statistics, strict=True):
                layer = self.model.get_submodule(site.layers[0])
                hooks.enter_context(layer.register_forward_pre_hook(watch(observed)))
            for call, mask in zip(calls, masks, strict=True):
                current[:] = [mask]
                call.run(module)
        return statistics

    def _memory(self, calls: Sequence[_Call], masks: Sequence[Tensor]) -> list[Tensor]:
        """Quantize all cross-attention keys and values; returns the encoder's output states."""
        began = time.perf_counter()
        block = self.architecture.memory_block(self.model.config)
        norm = self.model.get_submodule(block.module)
        memory = [norm(call.args[0]) for call in calls]
        (site,) = block.sites
        statistics = self._statistics(site)
        for states, mask in zip(memory, masks, strict=True):
            statistics.update(states, mask)
        self._site(site, statistics)
        self.result.seconds[block.module] = time.perf_counter() - began
        return memory

    def _site(self, site: Site, statistics: InputStatistics) -> None:
        """Run the stages on one site and bake the dequantized weights."""
        layers = {name: self._linear(name) for name in site.layers}
        work = SiteWork(
            site=site,
            weights={name: layer.weight.detach().cpu().clone() for name, layer in layers.items()},
            statistics=statistics,
            grid=self.grid,
        )
        if statistics.rows == 0:
            work.warnings.append(f"no calibration rows reached {', '.join(site.layers)}")
        for name, weight in self.recipe.rounding.round(work, self.recipe.range).items():
            original, baked = work.weights[name], weight.dequantize()
            nearest = round_nearest(original, minmax_parameters(original, self.grid), self.grid)
            self.result.layers[name] = LayerResult(
                weight,
                statistics.output_error(original - baked),
                statistics.output_error(original - nearest.dequantize()),
            )
            layers[name].weight.copy_(baked)
        self.result.warnings += work.warnings

    def _statistics(self, site: Site) -> InputStatistics:
        return InputStatistics(self._linear(site.layers[0]).in_features)

    def _linear(self, name: str) -> nn.Linear:
        layer = self.model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is no Linear layer")
        return layer

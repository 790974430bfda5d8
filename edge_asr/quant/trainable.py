"""A block under training, put together from trainable stages: transform, range, rounding.

Each stage that learns brings a trainable version of itself; the others take part as they are. So
OmniQuant's two learned stages train together, and a learned rounding follows any range.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edge_asr.quant.context import BlockContext
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import GridParameters, dequantize, quantize, straight_through_round
from edge_asr.quant.reconstruction import Learnable, Trainable
from edge_asr.quant.weight import FloatWeights, QuantizedWeight


class TrainableTransform(Trainable):
    """A trainable rewrite of a block's float parameters."""

    @abstractmethod
    def rewritten(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters by path after the rewrite; those it leaves alone included."""


class TrainableRange(Trainable):
    """Trainable scales and zero points."""

    @abstractmethod
    def parameters_of(self, name: str, weight: Tensor) -> GridParameters:
        """Differentiable grid parameters of layer `name` with `weight` [rows, columns]."""


class TrainableRounding(Trainable):
    """Trainable grid points."""

    @abstractmethod
    def fake_quantized(self, name: str) -> Tensor:
        """The layer's weight as training sees it, float32 [rows, columns]."""

    @abstractmethod
    def quantized(self, name: str) -> QuantizedWeight:
        """The layer's weight as it would be stored now."""


@dataclass(frozen=True)
class LayerStart:
    """Where a learned rounding starts from.

    Attributes:
        weight: Float weight [rows, columns].
        parameters: Its fitted scales and zero points.
        grid: Its grid.
    """

    weight: Tensor
    parameters: GridParameters
    grid: Grid

    def to(self, device: torch.device | str) -> LayerStart:
        """The same on another device."""
        return replace(self, weight=self.weight.to(device), parameters=self.parameters.to(device))


class RewrittenBlock(Learnable):
    """A block whose transform, range or both are learned; weights go to the nearest point."""

    def __init__(
        self, context: BlockContext, transform: TrainableTransform | None, ranges: TrainableRange
    ) -> None:
        super().__init__()
        self.transform, self.ranges = transform, ranges
        self._grids = context.grids(context.block.layers)
        self._float = {
            name: value.detach().clone() for name, value in _parameters_by_path(context).items()
        }

    def rewritten(self) -> dict[str, Tensor]:
        """The float parameters after the transform."""
        if self.transform is None:
            return dict(self._float)
        return self.transform.rewritten(self._float)

    def tensors(self) -> dict[str, Tensor]:
        tensors = self.rewritten()
        for name, grid in self._grids.items():
            path = f"{name}.weight"
            weight = tensors[path]
            parameters = self.ranges.parameters_of(name, weight)
            scale, zero = parameters.expand(weight.shape[1])
            codes = quantize(weight, scale, zero, grid, straight_through_round)
            tensors[path] = dequantize(codes, scale, zero)
        return tensors

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        return [one for stage in self._stages() for one in stage.optimizers(iterations)]

    def penalty(self, progress: float) -> Tensor | float:
        return sum(stage.penalty(progress) for stage in self._stages())

    def after_step(self, step: int, iterations: int) -> None:
        for stage in self._stages():
            stage.after_step(step, iterations)

    def _stages(self) -> Iterator[Trainable]:
        if self.transform is not None:
            yield self.transform
        yield self.ranges


class RoundedBlock(Learnable):
    """A block whose rounding is learned, but for the `outliers` of its layers (None: none)."""

    def __init__(
        self, rounding: TrainableRounding, outliers: Mapping[str, FloatWeights | None]
    ) -> None:
        super().__init__()
        self.rounding, self._outliers = rounding, outliers

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.weight": self._with_outliers(name, self.rounding.fake_quantized(name))
            for name in self._outliers
        }

    def stored_tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.weight": self._with_outliers(name, self.rounding.quantized(name).dequantize())
            for name in self._outliers
        }

    def _with_outliers(self, name: str, weight: Tensor) -> Tensor:
        outliers = self._outliers[name]
        return weight if outliers is None else outliers.over(weight)

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        return self.rounding.optimizers(iterations)

    def penalty(self, progress: float) -> Tensor | float:
        return self.rounding.penalty(progress)

    def after_step(self, step: int, iterations: int) -> None:
        self.rounding.after_step(step, iterations)


def _parameters_by_path(context: BlockContext) -> dict[str, Tensor]:
    """Every parameter of the block by its path in the model."""
    inside = {id(value) for value in context.module.parameters()}
    return {path: value for path, value in context.model.named_parameters() if id(value) in inside}

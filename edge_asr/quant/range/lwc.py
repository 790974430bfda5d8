"""Learned weight clipping: how far each group's range reaches is trained block by block.

Shao et al. 2023, OmniQuant (arXiv:2308.13137), section 3.2, eq. 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.quant.context import BlockContext, Layer
from edge_asr.quant.formats import Grid
from edge_asr.quant.grid import (
    GridParameters,
    parameters_from_range,
    reduce_groups,
    straight_through_round,
)
from edge_asr.quant.reconstruction import Scheduled
from edge_asr.quant.stages import Range, ranges
from edge_asr.quant.trainable import TrainableRange
from edge_asr.settings import Count, Iterations, Rate


class ClippedRanges(TrainableRange):
    """Every group's minimum and maximum times a trainable factor between 0 and 1.

    Attributes:
        low, high: Logits of the factors, [rows, groups] a layer.
    """

    def __init__(
        self,
        context: BlockContext,
        *,
        initial_logit: float,
        learning_rate: float,
        zero_gradient: bool = False,
    ) -> None:
        super().__init__()
        self._round_zero = straight_through_round if zero_gradient else torch.round
        self._grids, self._rate = context.grids(context.block.layers), learning_rate
        self._names = {name: str(index) for index, name in enumerate(self._grids)}
        self.low, self.high = nn.ParameterDict(), nn.ParameterDict()
        for name, key in self._names.items():
            extremes, _ = reduce_groups(
                context.layer(name).weight.detach(), self._grids[name], torch.amin
            )
            for logits in (self.low, self.high):
                logits[key] = nn.Parameter(torch.full_like(extremes, initial_logit))

    def parameters_of(self, name: str, weight: Tensor) -> GridParameters:
        key, grid = self._names[name], self._grids[name]
        low, size = reduce_groups(weight, grid, torch.amin)
        high, _ = reduce_groups(weight, grid, torch.amax)
        return parameters_from_range(
            low * self.low[key].sigmoid(),
            high * self.high[key].sigmoid(),
            grid,
            size,
            self._round_zero,
        )

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        del iterations
        return [torch.optim.AdamW(self.parameters(), self._rate, weight_decay=0.0, fused=True)]


@ranges.register("lwc")
@dataclass(frozen=True)
class LearnedWeightClipping(Scheduled, Range):
    """Learned clipping of every group's range.

    Attributes:
        iterations: Optimizer steps a block; the authors' 20 epochs of 128 samples (40 at 2 bits).
        aug_loss: Train also towards what the float block makes of the quantized blocks' outputs, as
            the authors do at W4A4 and 2 bits.
        learning_rate: Step size of AdamW, without weight decay.
        initial_logit: Logit at which the factors on a range start: sigmoid(4) is .982.
        zero_gradient: Let the gradient pass the rounding of the zero point as it passes that of
            weights; the authors do not. The loss often ends some percent lower with it.
    """

    learned: ClassVar[bool] = True

    iterations: Iterations = 2560
    clips: Count | None = 1
    learning_rate: Rate = 1e-2
    initial_logit: Annotated[float, Field(ge=-20, le=20)] = 4.0
    zero_gradient: bool = False

    def trainable_range(self, context: BlockContext) -> TrainableRange:
        return ClippedRanges(
            context,
            initial_logit=self.initial_logit,
            learning_rate=self.learning_rate,
            zero_gradient=self.zero_gradient,
        )

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        """Only whole layers of a block have learned factors, see `trainable_range`."""
        del weight, grid, statistics
        raise TypeError(f"lwc learns a block at a time; {layer.name} was fitted alone")

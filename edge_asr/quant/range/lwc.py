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
    fixed_point,
    range_of,
    reduce_groups,
    shrunk_parameters,
    straight_through_round,
)
from edge_asr.quant.range.awq_clip import awq_clip_parameters
from edge_asr.quant.reconstruction import OMNIQUANT_LENGTHS, Scheduled
from edge_asr.quant.stages import Range, ranges
from edge_asr.quant.trainable import TrainableRange
from edge_asr.settings import Rate

# sigmoid(4) is .982: where the authors start.
WHOLE_RANGE = 4.0
# The search for another start: shares of the whole range from 1 down to above .2.
SEARCH_STEPS, SEARCH_SHRINK = 40, 0.8


def searched_logits(weight: Tensor, grid: Grid, second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [rows, groups] of the factors on both ends that `awq_clip`'s search ends at.

    None is above `WHOLE_RANGE`, for from there on a sigmoid hardly moves.
    """
    fitted = awq_clip_parameters(
        weight.cpu(), grid, second_moment, steps=SEARCH_STEPS, max_shrink=SEARCH_SHRINK
    )
    low, _ = reduce_groups(weight, grid, torch.amin)
    high, _ = reduce_groups(weight, grid, torch.amax)
    still = fixed_point(low, high, grid)
    logits = []
    for end, whole in zip(range_of(fitted, grid), (low, high), strict=True):
        share = ((end.to(whole.device) - still) / (whole - still)).nan_to_num(1.0).clamp(0.01, 1)
        logits.append(share.logit().clamp(max=WHOLE_RANGE))
    return logits[0], logits[1]


class ClippedRanges(TrainableRange):
    """Every group's minimum and maximum times a trainable factor between 0 and 1.

    Attributes:
        low, high: Logits of the factors, [rows, groups] a layer.
    """

    def __init__(
        self,
        context: BlockContext,
        *,
        initial_logit: float | None,
        learning_rate: float,
        zero_gradient: bool = False,
    ) -> None:
        super().__init__()
        self._round_zero = straight_through_round if zero_gradient else torch.round
        self._grids, self._rate = context.grids(context.block.layers), learning_rate
        self._names = {name: str(index) for index, name in enumerate(self._grids)}
        self.low, self.high = nn.ParameterDict(), nn.ParameterDict()
        for site in context.block.sites:
            for name in context.grids(site.layers):
                weight = context.layer(name).weight.detach()
                if initial_logit is None:
                    moment = context.statistics(site).second_moment
                    low, high = searched_logits(weight, self._grids[name], moment)
                else:
                    extremes, _ = reduce_groups(weight, self._grids[name], torch.amin)
                    low = high = torch.full_like(extremes, initial_logit)
                self.low[self._names[name]] = nn.Parameter(low)
                self.high[self._names[name]] = nn.Parameter(high.clone())

    def parameters_of(self, name: str, weight: Tensor) -> GridParameters:
        key, grid = self._names[name], self._grids[name]
        low, size = reduce_groups(weight, grid, torch.amin)
        high, _ = reduce_groups(weight, grid, torch.amax)
        shares = self.low[key].sigmoid(), self.high[key].sigmoid()
        return shrunk_parameters((low, high), shares, grid, size, self._round_zero)

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        del iterations
        return [torch.optim.AdamW(self.parameters(), self._rate, weight_decay=0.0, fused=True)]


@ranges.register("lwc")
@dataclass(frozen=True)
class LearnedWeightClipping(Scheduled, Range):
    """Learned clipping of every group's range.

    Attributes:
        aug_loss: Train also towards what the float block makes of the quantized blocks' outputs, as
            the authors do at W4A4 and 2 bits.
        learning_rate: Step size of AdamW, without weight decay.
        initial_logit: Logit at which the factors on a range start; null: 4, which is .982, with the
            authors' schedule, and otherwise where a search for the least error of every group's
            outputs ends. Steps of the size below need hundreds to get there.
        zero_gradient: Let the gradient pass the rounding of the zero point as it passes that of
            weights; the authors do not. The loss often ends some percent lower with it.
    """

    learned: ClassVar[bool] = True
    lengths = OMNIQUANT_LENGTHS

    learning_rate: Rate = 1e-2
    initial_logit: Annotated[float, Field(ge=-20, le=20)] | None = None
    zero_gradient: bool = False

    def trainable_range(self, context: BlockContext) -> TrainableRange:
        initial = self.initial_logit
        if initial is None and self.schedule == "paper":
            initial = WHOLE_RANGE
        return ClippedRanges(
            context,
            initial_logit=initial,
            learning_rate=self.learning_rate,
            zero_gradient=self.zero_gradient,
        )

    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        """Only whole layers of a block have learned factors, see `trainable_range`."""
        del weight, grid, statistics
        raise TypeError(f"lwc learns a block at a time; {layer.name} was fitted alone")

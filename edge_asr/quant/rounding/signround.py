"""AutoRound's SignRound: rounding offsets and range factors trained by signed gradients.

Cheng et al. 2023 (arXiv:2309.05516), section 3, eq. 3 to 6 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edge_asr.quant.grid import (
    GridParameters,
    code_dtype,
    dequantize,
    quantize,
    range_of,
    reduce_groups,
    shrunk_parameters,
    straight_through_round,
)
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.reconstruction import Length, Scheduled
from edge_asr.quant.rounding.learned import LearnedRounding
from edge_asr.quant.stages import roundings
from edge_asr.quant.trainable import LayerStart, TrainableRounding
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.settings import Rate, ScheduleName


class SignSGD(torch.optim.Optimizer):
    """Steps of one size against the sign of the gradient; the rate falls linearly to zero."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, iterations: int) -> None:
        super().__init__(parameters, {"lr": lr})
        self._iterations, self._done = iterations, 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        left = 1 - self._done / self._iterations
        self._done += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"] * left)


def first_range(start: LayerStart, snapped: bool) -> tuple[Tensor, Tensor]:
    """The ends [rows, groups] of the range that training starts from."""
    low, high = range_of(start.parameters, start.grid)
    extremes = minmax_parameters(start.weight, start.grid)
    # HQQ moves the zero points alone.
    moved = not torch.equal(extremes.scale, start.parameters.scale) or not torch.equal(
        extremes.zero, start.parameters.zero
    )
    if snapped or moved:
        return low, high
    smallest, _ = reduce_groups(start.weight, start.grid, torch.amin)
    largest, _ = reduce_groups(start.weight, start.grid, torch.amax)
    return smallest, largest


class SignedOffsets(TrainableRounding):
    """An offset in [-1/2, 1/2] for every weight, a factor in [0, 1] for both ends of a range."""

    def __init__(
        self,
        starts: Mapping[str, LayerStart],
        learning_rate: float | None,
        snapped: bool = False,
    ) -> None:
        super().__init__()
        self._starts, self._rate = dict(starts), learning_rate
        self._keys = {name: str(index) for index, name in enumerate(starts)}
        self.offset, self.low, self.high = (nn.ParameterDict() for _ in range(3))
        self._ends = {name: first_range(start, snapped) for name, start in starts.items()}
        for name, start in starts.items():
            key = self._keys[name]
            self.offset[key] = nn.Parameter(torch.zeros_like(start.weight))
            for factors in (self.low, self.high):
                factors[key] = nn.Parameter(torch.ones_like(start.parameters.scale))

    def _codes(self, name: str) -> tuple[Tensor, GridParameters]:
        start, key = self._starts[name], self._keys[name]
        parameters = shrunk_parameters(
            self._ends[name],
            (self.low[key], self.high[key]),
            start.grid,
            start.parameters.group_size,
            straight_through_round,
        )
        scale, zero = parameters.expand(start.weight.shape[1])
        moved = start.weight + self.offset[key] * scale
        return quantize(moved, scale, zero, start.grid, straight_through_round), parameters

    def fake_quantized(self, name: str) -> Tensor:
        codes, parameters = self._codes(name)
        return dequantize(codes, *parameters.expand(codes.shape[1]))

    @torch.no_grad()
    def quantized(self, name: str) -> QuantizedWeight:
        codes, parameters = self._codes(name)
        grid = self._starts[name].grid
        return QuantizedWeight(codes.to(code_dtype(grid)), parameters, grid)

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        narrow = all(start.grid.bits <= 3 for start in self._starts.values())
        rate = (2 if narrow and iterations >= 1000 else 1) / iterations
        return [SignSGD(self.parameters(), self._rate or rate, iterations)]

    def after_step(self, step: int, iterations: int) -> None:
        del step, iterations
        for key in self.offset:
            self.offset[key].clamp_(-0.5, 0.5)
            self.low[key].clamp_(0, 1)
            self.high[key].clamp_(0, 1)


@roundings.register("signround")
@dataclass(frozen=True)
class SignRound(Scheduled, LearnedRounding):
    """Learn offsets of the rounding, and the range, by signed gradient steps.

    The range it starts from is that of the range stage.

    Attributes:
        learning_rate: Step size at first, which falls to zero; null for 1 / iterations, as the
            authors take (twice that from 1,000 iterations on at 3 bits and below).
        snapped: Start from the range that the rounded zero point leaves, whatever the range stage.
            The authors start from the extremes of the weights, as is done here behind `minmax`
            unless this is set; set, it often ends lower at 2 bits.
    """

    lengths: ClassVar[Mapping[ScheduleName, Length]] = {
        "short": Length(200, clips=1, patience=3),
        "paper": Length(200, clips=8),
    }

    learning_rate: Rate | None = None
    snapped: bool = False

    def trainable_rounding(self, starts: Mapping[str, LayerStart]) -> TrainableRounding:
        return SignedOffsets(starts, self.learning_rate, self.snapped)

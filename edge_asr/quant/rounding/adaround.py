"""AdaRound: learn for every weight whether to round down or up.

Nagel et al. 2020 (arXiv:2004.10568), section 3.3 and 3.4, eq. 21 to 25; over whole blocks as
in Li et al. 2021, BRECQ (arXiv:2102.05426), section 3.2, whose loss and weights are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_asr.quant.reconstruction import Length, Scheduled
from edge_asr.quant.rounding.learned import LearnedRounding
from edge_asr.quant.rounding.rectified import TrainableCodes, rectified_sigmoid
from edge_asr.quant.stages import roundings
from edge_asr.quant.trainable import LayerStart, TrainableRounding
from edge_asr.settings import Rate, ScheduleName

# BRECQ's settings: no pull towards the grid at first, then an exponent that falls.
WARM_UP = 0.2
EXPONENTS = (20.0, 2.0)


def exponent_at(progress: float) -> float:
    """The regularizer's beta at `progress` (0 to 1): from 20 straight to 2 after the warm-up."""
    first, last = EXPONENTS
    position = max(0.0, (progress - WARM_UP) / (1 - WARM_UP))
    return first + (last - first) * position


class PulledCodes(TrainableCodes):
    """Trainable codes that a regularizer draws to 0 or 1: sum of 1 - |2 h - 1|^beta (eq. 24)."""

    def __init__(
        self, starts: Mapping[str, LayerStart], learning_rate: float | None, regularization: float
    ) -> None:
        super().__init__(starts)
        self._rate, self._regularization = learning_rate, regularization

    def penalty(self, progress: float) -> Tensor | float:
        if progress < WARM_UP:
            return 0.0
        beta = exponent_at(progress)
        total = sum(
            (1 - (2 * rectified_sigmoid(logits) - 1).abs().pow(beta)).sum()
            for logits in self.logits.values()
        )
        return self._regularization * total

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        rate = self._rate or 10 / iterations
        return [torch.optim.Adam(self.parameters(), lr=rate, fused=True)]


@roundings.register("adaround")
@dataclass(frozen=True)
class AdaRound(Scheduled, LearnedRounding):
    """Learn of every weight whether it rounds up or down.

    Attributes:
        learning_rate: Step size of Adam; null: 10 / iterations, which is the authors' 1e-3 with
            their 10,000 iterations.
        regularization: Weight of the pull towards 0 and 1.
    """

    moves_scales: ClassVar[bool] = False

    # A clip holds hundreds of rows, where the authors take 32 images a step.
    lengths: ClassVar[Mapping[ScheduleName, Length]] = {
        "short": Length(500, clips=1),
        "paper": Length(10_000, clips=4),
    }

    learning_rate: Rate | None = None
    regularization: Rate = 0.01

    def trainable_rounding(self, starts: Mapping[str, LayerStart]) -> TrainableRounding:
        return PulledCodes(starts, self.learning_rate, self.regularization)

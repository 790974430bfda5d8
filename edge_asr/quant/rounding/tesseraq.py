"""TesseraQ: harden rounding decisions step by step while the rest is trained.

Li and Panda 2024 (arXiv:2410.19103), section 3.2 (progressive adaptive rounding, eq. 5 to 7)
and 3.3 (dequantization scale tuning, eq. 8); schedule of the authors' configuration in LLMC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from edge_asr.errors import UserError
from edge_asr.quant.grid import GridParameters, rescaled
from edge_asr.quant.reconstruction import Length, Scheduled
from edge_asr.quant.rounding.learned import LearnedRounding
from edge_asr.quant.rounding.rectified import TrainableCodes, rectified_sigmoid
from edge_asr.quant.stages import roundings
from edge_asr.quant.trainable import LayerStart, TrainableRounding
from edge_asr.settings import Fraction, Rate, ScheduleName, show_value

TRAINED_SHARES = (0.75, 0.5, 0.375, 0.25, 0.125, 0.09, 0.06, 0.04, 0.02, 0.005)
HARD = 1e4  # a logit that stands for infinity and still has a finite gradient


class HardeningCodes(TrainableCodes):
    """Trainable codes of which a growing share is fixed, and trainable factors on the scales.

    Attributes:
        scale_logits: [rows, groups] a layer; a scale is 2 sigma(v) times the fitted one,
            sigma the rectified sigmoid.
        fixed: Whether a weight's code is decided, bool [rows, columns] a layer.
    """

    def __init__(self, starts: Mapping[str, LayerStart], part: TesseraQ) -> None:
        super().__init__(starts)
        self._part = part
        self._optimizer: torch.optim.Optimizer | None = None
        self.scale_logits = nn.ParameterDict()
        for name, start in self.starts.items():
            key = self.keys[name]
            self.scale_logits[key] = nn.Parameter(torch.zeros_like(start.parameters.scale))
            self.register_buffer(f"fixed_{key}", torch.zeros_like(start.weight, dtype=torch.bool))
        self._harden(part.trained_shares[0])

    def parameters_of(self, name: str) -> GridParameters:
        start = self.starts[name]
        factors = 2 * rectified_sigmoid(self.scale_logits[self.keys[name]])
        return rescaled(start.parameters, start.parameters.scale * factors, start.grid)

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        rate = 1.25 / iterations
        groups = [
            {"params": list(self.logits.values()), "weight_decay": 0.0},
            {
                "params": list(self.scale_logits.values()),
                "weight_decay": self._part.scale_weight_decay,
                "lr": self._part.scale_learning_rate or rate,
            },
        ]
        self._optimizer = torch.optim.Adam(groups, lr=self._part.learning_rate or rate, fused=True)
        return [self._optimizer]

    def after_step(self, step: int, iterations: int) -> None:
        """Harden the next share at the end of each stretch.

        Decided codes stay where they are by themselves: so far out the gradient is exactly zero,
        the moments are too since the stretch began, and logits have no weight decay.
        """
        stretches = len(self._part.trained_shares)
        done = step * stretches // iterations
        if done > (step - 1) * stretches // iterations:
            self._harden(self._part.trained_shares[done] if done < stretches else 0.0)
            if self._optimizer is not None:
                # Every stretch is a training of its own: moments start anew.
                self._optimizer.state.clear()

    @torch.no_grad()
    def _harden(self, trained_share: float) -> None:
        """Fix all codes but the `trained_share` of each layer that are nearest to undecided."""
        for key, logits in self.logits.items():
            fixed = self.get_buffer(f"fixed_{key}")
            decided = (rectified_sigmoid(logits) - 0.5).abs()
            decided = torch.where(fixed, torch.inf, decided).flatten()
            count = decided.numel() - int(trained_share * decided.numel())
            chosen = torch.topk(decided, count).indices
            fixed.view(-1)[chosen] = True
            # An undecided 0 counts as up, as it does when codes are stored.
            sign = torch.where(logits >= 0, 1.0, -1.0)
            logits.copy_(torch.where(fixed, sign * HARD, logits))


@roundings.register("tesseraq")
@dataclass(frozen=True)
class TesseraQ(Scheduled, LearnedRounding):
    """Learn the rounding, hardened stretch by stretch, and the scales.

    Attributes:
        iterations: Optimizer steps a block over all stretches; null: by schedule.
        patience: Evaluations, one after every stretch, without a better one before a block's
            training stops; null: never. Before the last stretch is over most trained codes are far
            from where they will be stored, so this seldom pays here.
        trained_shares: Share of the weights that is still trained in every stretch, falling.
        learning_rate: Step size of Adam for the codes; null: 1.25 / iterations, which is the
            authors' 5e-4 with their 2,500 iterations.
        scale_learning_rate: Step size of Adam for the factors on the scales; null: the same.
        scale_weight_decay: Weight decay of the factors on the scales.
    """

    lengths: ClassVar[Mapping[ScheduleName, Length]] = {
        "short": Length(500, clips=1),
        "paper": Length(2500, clips=2),
    }

    trained_shares: tuple[Fraction, ...] = TRAINED_SHARES
    learning_rate: Rate | None = None
    scale_learning_rate: Rate | None = None
    scale_weight_decay: Annotated[float, Field(ge=0, le=1000)] = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.trained_shares
        if not shares or tuple(sorted(shares, reverse=True)) != shares:
            raise UserError(
                f"method.rounding.trained_shares={show_value(shares)}: give one or more shares, "
                "from the largest to the smallest"
            )
        if self.training.iterations < len(shares):
            raise UserError(
                f"method.rounding.iterations={self.iterations}: "
                f"must be at least one for each of the {len(shares)} trained_shares"
            )

    @property
    def evaluations(self) -> int:
        return len(self.trained_shares)

    def trainable_rounding(self, starts: Mapping[str, LayerStart]) -> TrainableRounding:
        return HardeningCodes(starts, self)

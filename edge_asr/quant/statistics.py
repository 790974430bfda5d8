"""What calibration tells about the input of a site: one accumulator for all its layers."""

from __future__ import annotations

import torch
from torch import Tensor


class InputStatistics:
    """Second moments of a site's input, over valid rows only.

    Padding is masked by the caller; every frame or token counts once, so long clips weigh as
    much as their valid frames. Products are taken in float32 and summed in float64.
    """

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self._sum = torch.zeros(columns, columns, dtype=torch.float64)

    def update(self, inputs: Tensor, mask: Tensor) -> None:
        """Add `inputs` [batch, positions, columns] where `mask` [batch, positions] is true."""
        rows = inputs[mask].float()
        self._sum += (rows.T @ rows).double().cpu()
        self.rows += len(rows)

    @property
    def second_moment(self) -> Tensor:
        """Mean of x xᵀ over rows, float64 [columns, columns]; zeros without any row."""
        return self._sum / max(self.rows, 1)

    @property
    def hessian(self) -> Tensor:
        """Hessian of the mean squared output error in one weight row: 2 E[x xᵀ]."""
        return 2 * self.second_moment

    def output_error(self, difference: Tensor) -> float:
        """Mean over rows of the squared norm of `difference` x: tr(D E[x xᵀ] Dᵀ).

        `difference` is [out_features, columns], for example W - Ŵ (or W for the output's
        own mean square).
        """
        wide = difference.detach().double().cpu()
        return float(((wide @ self.second_moment) * wide).sum())

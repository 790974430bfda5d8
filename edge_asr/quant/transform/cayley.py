"""Gradient steps on orthogonal matrices by the Cayley transform.

Li, Li and Todorovic 2020 (arXiv:2002.01113), algorithm 1 without momentum, with the constants
of SpinQuant (Liu et al. 2024, arXiv:2405.16406, section 3.2 and its optimizer). The authors' code
also scales every row to unit length before a step and bounds the step by the norm of a skew matrix
that is rotated; for an orthogonal matrix only the bound differs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FIXED_POINT_STEPS = 5
EPSILON = 1e-8
# One step in 101, on average, starts from a matrix made exactly orthogonal again.
RENEWAL = 1 / 101


def cayley_step(matrix: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """`matrix` [n, n], orthogonal, moved against `gradient` along the orthogonal matrices.

    Solves Y = (I + a/2 A)^-1 (I - a/2 A) X with A = (G Xᵀ - X Gᵀ) / 2 by fixed-point iteration,
    where a = min(rate, 1 / |A|_1) keeps the iteration contracting.
    """
    product = gradient @ matrix.T
    skew = (product - product.T) / 2
    length = min(rate, 1 / (float(torch.linalg.matrix_norm(skew, 1)) + EPSILON))
    moved = matrix - length * skew @ matrix
    for _ in range(FIXED_POINT_STEPS):
        moved = matrix - length * skew @ (matrix + moved) / 2
    return moved


def orthogonal_again(matrix: Tensor) -> Tensor:
    """The Q of a QR factorization whose R has a positive diagonal: no column changes sign."""
    q, r = torch.linalg.qr(matrix)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


class CayleySGD(torch.optim.Optimizer):
    """Steepest descent over orthogonal matrices [n, n]."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, seed: int = 0) -> None:
        super().__init__(parameters, {"lr": lr})
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if float(torch.rand(1, generator=self._generator)) < RENEWAL:
                    parameter.copy_(orthogonal_again(parameter))
                parameter.copy_(cayley_step(parameter, parameter.grad, group["lr"]))

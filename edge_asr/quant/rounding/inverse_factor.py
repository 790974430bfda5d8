"""The Cholesky factor of an inverse Hessian, which tells how later columns make up for an error.

Frantar et al. 2022 (arXiv:2210.17323), section 3.3, step 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns up to which a triangular matrix is inverted as a whole.
HALVED_ABOVE = 256


@dataclass(frozen=True)
class InverseFactor:
    """The inverse Hessian of a site, ready for every layer that reads its input.

    Attributes:
        upper: Upper Cholesky factor of the damped inverse Hessian, in `order`, float64
            [columns, columns].
        order: The columns in the order they are rounded.
        dead: Columns that were zero in all of calibration; their weights become zero.
        damping: Damping that let the factorization succeed, in its unit.
        added: What it added to the diagonal.
    """

    upper: Tensor
    order: Tensor
    dead: Tensor
    damping: float
    added: float

    @property
    def sensitivity(self) -> Tensor:
        """What a squared error in a column costs once later columns made up for it: [columns],
        in `order`."""
        return self.upper.diagonal().square().reciprocal()

    def solve(self, rows: Tensor) -> Tensor:
        """`rows` [count, columns], in `order`, times the damped inverse Hessian."""
        return (rows @ self.upper.T) @ self.upper


def factorize(
    hessian: Tensor,
    *,
    damping: float,
    damping_limit: float,
    act_order: bool,
    last: Tensor | None = None,
    unit: float | None = None,
) -> InverseFactor | None:
    """Factorize the inverse of `hessian` [columns, columns]; None if no damping is enough.

    Damping starts at `damping` x `unit` (None: the mean diagonal) and doubles until the Cholesky
    factorization succeeds or `damping_limit` is passed. Columns in `last` (bool [columns])
    come after all others. Dead columns have no part in the mean: the 1 that the authors give them
    weighs more the smaller the others are.
    """
    diagonal = hessian.diagonal().double()
    dead = diagonal == 0
    order = torch.arange(len(diagonal))
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    if last is not None:
        order = torch.cat([order[~last[order]], order[last[order]]])
    backwards = order.flip(0)
    damped = hessian[backwards[:, None], backwards].double()
    # Wide ones take 75 MB each, and often nobody else holds this one.
    del hessian
    mean = 1.0 if dead.all() else float(diagonal[~dead].mean())
    diagonal = diagonal.masked_fill(dead, mean)
    unit = mean if unit is None else unit
    while True:
        damped.diagonal().copy_(diagonal[backwards] + damping * unit)
        lower, failed = torch.linalg.cholesky_ex(damped)
        # What is not finite in one row of a Cholesky factor reaches its diagonal.
        if not failed and lower.diagonal().isfinite().all():
            # With the columns the other way round, H = U Uᵀ has an upper U; so H^-1 = VᵀV with
            # V = U^-1, which is the upper Cholesky factor of H^-1 without H^-1.
            upper = inverse_of_lower(lower).flip(0, 1)
            # One sum is far cheaper than a look at every element.
            if upper.sum().isfinite():
                return InverseFactor(upper, order, dead, damping, damping * unit)
        if damping >= damping_limit:
            return None
        damping = min(2 * damping, damping_limit)


def inverse_of_lower(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix [columns, columns].

    By halves, for solving against the unit matrix does not know which half of it is zero and so
    takes twice the time: of [A 0; B C] it is [A^-1 0; -C^-1 B A^-1 C^-1].
    """
    columns = len(lower)
    if columns <= HALVED_ABOVE:
        unit = torch.eye(columns, dtype=lower.dtype)
        return torch.linalg.solve_triangular(lower, unit, upper=False)
    half = columns // 2
    first, last = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -(last @ (lower[half:, :half] @ first))
    return inverse

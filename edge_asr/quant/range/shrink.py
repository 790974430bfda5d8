"""The search that `mse` and `awq_clip` share: shrink every group's range while its error falls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edge_asr.quant.grid import GridParameters


def shrink_search(
    shrunk: Callable[[float], GridParameters],
    error: Callable[[GridParameters], Tensor],
    *,
    steps: int,
    max_shrink: float,
) -> GridParameters:
    """The parameters of least error, group by group; of equals the widest.

    Args:
        shrunk: Grid parameters of all groups with ranges at a fraction of their width.
        error: Error [rows, groups] of every group under some parameters.
        steps: Fractions are 1, 1 - 1 / steps, 1 - 2 / steps, ...
        max_shrink: ... with so many of them as whole steps fit into this fraction of the width.
    """
    best = shrunk(1.0)
    least = error(best)
    for step in range(1, int(max_shrink * steps)):
        candidate = shrunk(1 - step / steps)
        found = error(candidate)
        better = found < least
        least = torch.where(better, found, least)
        best = GridParameters(
            torch.where(better, candidate.scale, best.scale),
            torch.where(better, candidate.zero, best.zero),
            best.group_size,
        )
    return best

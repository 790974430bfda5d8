"""Which rows of a corpus a limit keeps."""

from __future__ import annotations

import numpy as np


def chosen_rows(count: int, limit: int | None, seed: int = 0) -> list[int]:
    """A random choice of `limit` of `count` rows: their numbers, in order.

    It depends on the row numbers and the seed alone, so every run chooses the same rows and needs
    to read no others; a smaller limit chooses a subset of a larger one's. All rows where `limit`
    is None or not below `count`.
    """
    if limit is None or limit >= count:
        return list(range(count))
    order = np.random.default_rng(seed).permutation(count)
    return sorted(int(row) for row in order[:limit])

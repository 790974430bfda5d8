"""A method as a recipe: one registered part for every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Importing a package of parts registers them.
import edge_asr.quant.correction
import edge_asr.quant.outliers
import edge_asr.quant.range
import edge_asr.quant.rounding
import edge_asr.quant.transform  # noqa: F401
from edge_asr.quant.stages import (
    Correction,
    Outliers,
    Range,
    Rounding,
    Transform,
    corrections,
    outliers,
    ranges,
    roundings,
    transforms,
)


@dataclass(frozen=True)
class Recipe:
    """A method: one part for every stage."""

    transform: Transform
    outliers: Outliers
    range: Range
    rounding: Rounding
    correction: Correction

    @classmethod
    def build(cls, options: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """From `{stage: {"name": part, setting: value, ...}}`. Raises UserError on a bad one."""
        return cls(
            transform=transforms.build(options["transform"]),
            outliers=outliers.build(options["outliers"]),
            range=ranges.build(options["range"]),
            rounding=roundings.build(options["rounding"]),
            correction=corrections.build(options["correction"]),
        )

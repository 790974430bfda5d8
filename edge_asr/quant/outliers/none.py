"""The empty part of the stage `outliers`."""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.quant.stages import Outliers, outliers


@outliers.register("none")
@dataclass(frozen=True)
class NoOutliers(Outliers):
    """Keep no weight in high precision."""

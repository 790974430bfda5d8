"""The empty part of the stage `correction`."""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.quant.stages import Correction, corrections


@corrections.register("none")
@dataclass(frozen=True)
class NoCorrection(Correction):
    """Repair nothing."""

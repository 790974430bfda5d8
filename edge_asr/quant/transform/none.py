"""The empty part of the stage `transform`."""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.quant.stages import Transform, transforms


@transforms.register("none")
@dataclass(frozen=True)
class NoTransform(Transform):
    """Leave the model as it is."""

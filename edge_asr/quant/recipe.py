"""A method as a recipe: one registered part for every stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Importing a package of parts registers them.
import edge_asr.quant.correction
import edge_asr.quant.outliers
import edge_asr.quant.range
import edge_asr.quant.rounding
import edge_asr.quant.transform  # noqa: F401
from edge_asr.errors import UserError
from edge_asr.quant.activation import ActivationGrid
from edge_asr.quant.combinations import refuse_senseless
from edge_asr.quant.grid import Grid, GridParameters
from edge_asr.quant.reconstruction import reconstruct
from edge_asr.quant.soft import RewrittenBlock
from edge_asr.quant.stages import (
    Parts,
    corrections,
    outliers,
    ranges,
    roundings,
    transforms,
)
from edge_asr.quant.work import BlockWork, Fit


@dataclass(frozen=True)
class Recipe(Parts):
    """A method: its parts, checked against each other, and what they do together."""

    @classmethod
    def build(cls, options: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """From `{stage: {"name": part, setting: value, ...}}`. Raises UserError on a bad one."""
        recipe = cls(
            transform=transforms.build(options["transform"]),
            outliers=outliers.build(options["outliers"]),
            range=ranges.build(options["range"]),
            rounding=roundings.build(options["rounding"]),
            correction=corrections.build(options["correction"]),
        )
        refuse_senseless(recipe, {stage: str(part["name"]) for stage, part in options.items()})
        return recipe

    def check_grids(self, grid: Grid, activation: ActivationGrid | None) -> None:
        """Raises UserError for a grid of weights or activations that a part cannot work on."""
        self.range.grid(grid)
        if self.transform.learned and activation and activation.granularity == "tensor":
            raise UserError(
                "activation.granularity=tensor with a learned transform: the rewrite changes what "
                "layers read while static ranges stand; use activation.granularity=token"
            )

    def learn_ranges(self, work: BlockWork) -> None:
        """Train the block's transform and ranges together, where either is learned.

        The rewritten parameters are put in place; learned ranges are left in `work`.
        """
        if not (self.transform.learned or self.range.learned):
            return
        transform = self.transform.soft_transform(work) if self.transform.learned else None
        ranges = self.range.soft_range(work)
        block = RewrittenBlock(work, transform, ranges).to(work.model.device)
        schedule = (self.range if self.range.learned else self.transform).schedule
        reconstruct(work, block, schedule)
        if transform is not None:
            for path, value in block.rewritten().items():
                work.model.get_parameter(path).copy_(value)
            work.inputs_changed()
        if self.range.learned:
            for name in work.block.layers:
                weight = work.layer(name).weight.detach()
                work.learned_fits[name] = fixed_fit(ranges.parameters_of(name, weight))


def fixed_fit(parameters: GridParameters) -> Fit:
    """A fit of a whole layer whose result is known already."""
    known = GridParameters(
        parameters.scale.detach().cpu(), parameters.zero.detach().cpu(), parameters.group_size
    )

    def fit(weight: Tensor, first: int = 0) -> GridParameters:
        if first or len(weight) != len(known.scale):
            raise TypeError("learned ranges cannot be fitted again to a part of a layer")
        return known

    return fit

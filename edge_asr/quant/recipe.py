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
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.reconstruction import reconstruct
from edge_asr.quant.soft import RewrittenBlock
from edge_asr.quant.stages import (
    Correction,
    LearnedRounding,
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
from edge_asr.quant.work import BlockWork, Fit


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
        recipe = cls(
            transform=transforms.build(options["transform"]),
            outliers=outliers.build(options["outliers"]),
            range=ranges.build(options["range"]),
            rounding=roundings.build(options["rounding"]),
            correction=corrections.build(options["correction"]),
        )
        _refuse_senseless(recipe, {stage: str(part["name"]) for stage, part in options.items()})
        return recipe

    @property
    def learned(self) -> bool:
        """Whether a part is trained against the float model's outputs."""
        return (
            self.transform.learned
            or self.range.learned
            or isinstance(self.rounding, LearnedRounding)
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


def _refuse_senseless(recipe: Recipe, names: Mapping[str, str]) -> None:
    """Raises UserError, with the reason, for parts that cannot work together."""
    pairs = {stage: f"method/{stage}={name}" for stage, name in names.items()}
    learned_rounding = isinstance(recipe.rounding, LearnedRounding)
    if recipe.transform.learned and names["range"] not in ("minmax", "lwc"):
        raise UserError(
            f"{pairs['transform']} with {pairs['range']}: a learned rewrite changes the weights at "
            "every step, so their range must follow it; use method/range=lwc or minmax"
        )
    both = recipe.transform.learned and recipe.range.learned
    if both and recipe.transform.schedule != recipe.range.schedule:
        raise UserError(
            f"{pairs['transform']} with {pairs['range']}: they are trained together; "
            "give method.transform and method.range the same iterations and seed"
        )
    if recipe.range.learned and getattr(recipe.rounding, "static_groups", True) is False:
        raise UserError(
            f"{pairs['range']} with method.rounding.static_groups=false: learned ranges belong to "
            "the original weights and cannot be fitted again; use static_groups=true"
        )
    if names["outliers"] != "none" and (learned_rounding or recipe.range.learned):
        stage = "rounding" if learned_rounding else "range"
        raise UserError(
            f"{pairs['outliers']} with {pairs[stage]}: outliers are chosen while weights are "
            "rounded one by one, after that stage was trained; use method/rounding=gptq or nearest"
        )

"""A method as a recipe: one registered part for every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

# Importing a package of parts registers them.
import edge_asr.quant.correction
import edge_asr.quant.outliers
import edge_asr.quant.range
import edge_asr.quant.rounding
import edge_asr.quant.transform  # noqa: F401
from edge_asr.errors import UserError
from edge_asr.models.families.base import Architecture
from edge_asr.models.tensors import Slot
from edge_asr.quant.combinations import refuse_senseless
from edge_asr.quant.context import BlockContext
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.outside_blocks import refuse_head_of_its_own
from edge_asr.quant.protection import fixed_fit
from edge_asr.quant.reconstruction import reconstruct
from edge_asr.quant.scheme import WEIGHTS, Scheme
from edge_asr.quant.stages import (
    STAGES,
    Correction,
    Outliers,
    Part,
    Range,
    Rounding,
    Transform,
)
from edge_asr.quant.target import ANYTHING, Target
from edge_asr.quant.trainable import RewrittenBlock
from edge_asr.settings import nearest


@dataclass(frozen=True)
class Recipe:
    """A method: its parts, checked against each other, and what they do together."""

    transform: Transform
    outliers: Outliers
    range: Range
    rounding: Rounding
    correction: Correction

    @classmethod
    def build(cls, options: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """From `{stage: {"name": part, setting: value, ...}}`; a stage left out has no part.

        Raises UserError for an unknown stage, a bad part, or parts that cannot work together.
        """
        for stage in options:
            if stage not in STAGES:
                raise UserError(f"method/{stage}: {nearest(stage, STAGES)}")
        parts = {
            stage: registry.build(options.get(stage, {"name": "none"}))
            for stage, registry in STAGES.items()
        }
        recipe = cls(**parts)
        refuse_senseless(
            recipe, {stage: STAGES[stage].name_of(part) for stage, part in parts.items()}
        )
        return recipe

    @property
    def parts(self) -> dict[str, Part]:
        """Its parts by stage, in the order in which they act."""
        return {stage: getattr(self, stage) for stage in STAGES}

    @property
    def identity(self) -> dict[str, Any]:
        """Names, versions and settings of its parts, by stage."""
        return {stage: STAGES[stage].identity(part) for stage, part in self.parts.items()}

    @property
    def quantizes(self) -> bool:
        """Whether it is more than the float model."""
        return STAGES["rounding"].name_of(self.rounding) != "none"

    @property
    def learned(self) -> bool:
        """Whether a part is trained against the float model's outputs."""
        return any(part.learned for part in self.parts.values())

    @property
    def follows_float(self) -> bool:
        """Whether the float model's blocks are run beside the quantized one's."""
        return self.learned or self.rounding.observation.paired

    @property
    def trains(self) -> bool:
        """Whether a part is trained, on blocks or on the whole model."""
        return any(part.learned or part.trains_model for part in self.parts.values())

    @property
    def outside_blocks(self) -> Recipe:
        """What serves layers outside of blocks: the same, but for what works on blocks or keeps
        weights apart."""
        return replace(
            Recipe.build({}),
            range=STAGES["range"].build({"name": "minmax"}) if self.range.learned else self.range,
            rounding=self.rounding.outside_blocks,
        )

    @property
    def for_blocks_alone(self) -> list[str]:
        """Its parts that do nothing, or less, for layers outside of blocks: `rounding=adaround`."""
        others = self.outside_blocks.parts
        rewrites = self.transform.learned or not self.transform.rewrites_model
        return [
            f"{stage}={STAGES[stage].name_of(part)}"
            for stage, part in self.parts.items()
            if part != others[stage] and (stage != "transform" or rewrites)
        ]

    def needs_calibration(self, formats: Iterable[TensorFormat]) -> bool:
        """Whether anything in it, or a static range among `formats`, looks at clips."""
        static = any(one.inputs and one.inputs.static for one in formats)
        return (
            static
            or self.follows_float
            or self.trains
            or any(part.reads_statistics for part in self.parts.values())
        )

    def constrain(self, format: TensorFormat, slot: Slot) -> TensorFormat:
        """The format in which all parts serve `slot`, asked for `format`.

        Raises UserError where one cannot.
        """
        return reduce(
            lambda served, part: part.constrain(served, slot), self.parts.values(), format
        )

    def serve(
        self, formats: Mapping[str, TensorFormat], slots: Iterable[Slot]
    ) -> dict[str, TensorFormat]:
        """The formats in which its parts serve what is asked for, by layer.

        Raises UserError where one cannot.
        """
        by_name = {slot.name: slot for slot in slots}
        return {name: self.constrain(format, by_name[name]) for name, format in formats.items()}

    def formats(
        self,
        scheme: Scheme,
        target: Target,
        architecture: Architecture,
        config: Any,
        columns: Callable[[str], int | None],
    ) -> tuple[dict[str, TensorFormat], dict[str, TensorFormat]]:
        """What `scheme` asks for, by layer, and in what its parts serve it.

        `columns` gives a layer's, None where they are not known. Raises UserError where a part or
        `target` cannot.
        """
        target.refuse_family(architecture.family)
        slots = architecture.slots(config)
        asked = scheme.resolve(slots)
        tied = config.tie_word_embeddings and not self.transform.unties
        refuse_head_of_its_own(asked, architecture, tied)
        served = self.serve(asked, slots)
        for slot in (one for one in slots if one.kind in WEIGHTS):
            target.refuse(slot, served.get(slot.name, TensorFormat()), columns(slot.name))
        return asked, served

    def check(self, scheme: Scheme, target: Target = ANYTHING) -> None:
        """Raises UserError if, in some model, a part could not serve what `scheme` asks for, or
        leaves what `target` cannot hold."""
        names = {stage: STAGES[stage].name_of(part) for stage, part in self.parts.items()}
        target.refuse_parts(names["outliers"] != "none", self.range.quantizes_scales, names)
        served = {
            slot: [self.constrain(format, slot) for format in formats]
            for slot, formats in scheme.role_formats().items()
        }
        ops = self.transform.without_runtime_ops(one for own in served.values() for one in own)
        if ops is not None:
            target.refuse_runtime_ops(names["transform"], ops)
        for slot, formats in served.items():
            for format in formats:
                target.refuse(slot, format)

    def learn_ranges(self, context: BlockContext) -> None:
        """Train the block's transform and ranges together, where either is learned.

        The rewritten parameters are put in place; learned ranges are left in `context`.
        """
        if not (self.transform.learned or self.range.learned):
            return
        transform = self.transform.trainable_transform(context) if self.transform.learned else None
        if transform is None and not self.range.learned:
            context.warnings.append(f"{context.block.module}: the transform left it as it is")
            return
        ranges = self.range.trainable_range(context)
        block = RewrittenBlock(context, transform, ranges).to(context.model.device)
        schedule = (self.range if self.range.learned else self.transform).training
        reconstruct(context, block, schedule)
        if transform is not None:
            for path, value in block.rewritten().items():
                context.model.get_parameter(path).copy_(value)
            context.inputs_changed()
        if self.range.learned:
            for name in context.grids(context.block.layers):
                weight = context.layer(name).weight.detach()
                context.learned_fits[name] = fixed_fit(ranges.parameters_of(name, weight))

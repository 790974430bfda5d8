"""The stages of a method, in order, and their registries.

A part is a frozen dataclass (its fields are its settings) around one pure tensor kernel, in
a file of its own. `recipe.py` puts one part for every stage together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from edge_asr.calibration.capture import Batch
from edge_asr.calibration.statistics import InputStatistics
from edge_asr.models.families.sites import Site
from edge_asr.models.tensors import Slot
from edge_asr.quant.context import BlockContext, Layer, ModelContext, Observation, SiteContext
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.grid import GridParameters
from edge_asr.quant.layers import QuantizedLayer
from edge_asr.quant.outlier_rule import OutlierRule
from edge_asr.quant.reconstruction import Schedule
from edge_asr.quant.trainable import TrainableRange, TrainableTransform
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.registry import Registry
from edge_asr.settings import Checked


class Part(Checked):
    """What parts of all stages have.

    Attributes:
        stage: Its stage.
        version: Part of the key of whatever it makes: raised when the same settings give other
            numbers.
        learned: It is trained, block by block, against the float model.
        trains_model: It is trained on the whole model, which takes long: what it makes is kept on
            the way.
        reads_statistics: It looks at what layers read in calibration.
    """

    stage: ClassVar[str]
    version: ClassVar[int] = 1
    learned: ClassVar[bool] = False
    trains_model: ClassVar[bool] = False
    reads_statistics: ClassVar[bool] = False

    @classmethod
    def option(cls) -> str:
        return f"method.{cls.stage}"

    def constrain(self, format: TensorFormat, slot: Slot) -> TensorFormat:
        """The format in which this part serves the weight and input of `slot`, asked for `format`.

        Raises UserError, with the reason, where it cannot.
        """
        del slot
        return format

    @property
    def training(self) -> Schedule:
        """How a block is trained, if the part is learned."""
        raise TypeError(f"{type(self).__name__} is not learned")


class Transform(Part):
    """Which function-preserving rewrite makes the model easier to quantize."""

    stage: ClassVar[str] = "transform"

    @property
    def unties(self) -> bool:
        """Whether a head that was the embedding becomes a tensor of its own."""
        return False

    def rewrite_model(self, context: ModelContext) -> None:
        """Rewrite the whole float model in place, once, before the first block."""

    @property
    def rewrites_model(self) -> bool:
        """Whether it rewrites the whole model, whatever is quantized of it."""
        return type(self).rewrite_model is not Transform.rewrite_model

    def rewrite_block(self, context: BlockContext) -> None:
        """Rewrite one float block in place; ends with `context.inputs_changed()` if it did."""

    def may_rewrite(self, formats: Iterable[TensorFormat]) -> bool:
        """Whether the float weights of a block, whose layers are asked to have `formats`, may be
        others when they are rounded."""
        del formats
        return self.learned or type(self).rewrite_block is not Transform.rewrite_block

    def without_runtime_ops(self, formats: Iterable[TensorFormat]) -> str | None:
        """What to use instead where no runtime op may be left in layers with `formats`; None: it
        leaves none."""
        del formats
        return None

    def trainable_transform(self, context: BlockContext) -> TrainableTransform | None:
        """The trainable rewrite of one block, if it is learned; None where it leaves all as is."""
        del context
        raise TypeError(f"{type(self).__name__} is not learned")


class Outliers(Part):
    """Which weights stay in high precision."""

    stage: ClassVar[str] = "outliers"

    def rule(self, site: Site, statistics: InputStatistics) -> OutlierRule:
        """What stays off the grid in the layers of `site`, whose input has `statistics`."""
        del site, statistics
        return OutlierRule()


class Range(Part, ABC):
    """Scale and zero point of every group.

    Attributes:
        quantizes_scales: Whether scales are quantized themselves, and so are no float16.
    """

    stage: ClassVar[str] = "range"
    quantizes_scales: ClassVar[bool] = False

    def trainable_range(self, context: BlockContext) -> TrainableRange:
        """The trainable ranges of one block, if they are learned."""
        del context
        raise TypeError(f"{type(self).__name__} is not learned")

    @abstractmethod
    def fit(
        self, weight: Tensor, grid: Grid, statistics: InputStatistics, layer: Layer
    ) -> GridParameters:
        """Grid parameters for `weight` [out_features, in_features] of `layer`.

        `statistics` are those of the same columns, which may be a part of the layer's.
        """


@dataclass(frozen=True)
class LayerFit:
    """A range part bound to one layer: the `Fit` that rounding parts call."""

    range: Range
    grid: Grid
    statistics: InputStatistics
    layer: Layer

    def __call__(self, weight: Tensor, first: int = 0) -> GridParameters:
        statistics = self.statistics.part(first, weight.shape[1])
        return self.range.fit(weight, self.grid, statistics, self.layer)

    def reordered(self, order: Tensor) -> LayerFit:
        """The same for a weight whose columns are in another order."""
        return replace(self, statistics=self.statistics.select(order))


class Rounding(Part, ABC):
    """Which grid point every weight takes.

    Outliers are not its business: it is given weights in which they have been replaced by others
    of their group, and the engine puts them back. Only a part with error feedback, one that
    `updates_outliers`, gets them as they are with the rule that keeps them.

    `moves_scales` says that scales are trained with the rounding.
    """

    stage: ClassVar[str] = "rounding"
    moves_scales: ClassVar[bool] = False
    updates_outliers: ClassVar[bool] = False

    @property
    def observation(self) -> Observation:
        """How the statistics are taken that it rounds by."""
        return Observation()

    @property
    def outside_blocks(self) -> Rounding:
        """What rounds layers outside of blocks; to nearest, unless the part says otherwise."""
        nearest: Rounding = roundings.build({"name": "nearest"})
        return nearest

    @abstractmethod
    def round_block(
        self, context: BlockContext, sites: Sequence[SiteContext]
    ) -> dict[str, QuantizedWeight]:
        """Quantize every layer of the block's `sites`."""


class SiteRounding(Rounding):
    """Rounds every site for itself."""

    def round_block(
        self, context: BlockContext, sites: Sequence[SiteContext]
    ) -> dict[str, QuantizedWeight]:
        del context
        return {name: weight for site in sites for name, weight in self.round(site).items()}

    @abstractmethod
    def round(self, context: SiteContext) -> dict[str, QuantizedWeight]:
        """Quantize every layer of the site."""


class Correction(Part):
    """What is repaired after rounding."""

    stage: ClassVar[str] = "correction"

    def repair(self, context: SiteContext, layers: Mapping[str, QuantizedLayer]) -> None:
        """Change float parameters of `layers`, whose rounded weights are in place by now."""

    def check_clips(self, batches: Sequence[Batch]) -> None:
        """Raises UserError, before anything is quantized, where `batches` are too few for it."""

    def repair_model(self, context: ModelContext) -> None:
        """Change what is no code of the whole quantized model, once, after the last block."""

    @property
    def by_layer(self) -> bool:
        """Whether it repairs one layer after the other."""
        return type(self).repair is not Correction.repair


transforms: Registry[Transform] = Registry("transform", "method/transform")
outliers: Registry[Outliers] = Registry("outliers", "method/outliers")
ranges: Registry[Range] = Registry("range", "method/range")
roundings: Registry[Rounding] = Registry("rounding", "method/rounding")
corrections: Registry[Correction] = Registry("correction", "method/correction")

# In the order in which they act.
STAGES: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (transforms, outliers, ranges, roundings, corrections)
}

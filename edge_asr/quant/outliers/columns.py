"""QUIK: whole columns stay in 16 bits, where the input has its largest values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from edge_asr.calibration.statistics import InputStatistics
from edge_asr.models.families.sites import Site
from edge_asr.models.tensors import Slot
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.outlier_rule import OutlierRule
from edge_asr.quant.stages import Outliers, outliers
from edge_asr.settings import Bits, Fraction


def largest_columns(magnitudes: Tensor, fraction: float) -> Tensor:
    """The `fraction` of columns, rounded up, with the largest `magnitudes` [columns].

    Of equal magnitudes the earlier column is taken. Returns bool [columns].
    """
    # A product such as 0.07 x 100 lies a hair above the whole number it stands for.
    count = math.ceil(round(fraction * len(magnitudes), 9))
    chosen = torch.zeros(len(magnitudes), dtype=torch.bool)
    chosen[torch.argsort(magnitudes, descending=True, stable=True)[:count]] = True
    return chosen


@outliers.register("columns")
@dataclass(frozen=True)
class Columns(Outliers):
    """The input columns of the largest activations stay in 16 bits, as in QUIK.

    Ashkboos et al. 2023 (arXiv:2310.09259), section 3. The input features with the largest |x|
    in calibration are kept in 16 bits, in the weight and in the activation. GPTQ takes their
    columns last and never rounds them, so that they make up for the errors of all others.

    The paper keeps 256 columns of models 4,096 to 8,192 wide, and proportionally more in the
    wider input of the down-projection. 256 columns would be most of a small model, so the
    count is a fraction of the width of every layer's input.

    Attributes:
        fraction: Share of the input columns that is kept, rounded up to whole columns.
        fc2_bits: Width of the codes in the second layer of the MLP, whose input varies most, and
            of that input where activations are quantized; a larger general width prevails, and
            null means the general widths everywhere. The layer is stored, multiplied and charged
            at this width.
    """

    reads_statistics: ClassVar[bool] = True

    fraction: Fraction = 0.0625
    fc2_bits: Bits | None = 8

    def constrain(self, format: TensorFormat, slot: Slot) -> TensorFormat:
        weights, inputs = format.weights, format.inputs
        if slot.role != "fc2" or self.fc2_bits is None or weights is None:
            return format
        return TensorFormat(
            replace(weights, bits=max(weights.bits, self.fc2_bits)),
            inputs and replace(inputs, bits=max(inputs.bits, self.fc2_bits)),
        )

    def rule(self, site: Site, statistics: InputStatistics) -> OutlierRule:
        del site
        columns = largest_columns(statistics.largest_magnitude, self.fraction)
        return OutlierRule(columns if bool(columns.any()) else None)

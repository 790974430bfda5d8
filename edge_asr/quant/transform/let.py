"""Learnable equivalent transformation: channel scales, shifts and query-key scales, trained.

Shao et al. 2023, OmniQuant (arXiv:2308.13137), section 3.3, eq. 3 to 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edge_asr.errors import UserError
from edge_asr.models.families.sites import Site
from edge_asr.models.tensors import Slot
from edge_asr.quant.context import BlockContext
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.grid import straight_through
from edge_asr.quant.reconstruction import OMNIQUANT_LENGTHS, Scheduled
from edge_asr.quant.stages import Transform, transforms
from edge_asr.quant.trainable import TrainableTransform
from edge_asr.quant.transform.fold import can_fold
from edge_asr.settings import Fraction, Rate

# The authors keep scales away from zero.
SMALLEST_SCALE = 1e-2


def truncated(scale: Tensor) -> Tensor:
    """`scale` with magnitudes of at least 0.01; the gradient passes as if it were untouched."""
    sign = torch.where(scale < 0, -1.0, 1.0)
    kept = torch.where(scale.abs() < SMALLEST_SCALE, sign * SMALLEST_SCALE, scale)
    return straight_through(scale, kept.detach())


class EquivalentTransformation(TrainableTransform):
    """Scales and shifts between every norm or value layer and what reads it.

    Attributes:
        scale: [channels] a site: the input is divided by it, its weights' columns multiplied.
        shift: [channels] a site whose source and readers can take one up in their biases.
        logit_scale: [channels / tied] an attention: queries are divided, keys multiplied.
    """

    def __init__(self, context: BlockContext, part: LearnedEquivalentTransformation) -> None:
        super().__init__()
        self._rate = part.learning_rate
        self._tied = context.architecture.tied_logit_channels
        sites = rewritten_sites(context, weight_only=part.weight_only)
        self._sites = {str(index): site for index, site in enumerate(sites)}
        self.scale, self.shift, self.logit_scale = (nn.ParameterDict() for _ in range(3))
        for key, site in self._sites.items():
            statistics = context.statistics(site)
            low, high = statistics.minimum, statistics.maximum
            shift = torch.zeros_like(low)
            if part.shift and _can_shift(context, site):
                shift = (low + high) / 2
                self.shift[key] = nn.Parameter(shift.clone())
            magnitude = torch.maximum((low - shift).abs(), (high - shift).abs()).clamp(min=1e-5)
            layers = context.layers(site).values()
            weights = torch.stack([layer.weight.detach().abs().amax(0).cpu() for layer in layers])
            largest = weights.amax(0).clamp(min=1e-5)
            initial = magnitude**part.alpha / largest ** (1 - part.alpha)
            self.scale[key] = nn.Parameter(initial.clamp(min=1e-5))
            if site.role == "qkv":
                width = len(context.layer(site.layers[0]).matrix)
                self.logit_scale[key] = nn.Parameter(torch.ones(width // self._tied))

    def rewritten(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        result = dict(tensors)
        for key, site in self._sites.items():
            scale = truncated(self.scale[key])
            shift = dict(self.shift.items()).get(key)
            self._release(result, str(site.source), scale, shift)
            for name in site.layers:
                weight = result[f"{name}.weight"]
                bias = f"{name}.bias"
                if shift is not None and bias in result:
                    result[bias] = result[bias] + weight @ shift
                result[f"{name}.weight"] = weight * scale
            if key in self.logit_scale:
                logit = truncated(self.logit_scale[key]).repeat_interleave(self._tied)
                query, keys = site.logit_layers
                self._release(result, query, logit, None)
                self._release(result, keys, 1 / logit, None)
        return result

    @staticmethod
    def _release(
        tensors: dict[str, Tensor], source: str, scale: Tensor, shift: Tensor | None
    ) -> None:
        """Shift the source's output channels down and divide them by `scale`."""
        weight, bias = f"{source}.weight", f"{source}.bias"
        rows = scale if tensors[weight].ndim == 1 else scale[:, None]
        tensors[weight] = tensors[weight] / rows
        if bias in tensors:
            moved = tensors[bias] if shift is None else tensors[bias] - shift
            tensors[bias] = moved / scale

    def optimizers(self, iterations: int) -> list[torch.optim.Optimizer]:
        del iterations
        return [torch.optim.AdamW(self.parameters(), self._rate, weight_decay=0.0, fused=True)]


def rewritten_sites(context: BlockContext, *, weight_only: bool) -> list[Site]:
    """Sites whose source can absorb a scale; the authors leave the MLP's second layer alone.

    Without `weight_only` those alone of which a layer reads quantized inputs.
    """
    return [
        site
        for site in context.block.sites
        if site.role != "fc2"
        and (weight_only or any(context.formats[name].inputs for name in site.layers))
        and can_fold(context, site)
    ]


def _can_shift(context: BlockContext, site: Site) -> bool:
    """Whether biases can take up a shift of the site's input exactly.

    Keys without a bias may drop it, behind whose softmax it is not seen; not so in the shared
    memory, whose block is judged by the keys themselves.
    """
    free = () if site.role == "cross_kv" else site.shift_invariant_layers
    source = context.model.get_submodule(str(site.source))
    return getattr(source, "bias", None) is not None and all(
        getattr(layer, "bias", None) is not None or name in free
        for name, layer in context.layers(site).items()
    )


@transforms.register("let")
@dataclass(frozen=True)
class LearnedEquivalentTransformation(Scheduled, Transform):
    """Learned scales and shifts of what layers read, trained with the range stage.

    The start differs from the authors' code in three points. It takes |x| after the shift and |w|
    (they: |x| before it, and the largest w with its sign). The shift is the middle of the whole
    calibration range (they: a running mean over samples). Alpha is 0.5 everywhere (they: 0.75 for
    4-bit weights and activations of OPT).

    Attributes:
        aug_loss: Train also towards what the float block makes of the quantized blocks' outputs, as
            the authors do at W4A4 and 2 bits.
        learning_rate: Step size of AdamW, without weight decay.
        alpha: Exponent of SmoothQuant's formula, from which the scales start.
        shift: Learn shifts too, where biases can take them up.
        weight_only: Rewrite what stays float, too; the authors learn ranges alone there.
    """

    # 3: what stays float is left alone.
    version: ClassVar[int] = 3
    learned: ClassVar[bool] = True
    lengths = OMNIQUANT_LENGTHS

    learning_rate: Rate = 5e-3
    alpha: Fraction = 0.5
    shift: bool = True
    weight_only: bool = False

    def constrain(self, format: TensorFormat, slot: Slot) -> TensorFormat:
        del slot
        if format.inputs and format.inputs.static:
            raise UserError(
                f"act_range={format.inputs.static_range} with method/transform=let: the rewrite "
                "changes what layers read while static ranges stand; use act_granularity=token"
            )
        return format

    def trainable_transform(self, context: BlockContext) -> TrainableTransform | None:
        if not rewritten_sites(context, weight_only=self.weight_only):
            return None
        return EquivalentTransformation(context, self)

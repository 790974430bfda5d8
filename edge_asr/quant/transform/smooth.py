"""SmoothQuant: move the difficulty of uneven input channels from activations into weights.

Xiao et al. 2022 (arXiv:2211.10438), section 4.1, eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_asr.quant.context import BlockContext, ModelContext
from edge_asr.quant.stages import Transform, transforms
from edge_asr.quant.transform.fold import fed_by_norm, has_rows, is_scale, scale_site
from edge_asr.settings import Fraction

# The authors keep weight magnitudes and the scales themselves from falling below this.
SMALLEST = 1e-5


def smooth_scale(largest_input: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """What the weight columns of a site are multiplied by and its inputs divided by.

    Args:
        largest_input: Largest |x| of every input channel [in_features].
        weights: Weight [out_features, in_features] of every layer that reads the input.
        alpha: Share of the difficulty that moves: 0 equalizes weights, 1 activations.

    Returns:
        max|x|^alpha / max|w|^(1 - alpha), float32 [in_features]; the weight maximum is over the
        rows of all layers.
    """
    largest_weight = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    largest_weight = largest_weight.float().cpu().clamp(min=SMALLEST)
    scale = largest_input.float().pow(alpha) / largest_weight.pow(1 - alpha)
    return scale.clamp(min=SMALLEST)


@transforms.register("smooth")
@dataclass(frozen=True)
class Smooth(Transform):
    """Move activation outliers into the weights of every site that a norm feeds.

    `out` and `fc2` stay as they are.

    The keys and values of all cross-attentions read one norm and so share one scale.

    Attributes:
        alpha: Share of the difficulty that moves from activations into weights. The paper takes
            0.5, and more where activations are harder to quantize than weights.
    """

    reads_statistics: ClassVar[bool] = True

    alpha: Fraction = 0.5

    def rewrite_model(self, context: ModelContext) -> None:
        """Nothing but a warning where the whole model will read float activations."""
        if not any(format.inputs for format in context.formats.values()):
            context.warnings.append(
                "smooth: its rewrite serves quantized activations and seldom helps weights alone; "
                "set act_bits=8 or method/transform=none"
            )

    @torch.no_grad()
    def rewrite_block(self, context: BlockContext) -> None:
        sites = [site for site in context.block.sites if fed_by_norm(context, site)]
        scales = {}
        for site in sites:
            if not has_rows(context, site, "smooth"):
                continue
            weights = [layer.weight for layer in context.layers(site).values()]
            scale = smooth_scale(context.statistics(site).largest_magnitude, weights, self.alpha)
            if is_scale(scale):
                scales[site] = scale
            else:
                context.warnings.append(
                    f"smooth: inputs or weights of {', '.join(site.layers)} are not finite; "
                    "left unscaled"
                )
        # The sites' inputs do not depend on one another's scales: one observation serves all.
        for site, scale in scales.items():
            scale_site(context, site, scale)

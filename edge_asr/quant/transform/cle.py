"""Cross-layer equalization: let a layer and the one that feeds it share their weight ranges.

Nagel et al. 2019 (arXiv:1906.04721), section 4.1. The paper's step that absorbs high biases
needs a ReLU between the layers and has no counterpart here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_asr.quant.context import BlockContext
from edge_asr.quant.stages import Transform, transforms
from edge_asr.quant.transform.fold import can_fold, is_scale, scale_site, source_layer


def equalizing_scale(source_range: Tensor, column_range: Tensor) -> Tensor:
    """s = sqrt(r1 r2) / r2, after which both ranges are sqrt(r1 r2).

    Args:
        source_range: Largest |weight| r1 of every output row of the source [channels].
        column_range: Largest |weight| r2 of every input column of its readers [channels].

    Returns:
        Factors [channels] of the readers' columns, and divisors of the source's rows; 1 where
        either range is zero and nothing can be shared.
    """
    shared = (source_range * column_range).sqrt()
    return torch.where(shared > 0, shared / column_range, 1.0)


@transforms.register("cle")
@dataclass(frozen=True)
class CrossLayerEqualization(Transform):
    """Equalize the ranges of neighbouring layers; needs no clips.

    Equalized are the pairs of Linears with nothing but a linear map between them: values and
    the output projection of every attention, and the linear half of a gated MLP's first layer
    with its second. No layer is in two pairs, so one pass reaches the paper's fixed point.
    """

    @torch.no_grad()
    def rewrite_block(self, context: BlockContext) -> None:
        # A pair is treated with the block of its source, before that is rounded; its reader may
        # be in a later block, as the output projection of a cross-attention is.
        for block in context.architecture.blocks(context.model.config):
            for site in block.sites:
                source = source_layer(context, site)
                if source is None or not can_fold(context, site):
                    continue
                layers = context.layers(site).values()
                columns = torch.stack([layer.weight.abs().amax(0) for layer in layers]).amax(0)
                scale = equalizing_scale(source.weight.abs().amax(1)[: len(columns)], columns)
                if is_scale(scale):
                    scale_site(context, site, scale)
                else:
                    context.warnings.append(
                        f"cle: weights of {site.source} or {', '.join(site.layers)} are not "
                        "finite; left as they are"
                    )

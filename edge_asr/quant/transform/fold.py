"""Scale the input channels of a site, and undo it exactly in whatever feeds them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_asr.models.families.sites import Site
from edge_asr.quant.context import BlockContext
from edge_asr.quant.layers import ChannelScale


def source_layer(context: BlockContext, site: Site) -> nn.Linear | None:
    """The Linear that feeds `site`, or None where a norm or nothing linear does."""
    source = context.model.get_submodule(site.source) if site.source else None
    return source if isinstance(source, nn.Linear) else None


def fed_by_norm(context: BlockContext, site: Site) -> bool:
    """Whether a norm with a weight of its own, read by this site alone, feeds `site`."""
    return (
        site.source is not None and source_layer(context, site) is None and can_fold(context, site)
    )


def can_fold(context: BlockContext, site: Site) -> bool:
    """Whether the source of `site` can absorb a scale of the site's input channels.

    A norm can. A Linear can only while its own block is rewritten: one of an earlier block
    has been rounded already (the values of a cross-attention, which belong to the memory
    block), and a scale would take its weights off the grid. It also needs one output row for
    every input channel, which values shared by several heads do not have. Nothing folds
    through runtime ops, which mix or scale the channels in between.
    """
    layers = [context.layer(name) for name in site.layers]
    if site.source is None or any(len(layer.input_ops) for layer in layers):
        return False
    width = layers[0].matrix.shape[1]
    source = source_layer(context, site)
    if source is not None:
        rows = width if site.source_rows == "all" else 2 * width
        return site.source in context.block.layers and source.out_features == rows
    weight = getattr(context.model.get_submodule(site.source), "weight", None)
    return isinstance(weight, Tensor) and weight.shape == (width,)


def is_scale(scale: Tensor) -> bool:
    """Whether every value is a finite number above zero."""
    return bool((torch.isfinite(scale) & (scale > 0)).all())


def has_rows(context: BlockContext, site: Site, part: str) -> bool:
    """Whether calibration says anything about `site`; a warning in the record if not."""
    if context.statistics(site).rows > 0:
        return True
    context.warnings.append(
        f"{part}: no calibration rows reached {', '.join(site.layers)}; left unscaled"
    )
    return False


@torch.no_grad()
def scale_site(
    context: BlockContext, site: Site, scale: Tensor, *, at_runtime: bool = False
) -> None:
    """Multiply the input columns of every layer of `site` by `scale`, leaving outputs as they are.

    Args:
        context: The block that is rewritten; its statistics are taken anew afterwards.
        site: The site.
        scale: Factors [in_features], all above zero.
        at_runtime: Divide the input itself, by a `ChannelScale` that runs with the model and is
            charged for. Otherwise the source's output channels are divided: the weight and bias
            of a norm, the rows and bias of a Linear, of which `source_rows == "first_half"`
            takes the first in_features only.

    Raises:
        ValueError: for a scale that is not above zero and finite, or a source that cannot
            absorb it (see `can_fold`).
    """
    if not is_scale(scale):
        raise ValueError(f"the scale of {', '.join(site.layers)} is not above zero and finite")
    if not at_runtime and not can_fold(context, site):
        raise ValueError(f"{site.source} cannot absorb a scale of {', '.join(site.layers)}")
    for layer in context.layers(site).values():
        factor = scale.to(layer.weight)
        if at_runtime:
            divided = ChannelScale(1 / factor)
            layer.input_ops.append(divided)
            # What is stored in float16 is what the weight has to undo.
            factor = 1 / divided.factor
        layer.weight.mul_(factor)
    if not at_runtime and site.source is not None:
        _divide_channels(context.model.get_submodule(site.source), scale)
    context.inputs_changed()


def _divide_channels(source: nn.Module, scale: Tensor) -> None:
    """Divide the first len(scale) output channels of a norm or a Linear."""
    count = len(scale)
    for parameter in (source.weight, source.bias):
        if isinstance(parameter, Tensor):
            factor = scale.to(parameter)
            parameter[:count] /= factor[:, None] if parameter.ndim == 2 else factor

"""AWQ: enlarge the weight columns that large activations meet before they are rounded.

Lin et al. 2023 (arXiv:2306.00978), section 3.2: a site's scale is s = mean|x|^r, with the r
whose rounded weights change the output least. The clip search of the same paper is a range
part of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from edge_asr.models.families.sites import Site
from edge_asr.quant.context import BlockContext
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.grid import reduce_groups
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.stages import Transform, transforms
from edge_asr.quant.transform.fold import can_fold, has_rows, is_scale, scale_site
from edge_asr.quant.weight import round_nearest

# The authors keep scales from falling below this before they are normalised.
SMALLEST = 1e-4


def candidate_scales(
    mean_magnitude: Tensor, n_grid: int, relative_weight: Tensor | None = None
) -> list[Tensor]:
    """The scales that are tried, for r = 0, 1/n_grid, ..., (n_grid - 1)/n_grid.

    Args:
        mean_magnitude: Mean of |x| of every input channel [in_features].
        n_grid: Number of candidates.
        relative_weight: From `relative_weight`, for the authors' first rule
            s = x^r / w^(1 - r); without it, s = x^r.

    Returns:
        Scales [in_features] whose largest and smallest value multiply to one.
    """
    scales = []
    for step in range(n_grid):
        ratio = step / n_grid
        scale = mean_magnitude.pow(ratio)
        if relative_weight is not None:
            scale = scale / relative_weight.clamp(min=SMALLEST).pow(1 - ratio)
        scale = scale.clamp(min=SMALLEST)
        scales.append((scale / (scale.amax() * scale.amin()).sqrt()).float())
    return scales


def relative_weight(weights: Sequence[Tensor], grids: Sequence[Grid]) -> Tensor:
    """Mean over all rows of |w| relative to the largest in its group, float64 [in_features].

    Args:
        weights: Weight [out_features, in_features] of every layer of a site.
        grids: Of every layer; says which columns share a scale.
    """
    rows = []
    for weight, grid in zip(weights, grids, strict=True):
        magnitude = weight.detach().double().abs().cpu()
        largest, size = reduce_groups(magnitude, grid, torch.amax)
        largest = largest.repeat_interleave(size, dim=1)[:, : magnitude.shape[1]]
        rows.append(magnitude / largest.clamp(min=torch.finfo(torch.float64).tiny))
    return torch.cat(rows).mean(0)


def rounded_under(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Q(W s) / s: what `weight` [out_features, in_features] becomes under `scale`.

    Q rounds to nearest on the min-max range of every group.
    """
    factor = scale.to(weight)
    scaled = weight * factor
    return round_nearest(scaled, minmax_parameters(scaled, grid), grid).dequantize() / factor


def attention_losses(
    context: BlockContext, site: Site, reader: str, candidates: Sequence[Mapping[str, Tensor]]
) -> list[float]:
    """Squared change of the output of attention `reader` under each of several sets of weights.

    Args:
        context: The block that is rewritten.
        site: A site that the attention reads.
        reader: Path of the attention.
        candidates: For each set, a weight [out_features, in_features] for every layer of `site`.

    Returns:
        Weighted sums over the rows of all calibration batches, so that a batch weighs as much as
        its rows and candidates are only compared once all batches are in.
    """
    attention = context.model.get_submodule(reader)
    runs = [
        _with_weights(
            attention,
            {f"{name.removeprefix(f'{reader}.')}.weight": part for name, part in weights.items()},
        )
        for weights in candidates
    ]
    memory = context.architecture.memory_block(context.model.config).layers
    # Keys and values of a cross-attention come from many frames and are the same for every
    # candidate of its query.
    unchanged = [
        name for name in memory if name.startswith(f"{reader}.") and name not in site.layers
    ]
    losses = [0.0] * len(candidates)
    for call, weights in context.calls_of(attention):
        if not weights.any():
            continue
        counted = weights > 0
        weight = weights[counted][:, None].double()
        with _outputs(context.model, unchanged) as known:
            target = call.run(attention)[counted]
        with _replaced(context.model, {name: _Known(output) for name, output in known.items()}):
            for index, run in enumerate(runs):
                change = call.run(run)[counted] - target
                losses[index] += float((change.double().square() * weight).sum())
    return losses


def _with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> Callable[..., Any]:
    """`module` as a function that computes with other `weights`, by parameter name."""
    return lambda *args, **kwargs: functional_call(module, dict(weights), args, kwargs)


class _Known(nn.Module):
    """A layer whose output is already known."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs: Tensor) -> Tensor:
        del inputs
        return self.output


@contextmanager
def _outputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collects what the modules `names` give out while it is open."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            del module, args
            outputs[name] = output

        return hook

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(keep(name)))
        yield outputs


@contextmanager
def _replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Puts `modules` in the places their names say while it is open."""
    originals = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)


@transforms.register("awq")
@dataclass(frozen=True)
class Awq(Transform):
    """Scale up the weight columns that matter; exponents are searched site by site.

    Scales fold into the norm or the layer that feeds a site: norms, values into the output
    projection of a self-attention, the linear half of a gated MLP. The output projection of a
    cross-attention stays as it is, because its values are rounded by then. Queries, keys and
    values that one attention reads are judged by the attention's output on the captured calls,
    every other site by the outputs of its own layers, of which the input's second moment tells
    the exact mean squared change. All of them are judged as rounded on their grids: columns that an
    outliers part will keep are chosen later and not known here. A site none of whose layers is
    quantized stays as it is.

    Attributes:
        n_grid: Number of exponents tried, from 0 in steps of 1/n_grid; 1 itself is never tried.
        duo_scaling: Divide by the weights' relative magnitude too, s = x^r / w^(1 - r), as the
            authors' first release did.
        scale_activation: Where a GELU or the like keeps a scale from folding (`fc2`), divide
            the activation at runtime as the authors do, at the cost of a multiplication for every
            value. Otherwise such a site stays as it is.
    """

    reads_statistics: ClassVar[bool] = True

    n_grid: Annotated[int, Field(ge=1, le=1000)] = 20
    duo_scaling: bool = False
    scale_activation: bool = True

    def without_runtime_ops(self, formats: Iterable[TensorFormat]) -> str | None:
        del formats
        return "method.transform.scale_activation=false" if self.scale_activation else None

    @torch.no_grad()
    def rewrite_block(self, context: BlockContext) -> None:
        scales: dict[Site, Tensor] = {}
        for site in context.block.sites:
            if not context.grids(site.layers):
                continue
            at_runtime = site.source is None and self.scale_activation
            if not (at_runtime or can_fold(context, site)) or not has_rows(context, site, "awq"):
                continue
            scale = self.search(context, site)
            if scale is None:
                context.warnings.append(
                    f"awq: no scale gives {', '.join(site.layers)} a finite output; left unscaled"
                )
            # A scale of one would still cost its multiplications at runtime.
            elif not bool((scale == 1).all()):
                scales[site] = scale
        # As the authors do, all sites are searched on the float block before any is scaled.
        for site, scale in scales.items():
            scale_site(context, site, scale, at_runtime=site.source is None)

    def search(self, context: BlockContext, site: Site) -> Tensor | None:
        """The best scale [in_features] of `site`; None if every loss is infinite or no number."""
        statistics, grids = context.statistics(site), context.grids(site.layers)
        weights = {name: context.layer(name).weight.detach() for name in grids}
        relative = None
        if self.duo_scaling:
            relative = relative_weight(list(weights.values()), list(grids.values()))
        scales = [
            scale
            for scale in candidate_scales(statistics.mean_magnitude, self.n_grid, relative)
            if is_scale(scale)
        ]
        rounded = [
            {name: rounded_under(weight, scale, grids[name]) for name, weight in weights.items()}
            for scale in scales
        ]
        if site.reader is not None:
            losses = attention_losses(context, site, site.reader, rounded)
        else:
            losses = [
                sum(statistics.output_error(weights[name] - part) for name, part in parts.items())
                for parts in rounded
            ]
        finite = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
        return scales[min(finite, key=losses.__getitem__)] if finite else None

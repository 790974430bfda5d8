"""QuaRot: rotate everything a quantizer sees by Hadamard matrices, so that no channel stands out.

Ashkboos et al. 2024 (arXiv:2404.00456), section 4, stages 1a to 1c: residual streams and value
heads offline, the inputs of `out` (across heads) and `fc2` online. Queries and keys are not
rotated: that (stage 1d) serves a quantized key cache, and caches stay in floating point here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_asr.models.families.sites import Site
from edge_asr.quant.context import ModelContext
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.layers import QuantizedLinear
from edge_asr.quant.stages import Transform, transforms
from edge_asr.quant.transform.hadamard_matrices import (
    FastHadamard,
    RandomHadamard,
    hadamard_matrix,
    kronecker_orders,
    largest_known_order,
    random_orthogonal,
)
from edge_asr.quant.transform.rotation import (
    Rotation,
    double_precision,
    fold_norms,
    rotate_at_runtime,
    rotate_heads,
    rotate_stream,
)
from edge_asr.settings import Seed

# Inputs of `fc2`, and of `out` across heads, can only be rotated as they pass.
WITHOUT_OPS = "method/transform=none"


@transforms.register("hadamard")
@dataclass(frozen=True)
class Hadamard(Transform):
    """Rotate residual streams and heads by random Hadamard matrices.

    Each stack has a residual stream of its own, rotated by a Hadamard matrix with random signs.
    The encoder's stem ends in a GELU, so its frames are centred and rotated explicitly before
    the first block. A token embedding that is tied to the head cannot be folded: centred,
    rotated and freed of the last norm's scale, the two would be different tables, and on
    whisper-tiny.en a second one is half the model again. So the table stays as it is; the sum
    of embedding and position is rotated explicitly, and the final hidden state is rotated back
    before the last norm. That costs two fast Hadamards a token and a few bits for their signs.
    With `untie`, or where a checkpoint's head is its own, all of this is folded instead.

    Where no Hadamard matrix of a width is known, an offline rotation is a random orthogonal
    matrix (applied online, where it must be, as a dense product), and an online one is
    block-diagonal with the largest known order that divides the width. The record says so.

    Attributes:
        seed: Seed of the random signs and of random orthogonal matrices.
        untie: Store a head of its own instead of two explicit rotations a token.
        across_heads: Mix the heads' outputs by an online Hadamard too, before `out`.
    """

    seed: Seed = 0
    untie: bool = False
    across_heads: bool = True

    @property
    def unties(self) -> bool:
        return self.untie

    def rewrite_model(self, context: ModelContext) -> None:
        rotate_model(context, seed=self.seed, untie=self.untie, across_heads=self.across_heads)

    def without_runtime_ops(self, formats: Iterable[TensorFormat]) -> str | None:
        del formats
        return WITHOUT_OPS


def rotate_model(
    context: ModelContext, *, seed: int, untie: bool, across_heads: bool, dense: bool = False
) -> None:
    """Rotate streams, heads and the inputs of `fc2`, see `Hadamard`.

    With `dense`, explicit rotations of the streams are matrices that may be changed later,
    instead of fast Hadamard transforms, and every attention draws signs for its heads' rotation,
    which then starts at random too.
    """
    model, architecture, config = context.model, context.architecture, context.model.config
    generator = torch.Generator().manual_seed(seed)
    warnings: list[str] = []
    with double_precision(model):
        warnings += fold_norms(model, architecture, untie=untie)
        for stream in architecture.residual_streams(config):
            rotation = _stream_rotation(architecture.width(config), generator, warnings)
            if dense:
                rotation = Rotation(rotation.matrix)
            rotate_stream(model, architecture, stream.stack, rotation)
        heads = dict(zip(("encoder", "decoder"), architecture.heads(config), strict=True))
        for block in architecture.blocks(config):
            for site in block.sites:
                layer = _layer(context, site)
                if site.role == "fc2":
                    _mix_at_runtime(layer, layer.in_features, 1, warnings)
                elif site.role == "out":
                    count = heads[site.stack]
                    head_dim = layer.in_features // count
                    matrix = _head_rotation(head_dim, generator, warnings, signs=dense)
                    rotate_heads(model, site, matrix)
                    if across_heads:
                        _mix_at_runtime(layer, count, head_dim, warnings)
    context.warnings += dict.fromkeys(warnings)


def _stream_rotation(width: int, generator: torch.Generator, warnings: list[str]) -> Rotation:
    if kronecker_orders(width) is not None:
        return RandomHadamard.draw(width, generator)
    warnings.append(_unknown(width, "residual streams"))
    return Rotation(random_orthogonal(width, generator))


def _head_rotation(
    head_dim: int, generator: torch.Generator, warnings: list[str], *, signs: bool
) -> Tensor:
    if kronecker_orders(head_dim) is not None:
        if signs:
            return RandomHadamard.draw(head_dim, generator).matrix
        return hadamard_matrix(head_dim) / head_dim**0.5
    warnings.append(_unknown(head_dim, "heads"))
    return random_orthogonal(head_dim, generator)


def _mix_at_runtime(layer: QuantizedLinear, count: int, stride: int, warnings: list[str]) -> None:
    """Let a Hadamard mix `count` channels (or heads of `stride` channels) of the layer's input."""
    order = largest_known_order(count)
    if order < count:
        what = "heads" if stride > 1 else "channels"
        how = f"mixed online in runs of {order}" if order > 1 else "not mixed"
        warnings.append(f"hadamard: no matrix of order {count} is known; {count} {what} are {how}")
    if order > 1:
        rotate_at_runtime(layer, FastHadamard(layer.in_features, order, stride=stride))


def _layer(context: ModelContext, site: Site) -> QuantizedLinear:
    layer = context.model.get_submodule(site.layers[0])
    assert isinstance(layer, QuantizedLinear)
    return layer


def _unknown(width: int, what: str) -> str:
    return (
        f"hadamard: no matrix of order {width} is known; {what} of that width are rotated by a "
        "random orthogonal matrix"
    )

"""WUSH: a closed-form transform of every block of input channels, made for quantized activations.

Chen et al. 2025 (arXiv:2512.00956v3) and the authors' code. The inputs x of a site become T x and
the weights W of its layers W T^-1, with T block-diagonal. In a block let H = E[x xᵀ] = RᵀR, and
R Wᵀ = V S Uᵀ with W all rows that read the block. With s = S / sqrt(rows) and a Hadamard matrix Q
of unit columns,

    T = Q diag(√s) Vᵀ R^-T,

after which inputs and weights both have the second moment Q diag(s) Qᵀ: alike, so that neither is
harder to quantize than the other, and with a constant diagonal, so that no channel stands out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from edge_asr.models.families.sites import Site
from edge_asr.quant.context import BlockContext, ModelContext
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.layers import RuntimeOp, modules
from edge_asr.quant.stages import Transform, transforms
from edge_asr.quant.transform.fold import has_rows
from edge_asr.quant.transform.hadamard import WITHOUT_OPS, Hadamard
from edge_asr.quant.transform.hadamard_matrices import hadamard_matrix, kronecker_orders
from edge_asr.settings import Bits, Rate


@modules.register("block_product")
class BlockProduct(RuntimeOp):
    """Multiply every run of b channels of a row [..., n] by a matrix of its own, in float16.

    n x b MACs a row.

    Args:
        blocks: [n / b, b, b]; a run x of a row becomes its block times x.
    """

    blocks: Tensor

    def __init__(self, blocks: Tensor) -> None:
        super().__init__()
        self.register_buffer("blocks", blocks.detach().half().to(torch.float32))

    @property
    def macs_per_row(self) -> int:
        return self.blocks.numel()

    @property
    def stored_bits(self) -> float:
        return 16.0 * self.blocks.numel()

    def stored(self) -> dict[str, Tensor]:
        return {"blocks": self.blocks.half()}

    def forward(self, inputs: Tensor) -> Tensor:
        # Weights hold the exact inverse: products in fewer digits would not be undone.
        with torch.autocast(inputs.device.type, enabled=False):
            runs = inputs.to(self.blocks.dtype).unflatten(-1, self.blocks.shape[:2])
            products = torch.einsum("bij,...bj->...bi", self.blocks, runs)
        return products.flatten(-2).to(inputs.dtype)


def wush_blocks(second_moment: Tensor, weight: Tensor, size: int, damping: float) -> Tensor:
    """T of every block of `size` columns, float64 [columns / size, size, size].

    Args:
        second_moment: Mean of x xᵀ [columns, columns].
        weight: All rows that read x [rows, columns].
        size: Columns of a block; a Hadamard matrix of that order is known.
        damping: Is added to the diagonal of H, relative to its mean, and to s likewise.
    """
    count = len(second_moment) // size
    blocks = second_moment.double().reshape(count, size, count, size)
    hessian = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0).clone()
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    # A block of dead channels is only rotated, and so is one that nothing reads.
    hessian.diagonal(dim1=-2, dim2=-1).add_(torch.where(mean > 0, damping * mean, 1.0))
    lower = torch.linalg.cholesky(hessian)
    columns = weight.double().unflatten(1, (count, size)).movedim(1, 0)
    reached = lower.mT @ (columns.mT @ columns) @ lower / len(weight)
    squares, basis = torch.linalg.eigh(reached)
    # Their signs are whatever the library makes them, and codes depend on them.
    basis = basis * basis.gather(-2, basis.abs().argmax(-2, keepdim=True)).sign()
    spread = squares.clamp(min=0).sqrt()
    mean = spread.mean(-1, keepdim=True)
    spread = torch.where(mean > 0, spread + damping * mean, 1.0)
    rotation = hadamard_matrix(size) / size**0.5
    whitened = torch.linalg.solve_triangular(lower.mT, basis, upper=True)
    return rotation @ (spread.sqrt()[..., None] * whitened.mT)


@transforms.register("wush")
@dataclass(frozen=True)
class Wush(Transform):
    """Rewrite the inputs of every site, where they are quantized, block by block.

    Attributes:
        block_size: Channels of a block; the largest size up to it that divides the width is taken.
        damping: Is added to the second moment of the inputs, relative to its mean diagonal, and to
            the singular values, relative to their mean.
        max_bits: Inputs of more bits are left as they are.
        otherwise: What serves a model none of whose inputs has so few bits: nothing (none), or the
            rotations of the part hadamard.
    """

    reads_statistics: ClassVar[bool] = True

    block_size: Annotated[int, Field(ge=1, le=512)] = 32
    damping: Rate = 0.01
    max_bits: Bits = 8
    otherwise: Literal["none", "hadamard"] = "none"

    def rewrite_model(self, context: ModelContext) -> None:
        """Rotate a model with no input to serve, or warn of one that reads floats alone."""
        if self.otherwise == "hadamard":
            if not any(map(self._serves, context.formats.values())):
                Hadamard().rewrite_model(context)
            return
        # Who gives a limit knows that it leaves layers alone.
        limited = self.max_bits != Wush.max_bits
        if not limited and not any(map(self._serves, context.formats.values())):
            context.warnings.append(
                "wush: its rewrite serves quantized activations and leaves layers alone that read "
                "floats; set act_bits=4 or method/transform=none"
            )

    @torch.no_grad()
    def rewrite_block(self, context: BlockContext) -> None:
        # What a site reads does not depend on how others are rewritten: one observation serves all.
        chosen = [
            site
            for site in context.block.sites
            if any(self._serves(context.formats[name]) for name in site.layers)
        ]
        ops = {site: self._op(context, site) for site in chosen if has_rows(context, site, "wush")}
        for site, op in ops.items():
            if bool(op.blocks.isfinite().all()):
                _multiply_at_runtime(context, site, op)
            else:
                context.warnings.append(
                    f"wush: the transform of {', '.join(site.layers)} does not fit into float16; "
                    "left as they are"
                )
        if ops:
            context.inputs_changed()

    def may_rewrite(self, formats: Iterable[TensorFormat]) -> bool:
        return any(map(self._serves, formats))

    def without_runtime_ops(self, formats: Iterable[TensorFormat]) -> str | None:
        leaves = self.otherwise == "hadamard" or any(map(self._serves, formats))
        return WITHOUT_OPS if leaves else None

    def _serves(self, format: TensorFormat) -> bool:
        return format.inputs is not None and format.inputs.bits <= self.max_bits

    def _op(self, context: BlockContext, site: Site) -> BlockProduct:
        weights = [layer.weight.cpu() for layer in context.layers(site).values()]
        width = weights[0].shape[1]
        size = largest_block(width, self.block_size)
        if size < min(self.block_size, width):
            context.warnings.append(
                f"wush: no blocks of {self.block_size} in the {width} channels of "
                f"{', '.join(site.layers)}; blocks of {size}"
            )
        moment = context.statistics(site).second_moment
        return BlockProduct(wush_blocks(moment, torch.cat(weights), size, self.damping))


def largest_block(width: int, most: int) -> int:
    """The largest size up to `most` that divides `width` and has a known Hadamard matrix."""
    sizes: Sequence[int] = range(min(most, width), 1, -1)
    fitting = (size for size in sizes if width % size == 0 and kronecker_orders(size) is not None)
    return next(fitting, 1)


def _multiply_at_runtime(context: BlockContext, site: Site, op: BlockProduct) -> None:
    """Let `op` run on the input of `site`, once for all its layers, and undo it in their weights,
    with the inverse of what is stored."""
    blocks = op.blocks.double()
    op = op.to(context.model.device)
    for layer in context.layers(site).values():
        columns = layer.weight.double().cpu().unflatten(1, blocks.shape[:2]).movedim(1, 0)
        undone = torch.linalg.solve(blocks, columns, left=False)
        layer.weight.copy_(undone.movedim(0, 1).flatten(1))
        layer.input_ops.append(op)

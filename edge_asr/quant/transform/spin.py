"""SpinQuant: learn the rotations, so that the quantized model's own loss falls.

Liu et al. 2024 (arXiv:2405.16406), section 3: R1 of the residual streams and R2 of the value
heads start as random Hadamard matrices and are trained by Cayley SGD on the cross-entropy of
the quantized network; the online Hadamard before `fc2` (R4) is fixed. Keys are not cached
in low precision here, so there is no R3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_asr.models.families.sites import Site
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.context import ModelContext
from edge_asr.quant.formats import Grid, TensorFormat
from edge_asr.quant.grid import dequantize, quantize, straight_through_round
from edge_asr.quant.layers import QuantizedLayer
from edge_asr.quant.model_training import NOT_ASKED, ModelLearnable, train_model
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.reconstruction import Length, Trained
from edge_asr.quant.stages import Transform, transforms
from edge_asr.quant.transform.cayley import CayleySGD, orthogonal_again
from edge_asr.quant.transform.hadamard import WITHOUT_OPS, rotate_model
from edge_asr.quant.transform.rotation import (
    StreamTensors,
    double_precision,
    rotate_inputs,
    rotate_outputs,
    stream_tensors,
)
from edge_asr.settings import Rate, ScheduleName


class Spins(nn.Module):
    """Further rotations of a model that is rotated already; the identity until trained.

    Attributes:
        streams: One [width, width] for each residual stream.
        heads: One [head_dim, head_dim] for every attention, shared by its heads.
    """

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        architecture, config = context.architecture, context.model.config
        residual = architecture.residual_streams(config)
        self._streams: list[StreamTensors] = [
            stream_tensors(context.model, architecture, stream) for stream in residual
        ]
        self._sites: list[Site] = [
            site
            for block in architecture.blocks(config)
            for site in block.sites
            if site.role == "out"
        ]
        heads = dict(zip(("encoder", "decoder"), architecture.heads(config), strict=True))
        width = architecture.width(config)
        self.streams = nn.ParameterList([torch.eye(width) for _ in self._streams])
        self.heads = nn.ParameterList(
            [torch.eye(width // heads[site.stack]) for site in self._sites]
        )

    def rotated(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters and buffers by path with the rotations folded in; differentiable."""
        result = dict(tensors)
        for paths, matrix in zip(self._streams, self.streams, strict=True):
            for name in paths.inputs:
                _change(result, f"{name}.weight", rotate_inputs, matrix)
            for name in paths.tables:
                _change(result, f"{name}.weight", rotate_inputs, matrix)
            for name in paths.outputs:
                _change(result, f"{name}.weight", rotate_outputs, matrix)
                _change_bias(result, name, matrix)
            if paths.entry is not None:
                _change(result, paths.entry, rotate_inputs, matrix)
            if paths.exit is not None:
                _change(result, paths.exit, rotate_outputs, matrix)
        for site, matrix in zip(self._sites, self.heads, strict=True):
            value, (out,) = str(site.source), site.layers
            _change(result, f"{value}.weight", rotate_outputs, matrix)
            _change_bias(result, value, matrix)
            _change(result, f"{out}.weight", rotate_inputs, matrix)
        return result


def _change(
    tensors: dict[str, Tensor],
    path: str,
    kernel: Callable[[Tensor, Tensor], Tensor],
    matrix: Tensor,
) -> None:
    tensors[path] = kernel(tensors[path], matrix.to(tensors[path].dtype))


def _change_bias(tensors: dict[str, Tensor], layer: str, matrix: Tensor) -> None:
    path = f"{layer}.bias"
    if path in tensors:
        tensors[path] = rotate_inputs(tensors[path][None], matrix.to(tensors[path].dtype))[0]


@transforms.register("spin")
@dataclass(frozen=True)
class Spin(Trained, Transform):
    """Rotations like those of `hadamard`, learned on the quantized network's own loss.

    The network that is trained through has quantized activations and float weights where the run
    quantizes activations, as the authors train for GPTQ; without quantized activations its
    weights are rounded to nearest instead, for a rotation alone changes nothing in a float model.
    Where the run's activations have one range a tensor, every token has its own there,
    and no outlier is kept, for ranges and outliers are chosen on the rotated model.

    Attributes:
        learning_rate: Step size of Cayley SGD at first; it falls along a cosine.
        max_grad_norm: Largest norm of the gradients of all rotations together; longer ones are
            shortened to it, as the authors' trainer does unless told otherwise.
        seed: Seed of the first rotations and of the order of the calibration clips.
        untie: Store a head of its own instead of two explicit rotations a token.
    """

    reads_statistics: ClassVar[bool] = True
    trains_model: ClassVar[bool] = True

    # The authors take one sample on each of eight devices.
    lengths: ClassVar[Mapping[ScheduleName, Length]] = {
        "short": Length(100, clips=1),
        "paper": Length(100, clips=8),
    }

    learning_rate: Rate = 1.5
    max_grad_norm: Rate = 1.0
    untie: bool = False

    @property
    def unties(self) -> bool:
        return self.untie

    def rewrite_model(self, context: ModelContext) -> None:
        rotate_model(context, seed=self.seed, untie=self.untie, across_heads=False, dense=True)
        spins = Spins(context).to(context.model.device)
        with _quantized_inputs(context):
            self._train(context, spins)
        with torch.no_grad(), double_precision(context.model):
            tensors = _tensors(context.model)
            spins.double()
            for matrix in spins.parameters():
                # Steps are orthogonal to a few decimals only; folding must be exact.
                matrix.copy_(orthogonal_again(matrix))
            for path, value in spins.rotated(tensors).items():
                tensors[path].copy_(value)

    def without_runtime_ops(self, formats: Iterable[TensorFormat]) -> str | None:
        del formats
        return WITHOUT_OPS

    @property
    def evaluations(self) -> int:
        return 5

    def _train(self, context: ModelContext, spins: Spins) -> None:
        optimizer = CayleySGD(spins.parameters(), lr=self.learning_rate, seed=self.seed)
        found = train_model(
            context, RotatedModel(context, spins), summed_cross_entropy, optimizer, self.training,
            max_grad_norm=self.max_grad_norm, apart=False,
        )  # fmt: skip
        if not found.loss_after < found.loss_before:
            context.warnings.append(
                f"spin: {found.iterations} steps did not lower the loss of {found.loss_before:.3g}"
            )
        context.reconstructions.append(found)


class RotatedModel(ModelLearnable):
    """The model further rotated; its weights rounded to nearest where activations stay float."""

    def __init__(self, context: ModelContext, spins: Spins) -> None:
        super().__init__()
        self.spins = spins
        self._fixed = {path: value.detach() for path, value in _tensors(context.model).items()}
        self._grids = {
            f"{name}.weight": format.weights
            for name, format in context.formats.items()
            if format.weights is not None and not _reads_quantized(context)
        }

    def tensors(self) -> dict[str, Tensor]:
        tensors = self.spins.rotated(self._fixed)
        return tensors | {path: _nearest(tensors[path], grid) for path, grid in self._grids.items()}


def summed_cross_entropy(index: int, clips: Tensor, logits: Tensor, following: Tensor) -> Tensor:
    """A `TokenLoss`: that of the transcripts."""
    del index, clips
    return functional.cross_entropy(
        logits.flatten(0, 1), following.flatten(), reduction="sum", ignore_index=NOT_ASKED
    )


def _nearest(weight: Tensor, grid: Grid) -> Tensor:
    """`weight` at its nearest grid points, with a straight-through gradient."""
    scale, zero = minmax_parameters(weight, grid).expand(weight.shape[1])
    return dequantize(quantize(weight, scale, zero, grid, straight_through_round), scale, zero)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by path."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@contextmanager
def _quantized_inputs(context: ModelContext) -> Iterator[None]:
    """Quantize what every layer reads, a scale a token, inside the context."""
    layers = {
        name: cast(QuantizedLayer, context.model.get_submodule(name)) for name in context.formats
    }
    kept = {name: layer.quantize_input for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            inputs = context.formats[name].inputs
            if inputs is not None:
                if inputs.granularity == "tensor":
                    inputs = replace(inputs, granularity="token", static_range=None)
                layer.quantize_input = InputQuantizer(inputs)
        yield
    finally:
        for name, layer in layers.items():
            layer.quantize_input = kept[name]


def _reads_quantized(context: ModelContext) -> bool:
    return any(format.inputs for format in context.formats.values())

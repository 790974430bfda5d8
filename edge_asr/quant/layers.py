"""The layers of a quantized model, and the operations that run with it.

A *runtime op* is an operation on activations that could not be folded into weights: an un-fused
channel scale, a rotation. It is a visible, registered module, so that it is charged, stored with
the model and rebuilt by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_asr.quant.weight import QuantizedWeight
from edge_asr.registry import Registry


class StoredModule(nn.Module):
    """A module that is not of the checkpoint and is stored with a quantized model."""

    def description(self) -> dict[str, Any]:
        """What `rebuild` needs besides tensors, as JSON values."""
        return {}

    def stored(self) -> dict[str, Tensor]:
        """Tensors by name in the dtype they are charged for."""
        return {}

    @classmethod
    def rebuild(cls, description: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Self:
        """The module whose `description` and `stored` these are."""
        return cls(**description, **stored)

    def attach(self, model: nn.Module, path: str) -> None:
        """Put it at `path` of a model that has been rebuilt up to its parent."""
        parent, _, child = path.rpartition(".")
        model.get_submodule(parent).add_module(child, self)


modules: Registry[StoredModule] = Registry("module")


class RuntimeOp(StoredModule):
    """An operation on activations that runs with the model.

    Attributes:
        in_float32: It computes in float32, whatever the layers around it compute in.
    """

    in_float32: ClassVar[bool] = True

    @property
    def macs_per_row(self) -> int:
        """Multiply-accumulates for every row (frame or token) of the input."""
        return 0

    @property
    def stored_bits(self) -> float:
        """Bits of whatever it must keep (scales, a rotation matrix)."""
        return 0.0

    def round_stored(self) -> None:
        """Take the values that are stored; float16 for all that is charged 16 bits."""


@modules.register("channel_scale")
class ChannelScale(RuntimeOp):
    """Multiply every channel of the input [..., channels] by a factor of its own, in float16."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.detach().half().to(torch.float32))

    @property
    def macs_per_row(self) -> int:
        return self.factor.numel()

    @property
    def stored_bits(self) -> float:
        return 16.0 * self.factor.numel()

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor

    def stored(self) -> dict[str, Tensor]:
        return {"factor": self.factor.half()}


class QuantizedLayer(nn.Module):
    """A layer with a weight whose input passes runtime ops (of a Linear layer) and then an input
    quantizer, both visible modules.

    Until a method puts something there, both are identities and the layer computes what the
    layer it stands for computes.

    Attributes:
        weight: Its values, in the shape the layer has in the checkpoint.
        input_ops: Modules applied to the input in order, each a `RuntimeOp`.
        quantize_input: The activation quantizer, or an identity.
        quantized: What is stored of the weight, whose values `weight` then has; None: floats.
    """

    weight: Tensor
    input_ops: nn.Sequential
    quantize_input: nn.Module
    quantized: QuantizedWeight | None

    def share(self, layer: Any) -> Self:
        """Take over the parameters of `layer`, and nothing that a method does yet."""
        for name, parameter in layer.named_parameters(recurse=False):
            setattr(self, name, parameter)
        self.input_ops = nn.Sequential()
        self.quantize_input = nn.Identity()
        self.quantized = None
        return self.train(layer.training)

    @property
    def matrix(self) -> Tensor:
        """The weight as it is quantized, [rows, columns]: a row an output channel or token."""
        return self.weight.detach().flatten(1)

    def rows(self, input: Tensor) -> Tensor:
        """What it reads as rows that `matrix` multiplies, [..., columns]."""
        return input

    @torch.no_grad()
    def store(self, weight: QuantizedWeight) -> None:
        """Keep `weight` and compute with its values from now on."""
        self.quantized = weight.to("cpu")
        self.weight.copy_(self.quantized.dequantize().reshape(self.weight.shape))


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A Linear layer."""

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> QuantizedLinear:
        """A layer that shares the parameters of `linear`."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        return layer.share(linear)

    def read(self, input: Tensor) -> Tensor:
        """`input` as the weight is multiplied by it."""
        read: Tensor = self.quantize_input(self.input_ops(input))
        return read

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(self.read(input), self.weight, self.bias)


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """A convolution along time, without groups. What it reads at an output position, all channels
    of its kernel's width, is a row to its input quantizer, as where a runtime multiplies matrices.
    """

    @classmethod
    def from_conv(cls, conv: nn.Conv1d) -> QuantizedConv1d:
        """A layer that shares the parameters of `conv`."""
        with torch.device("meta"):
            layer = cls(
                conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0],
                conv.padding[0], conv.dilation[0], bias=conv.bias is not None,
            )  # fmt: skip
        return layer.share(conv)

    def rows(self, input: Tensor) -> Tensor:
        """[batch, positions, channels x kernel] of what it reads, [batch, channels, time]."""
        padded = functional.pad(input, (int(self.padding[0]),) * 2)
        windows = padded.unfold(2, self.kernel_size[0], self.stride[0])
        return windows.transpose(1, 2).flatten(2)

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(self.quantize_input, nn.Identity):
            return super().forward(input)
        rows = self.quantize_input(self.rows(input))
        return functional.linear(rows, self.weight.flatten(1), self.bias).transpose(1, 2)


class QuantizedEmbedding(QuantizedLayer, nn.Embedding):
    """A table of which a row is read a token."""

    @classmethod
    def from_embedding(cls, table: nn.Embedding) -> QuantizedEmbedding:
        """A layer that shares the parameter of `table`."""
        with torch.device("meta"):
            layer = cls(table.num_embeddings, table.embedding_dim, table.padding_idx)
        return layer.share(table)


def runtime_ops(model: nn.Module) -> dict[str, RuntimeOp]:
    """All runtime ops of `model` by module path; an op inside another is part of that."""
    found: dict[str, RuntimeOp] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, RuntimeOp) and not inside:
            found[name] = module
    return found


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """All layers with a quantized weight, by module path; of a head that is the embedding, that."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer) and module.quantized is not None
    }


def install_layers(model: nn.Module, names: Iterable[str]) -> None:
    """Put a `QuantizedLayer` in the place of every layer in `names`.

    Raises:
        TypeError: when a name leads to something else.
    """
    for name in names:
        layer: Any = model.get_submodule(name)
        if isinstance(layer, QuantizedLayer):
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _quantizable(name, layer))


def _quantizable(name: str, layer: nn.Module) -> QuantizedLayer:
    match layer:
        case nn.Linear():
            return QuantizedLinear.from_linear(layer)
        case nn.Conv1d(groups=1, padding_mode="zeros", dilation=(1,)):
            return QuantizedConv1d.from_conv(layer)
        case nn.Embedding():
            return QuantizedEmbedding.from_embedding(layer)
    raise TypeError(f"{name} is no layer that can be quantized")

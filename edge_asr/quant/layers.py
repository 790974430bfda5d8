"""The Linear layer of a quantized model: visible online work, quantized input, baked weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class OnlineWork(nn.Module):
    """Work on activations that could not be folded into weights and runs with the model.

    Attributes:
        macs_per_row: Multiply-accumulates for every row (frame or token) of the input.
        stored_bits: Bits of whatever it must keep (scales, a rotation matrix), 16 a value as for
            all scales. Here it runs in float32.
    """

    macs_per_row: int = 0
    stored_bits: float = 0.0


class ChannelScale(OnlineWork):
    """Multiply every channel of the input [..., channels] by a factor of its own."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.detach().clone())
        self.macs_per_row = factor.numel()
        self.stored_bits = 16.0 * factor.numel()

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor


class QuantizedLinear(nn.Linear):
    """A Linear whose input passes online work and then an input quantizer, both visible modules.

    Until a method puts something there, both are identities and the layer computes what the
    Linear it stands for computes.

    Attributes:
        online: Modules applied to the input in order, each an `OnlineWork`.
        quantize_input: The activation quantizer, or an identity.
    """

    online: nn.Sequential
    quantize_input: nn.Module

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> QuantizedLinear:
        """A layer that shares the parameters of `linear`."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.online = nn.Sequential()
        layer.quantize_input = nn.Identity()
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(self.quantize_input(self.online(input)), self.weight, self.bias)

    @property
    def online_work(self) -> tuple[OnlineWork, ...]:
        return tuple(part for part in self.online if isinstance(part, OnlineWork))


def online_work(model: nn.Module) -> dict[str, OnlineWork]:
    """All online work of `model` by module path; work inside other work is part of that."""
    found: dict[str, OnlineWork] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, OnlineWork) and not inside:
            found[name] = module
    return found


def install_layers(model: nn.Module, names: Iterable[str]) -> None:
    """Put a `QuantizedLinear` in the place of every Linear in `names`.

    Raises:
        TypeError: when a name leads to something else.
    """
    for name in names:
        layer: Any = model.get_submodule(name)
        if isinstance(layer, QuantizedLinear):
            continue
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is no Linear layer")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantizedLinear.from_linear(layer))

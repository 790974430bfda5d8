"""What exporters to ONNX Runtime share: layers as operators, and how a file tells them again."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edge_asr.export.base import Exporter, stored_weight, weighted_layers
from edge_asr.models.loading import Checkpoint
from edge_asr.models.tensors import Slot
from edge_asr.quant.layers import QuantizedConv1d, QuantizedLinear
from edge_asr.quant.weight import QuantizedWeight

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
FEATURES, TOKEN = "features", "token"
CROSS = ("cross_keys", "cross_values")  # what the encoder gives, and the decoder reads
CACHES = ("keys", "values", *CROSS)
LAYERS = "edge_asr.layers"  # in a graph's metadata: the layer's path by its initializers' prefix


class Operators(nn.Module):
    """A layer as operators of ONNX; it cannot run in PyTorch, only be traced.

    Attributes:
        layer: The path of the layer it stands for.
        same_as: The path of one that has the very same constants, or None.
    """

    same_as: str | None = None

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer


class OperatorLinear(Operators):
    """A Linear layer."""

    def __init__(self, layer: str, own: Any) -> None:
        super().__init__(layer)
        self.input_ops = own.input_ops if isinstance(own, QuantizedLinear) else nn.Sequential()
        self.bias = own.bias

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.product(self.input_ops(inputs))
        return outputs if self.bias is None else outputs + self.bias

    @abstractmethod
    def product(self, inputs: Tensor) -> Tensor:
        """The inputs times the weight."""


class OnnxExporter(Exporter):
    """Writes `encoder.onnx` and `decoder.onnx`, see `graphs.py`, and what transcribing with them
    alone takes, see `decoding_file.py`."""

    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")
    extra: ClassVar[str] = "onnx"

    @abstractmethod
    def linear(self, name: str, layer: nn.Module, weight: QuantizedWeight) -> Operators:
        """What stands for the Linear layer at path `name`; `weight` is its own, or that of the
        embedding that it is the head of."""

    @abstractmethod
    def table(self, name: str, weight: QuantizedWeight) -> Operators:
        """What stands for the embedding at path `name`."""

    def convolution(self, name: str, layer: QuantizedConv1d) -> Operators:
        """What stands for the convolution at path `name`, where the target holds such."""
        del layer
        raise TypeError(f"{name}: the target holds no quantized convolution")

    @abstractmethod
    def weights(
        self, nodes: Iterator[Any], values: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, Tensor]]:
        """Of every layer among a graph's `nodes` the name of the initializer that holds its codes,
        and its weight float32. `values` are the graph's constants by name."""

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        from edge_asr.export.decoding_file import write_decoding
        from edge_asr.export.graphs import write_graphs

        model: Any = copy.deepcopy(checkpoint.model)
        architecture = checkpoint.architecture
        architecture.leave_out_head_padding(model)
        for slot, layer in weighted_layers(checkpoint):
            weight = stored_weight(checkpoint, slot)
            if weight is not None:
                parent, _, child = slot.name.rpartition(".")
                own = self.operators(slot, layer, weight)
                if slot.kind == "head" and architecture.is_tied(checkpoint.model):
                    own.same_as = architecture.embedding
                setattr(model.get_submodule(parent), child, own)
        write_graphs(checkpoint, model, folder)
        write_decoding(checkpoint, folder)

    def operators(self, slot: Slot, layer: nn.Module, weight: QuantizedWeight) -> Operators:
        """What stands for the layer of `slot`."""
        if slot.kind == "embedding":
            return self.table(slot.name, weight)
        if isinstance(layer, QuantizedConv1d):
            return self.convolution(slot.name, layer)
        return self.linear(slot.name, layer, weight)

    def read_back(self, folder: Path) -> Mapping[str, Tensor]:
        import onnx
        from onnx import numpy_helper

        found = {}
        for path in (folder / ENCODER, folder / DECODER):
            proto = onnx.load(path)
            values = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
            for node in proto.graph.node:
                if node.op_type == "Cast" and node.input[0] in values:
                    values[node.output[0]] = values[node.input[0]].astype(np.float32)
            layers = json.loads(
                next(one.value for one in proto.metadata_props if one.key == LAYERS)
            )
            for codes, weight in self.weights(iter(proto.graph.node), values):
                found[layers[codes.rpartition(".")[0]]] = weight
        return found


def tensor_of(values: np.ndarray) -> Tensor:
    """A constant of a graph, which is read-only, as a tensor."""
    return torch.from_numpy(values.copy())

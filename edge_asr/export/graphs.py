"""Encoder and decoder of a model as two ONNX graphs, with a cache between the decoder's steps.

`encoder.onnx`: features -> the keys and values that every decoder layer's cross-attention reads,
each [layers, 1, heads, frames, head_dim]. `decoder.onnx`: one token [1, 1], the cache so far and
those keys and values -> logits [1, vocabulary] and the cache, each [layers, 1, heads, tokens,
head_dim], which is empty (tokens = 0) before the first step.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from edge_asr.audio import SAMPLE_RATE
from edge_asr.export.onnx_exporter import (
    CACHES,
    CROSS,
    DECODER,
    ENCODER,
    FEATURES,
    LAYERS,
    TOKEN,
    Operators,
)
from edge_asr.models.families.base import Architecture
from edge_asr.models.loading import Checkpoint
from edge_asr.store.files import write_bytes_atomically

OPSET = 21
TRACED_TOKENS = 4  # any number but 0 and 1, which tracing takes for constants


class EncoderGraph(nn.Module):
    """Features to cross-attention keys and values."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        super().__init__()
        self.encoder = model.get_submodule(architecture.encoder_module)
        depth = architecture.depth(model.config)[1]
        layers = [architecture.cross_layers(index) for index in range(depth)]
        self.keys = nn.ModuleList([model.get_submodule(key) for key, _ in layers])
        self.values = nn.ModuleList([model.get_submodule(value) for _, value in layers])
        self.heads = architecture.heads(model.config)[1]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(features).last_hidden_state

        def split(layers: nn.ModuleList) -> Tensor:
            return torch.stack(
                [layer(memory).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers]
            )

        return split(self.keys), split(self.values)


class DecoderGraph(nn.Module):
    """One step of the decoder."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        super().__init__()
        self.decoder = model.get_submodule(architecture.decoder_module)
        self.head = model.get_submodule(architecture.head)
        self.depth = architecture.depth(model.config)[1]
        self.width = architecture.width(model.config)

    def forward(
        self, token: Tensor, keys: Tensor, values: Tensor, cross_keys: Tensor, cross_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        own, cross = DynamicCache(), DynamicCache()
        for index in range(self.depth):
            own.update(keys[index], values[index], index)
            cross.update(cross_keys[index], cross_values[index], index)
        cache = EncoderDecoderCache(own, cross)
        cache.is_updated = dict.fromkeys(range(self.depth), True)
        # Only its shape is looked at: its keys and values are in the cache.
        memory = cross_keys.new_zeros(1, cross_keys.shape[3], self.width)
        states = self.decoder(
            input_ids=token, encoder_hidden_states=memory, past_key_values=cache, use_cache=True
        ).last_hidden_state
        layers: list[Any] = own.layers
        return (
            self.head(states[:, -1]),
            torch.stack([layer.keys for layer in layers]),
            torch.stack([layer.values for layer in layers]),
        )


def write_graphs(checkpoint: Checkpoint, model: Any, folder: Path) -> None:
    """Write both graphs of `model`, whose layers may be modules of ONNX operators.

    Args:
        checkpoint: Says how features are made.
        model: Of its architecture, in evaluation mode.
        folder: Where to.
    """
    architecture = checkpoint.architecture
    features = next(
        iter(
            architecture.model_inputs(
                checkpoint.feature_extractor, [np.zeros(2 * SAMPLE_RATE, np.float32)]
            ).values()
        )
    )
    with torch.no_grad():
        encoder, decoder = EncoderGraph(model, architecture), DecoderGraph(model, architecture)
        heads, width = encoder.heads, architecture.width(model.config)
        depth, head_dim = decoder.depth, width // heads
        any_length = architecture.window_samples(model.config, checkpoint.feature_extractor) is None
        frames = {3: torch.export.Dim.DYNAMIC} if any_length else None
        count = architecture.positions(model.config, 2 * SAMPLE_RATE)["frame"]
        tokens = {3: torch.export.Dim.DYNAMIC}
        cross = torch.zeros(depth, 1, heads, count, head_dim)
        cache = torch.zeros(depth, 1, heads, TRACED_TOKENS, head_dim)
        _write(
            folder / ENCODER, encoder, (features,), (FEATURES,), CROSS,
            {FEATURES: {1: torch.export.Dim.DYNAMIC} if any_length else None},
        )  # fmt: skip
        _write(
            folder / DECODER, decoder,
            (torch.zeros(1, 1, dtype=torch.long), cache, cache.clone(), cross, cross.clone()),
            (TOKEN, *CACHES),
            ("logits", "new_keys", "new_values"),
            {TOKEN: None, **dict(zip(CACHES, (tokens, tokens, frames, frames), strict=True))},
        )  # fmt: skip


def _write(
    path: Path,
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    dynamic: Mapping[str, Any],
) -> None:
    with _quiet():
        program = torch.onnx.export(
            graph.eval(), inputs, dynamo=True, opset_version=OPSET, input_names=names,
            output_names=outputs, dynamic_shapes=dict(dynamic), verbose=False,
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    operators = {name: one for name, one in graph.named_modules() if isinstance(one, Operators)}
    _merge(proto.graph, operators)
    _halve(proto.graph)
    _forget_tracing(proto)
    layers = {name: one.layer for name, one in operators.items()}
    proto.metadata_props.add(key=LAYERS, value=json.dumps(layers))
    onnx.checker.check_model(proto)
    write_bytes_atomically(path, proto.SerializeToString())


def _forget_tracing(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes of every operator: lines of source with the paths of this
    machine, which are up to a tenth of the file."""
    graph = proto.graph
    for one in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del one.metadata_props[:]


def _merge(graph: onnx.GraphProto, operators: Mapping[str, Operators]) -> None:
    """Store the constants of a head that is the embedding once."""
    place = {one.layer: name for name, one in operators.items()}
    same = {
        f"{name}.{constant}": f"{place[one.same_as]}.{constant}"
        for name, one in operators.items()
        if one.same_as is not None
        for constant in dict(one.named_buffers())
    }
    shapes = {one.name: list(one.dims) for one in graph.initializer}
    for one in graph.initializer:
        # The exporter itself keeps only one of small constants that are equal.
        if one.name in same and same[one.name] not in shapes:
            shapes[same[one.name]], shapes[one.name] = shapes[one.name], []
            one.name = same[one.name]
    turned = [
        name for name, other in same.items() if shapes.get(name) and shapes[name] != shapes[other]
    ]
    transposes = [onnx.helper.make_node("Transpose", [same.pop(name)], [name]) for name in turned]
    kept = [one for one in graph.initializer if one.name not in {*same, *turned}]
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
    nodes = [*transposes, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _halve(graph: onnx.GraphProto) -> None:
    """Store floats in half precision wherever that holds them exactly.

    A runtime makes float32 of them once, when it loads the file.
    """
    casts = []
    for initializer in graph.initializer:
        if initializer.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(initializer)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < 2 or not np.array_equal(half.astype(np.float32), values):
            continue
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what tracing has to say about itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)

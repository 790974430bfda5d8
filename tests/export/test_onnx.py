"""ONNX files: the operators compute what is simulated, and a model hears the same through them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export.models import SIGNED, WIDTHS, quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_moonshine, tone
from torch import Tensor, nn

from edge_asr.errors import UserError
from edge_asr.export.decoding_file import DECODING, TOKENIZER
from edge_asr.export.formats.onnx_dynamic import DynamicLinear
from edge_asr.export.formats.onnx_nbits import (
    NBitsLinear,
    dequantized,
    packed_blocks,
    packed_rows,
    unpacked_rows,
)
from edge_asr.export.graphs import DECODER, ENCODER
from edge_asr.export.onnx_exporter import CACHES, LAYERS, OperatorLinear
from edge_asr.export.write import export, write_for
from edge_asr.models.decoding import StackDtypes
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.layers import QuantizedLayer, QuantizedLinear
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.target import Target
from edge_asr.quant.weight import QuantizedWeight, round_nearest
from edge_asr.runtimes.base import Runtime
from edge_asr.runtimes.onnx_runtime import OnnxRuntime
from edge_asr.runtimes.torch_greedy import TorchRuntime

ort = pytest.importorskip("onnxruntime")
Q8 = ActivationGrid(8, True, "group", group_size=32)


def layer_of(columns: int, grid: Grid, inputs: ActivationGrid | None) -> QuantizedLinear:
    torch.manual_seed(columns)
    layer = QuantizedLinear.from_linear(nn.Linear(columns, 24))
    weight = layer.weight.detach()
    layer.store(round_nearest(weight, minmax_parameters(weight, grid), grid))
    if inputs is not None:
        layer.quantize_input = InputQuantizer(inputs)
    return layer


def weight_of(layer: QuantizedLayer) -> QuantizedWeight:
    assert layer.quantized is not None
    return layer.quantized


class Together(nn.Module):
    """Several layers that read the same, in one graph, whose making is what takes time."""

    def __init__(self, *layers: OperatorLinear) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(states) for layer in self.layers)


def outputs_of(layers: list[OperatorLinear], states: Tensor) -> list[Tensor]:
    """What ONNX Runtime computes."""
    program = torch.onnx.export(
        Together(*layers).eval(), (states,), dynamo=True, opset_version=21, verbose=False
    )
    assert program is not None
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: states.numpy()})
    return [torch.from_numpy(one) for one in found]


# Bits, block and whether it is symmetric.
BLOCKS = [
    (4, 32, False), (4, 64, True), (4, 128, False), (4, 256, False), (8, 128, False),
    (2, 32, False),
]  # fmt: skip


@pytest.mark.parametrize("columns", WIDTHS)
@torch.no_grad()
def test_a_layer_computes_what_is_simulated(columns: int) -> None:
    layers, states = [], torch.randn(5, columns)
    for bits, size, symmetric in BLOCKS:
        grid = Grid(
            bits, symmetric=symmetric, signed=symmetric, signed_scale=symmetric,
            granularity="group", group_size=size,
        )  # fmt: skip
        blocks = ActivationGrid(8, True, "group", group_size=size)
        layers += [layer_of(columns, grid, inputs) for inputs in (None, blocks)]
    layers.append(layer_of(columns, Grid(8, **SIGNED), ActivationGrid(8, False, "tensor")))
    operators = [
        *(NBitsLinear("layer", layer, weight_of(layer)) for layer in layers[:-1]),
        DynamicLinear("layer", layers[-1], weight_of(layers[-1])),
    ]
    for layer, found in zip(layers, outputs_of(operators, states), strict=True):
        expected = layer(states)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if isinstance(layer.quantize_input, InputQuantizer):  # and not what floats would give
            floats = nn.functional.linear(states, layer.weight, layer.bias)
            assert float((found - expected).norm()) < 0.01 * float((floats - expected).norm())


@given(
    bits=st.sampled_from([2, 4, 8]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    size=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_codes_are_packed_lowest_first(
    bits: int, rows: int, columns: int, size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator).to(torch.uint8)
    packed = packed_rows(codes, bits)
    for row, line in zip(packed.tolist(), codes.tolist(), strict=True):
        whole = sum(code << (bits * index) for index, code in enumerate(line))
        assert whole == int.from_bytes(bytes(row), "little")
    assert torch.equal(unpacked_rows(packed, bits, columns), codes)
    blocks = packed_blocks(codes, bits, size)
    assert blocks.shape == (rows, -(-columns // size), size * bits // 8)
    scales = torch.ones(rows, blocks.shape[1])
    values = dequantized(blocks, scales, settings={"bits": bits, "block_size": size, "K": columns})
    assert torch.equal(values, codes.float() - (1 << (bits - 1)))


def heard(runtime: Runtime) -> list[tuple[int, ...]]:
    clips = [tone(seconds, 200.0 * seconds) for seconds in (0.7, 1.3, 1.0)]
    return [
        transcript.tokens
        for clip in clips
        for transcript in runtime.transcribe([clip], [min(8, runtime.token_limit(len(clip)))])
    ]


def same_through_its_file(own: Checkpoint, name: str, folder: Path) -> None:
    written = export(own, Target(name=name), folder / "out")  # which compares the weights
    assert {path.name for path in written.iterdir()} >= {DECODER, ENCODER, DECODING, TOKENIZER}
    assert heard(OnnxRuntime(own, exported=written)) == heard(TorchRuntime(own))


GROUPS_OF_16 = Grid(4, granularity="group", group_size=16)


def test_a_model_hears_the_same_through_its_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    same_through_its_file(quantized(checkpoint, GROUPS_OF_16), "onnx_nbits", tmp_path)


def test_inputs_in_blocks_hear_the_same(moonshine: Checkpoint, tmp_path: Path) -> None:
    own = quantized(moonshine, Grid(8, granularity="group", group_size=32), Q8)
    same_through_its_file(own, "onnx_nbits_a8", tmp_path)


def test_ranges_of_a_call_hear_the_same(whisper: Checkpoint, tmp_path: Path) -> None:
    own = quantized(whisper, Grid(8, **SIGNED), ActivationGrid(8, False, "tensor"))
    same_through_its_file(own, "onnx_dynamic", tmp_path)


def test_tables_in_blocks_hear_the_same(whisper: Checkpoint, tmp_path: Path) -> None:
    """An embedding is looked up by GatherBlockQuantized, its bytes are the head's too."""
    own = quantized(whisper, GROUPS_OF_16, others={"embedding": None, "head": None})
    same_through_its_file(own, "onnx_nbits", tmp_path)
    names = [one.name for one in onnx.load(tmp_path / "out" / DECODER).graph.initializer]
    assert not any(name.startswith("head.packed") for name in names)


def test_integer_tables_and_convolutions_hear_the_same(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    inputs = ActivationGrid(8, False, "tensor")
    others = {"embedding": None, "head": inputs, "convolution": inputs}
    own = quantized(checkpoint, Grid(8, **SIGNED), inputs, others=others)
    same_through_its_file(own, "onnx_dynamic", tmp_path)


def test_runtime_ops_are_in_the_file(moonshine: Checkpoint) -> None:
    # And blocks that are wider than any layer.
    rotated = quantized(
        moonshine, Grid(4, granularity="group", group_size=256), transform={"name": "hadamard"}
    )
    assert heard(OnnxRuntime(rotated)) == heard(TorchRuntime(rotated))


def test_heads_are_not_padded(tmp_path: Path) -> None:
    folder = tiny_moonshine(tmp_path / "float")
    config = json.loads((folder / "config.json").read_text())
    config["pad_head_dim_to_multiple_of"] = 8  # heads of 10: the decoder would copy all it attends
    (folder / "config.json").write_text(json.dumps(config))
    padded = load_checkpoint(str(folder))
    write_for("onnxruntime", padded, tmp_path)
    for name in (ENCODER, DECODER):
        nodes = onnx.load(tmp_path / name).graph.node
        assert "Pad" not in {node.op_type for node in nodes}
    assert heard(OnnxRuntime(padded)) == heard(TorchRuntime(padded))


def test_what_halves_hold_exactly_is_stored_in_halves(
    moonshine: Checkpoint, tmp_path: Path
) -> None:
    with torch.no_grad():
        for value in moonshine.model.parameters():
            value.copy_(value.half())
    write_for("onnxruntime", moonshine, tmp_path)
    content = (tmp_path / ENCODER).read_bytes()
    assert LAYERS.encode() in content
    # Nothing that the exporter knows of this machine.
    assert b".py" not in content
    proto = onnx.load_from_string(content)
    floats = [
        one
        for one in proto.graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT
        and len(onnx.numpy_helper.to_array(one).shape) > 1
    ]
    assert not floats


@pytest.mark.parametrize(
    ("grid", "inputs", "message"),
    [
        (Grid(3, granularity="group", group_size=16), None, "kernels for 4, 8, 2 bits"),
        (Grid(4), None, "group_size=null"),
        (Grid(4, granularity="group", group_size=16), ActivationGrid(4), "is to read A4"),
    ],
)
def test_what_no_target_of_it_holds_is_refused(
    moonshine: Checkpoint, grid: Grid, inputs: ActivationGrid | None, message: str
) -> None:
    with pytest.raises(UserError, match=r"^runtime=onnxruntime: ") as refused:
        OnnxRuntime(quantized(moonshine, grid, inputs))
    assert message in str(refused.value)


def test_clips_of_a_batch_would_change_ranges_of_a_call(whisper: Checkpoint) -> None:
    own = quantized(whisper, Grid(8, **SIGNED), ActivationGrid(8, False, "tensor"))
    clips = [tone(0.7, 200.0)] * 2
    with pytest.raises(UserError, match=r"batch_size=2.*set batch_size=1"):
        TorchRuntime(own).transcribe(clips, [2, 2])


def test_other_dtypes_are_refused(moonshine: Checkpoint) -> None:
    with pytest.raises(UserError, match="computes in float32"):
        OnnxRuntime(moonshine, StackDtypes("bfloat16", "float32"))


def test_logits_are_those_of_the_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Step by step, from an empty cache on."""
    write_for("onnxruntime", checkpoint, tmp_path)
    encoder, decoder = (ort.InferenceSession(tmp_path / name) for name in (ENCODER, DECODER))
    architecture = checkpoint.architecture
    inputs = architecture.model_inputs(checkpoint.feature_extractor, [tone(1.1, 300.0)])
    tokens = torch.tensor([[3, 5, 7, 4]])
    with torch.no_grad():
        expected = checkpoint.model(**inputs, decoder_input_ids=tokens).logits[0]
    cross: list[Any] = encoder.run(None, {"features": next(iter(inputs.values())).numpy()})
    layers, _, heads, _, head_dim = cross[0].shape
    cache: list[Any] = [np.zeros((layers, 1, heads, 0, head_dim), np.float32)] * 2
    for position, token in enumerate(tokens[0].tolist()):
        given = dict(zip(CACHES, (*cache, *cross), strict=True))
        logits, *cache = decoder.run(None, {"token": np.array([[token]]), **given})
        torch.testing.assert_close(
            torch.from_numpy(logits[0]), expected[position], rtol=1e-3, atol=1e-4
        )

"""whisper.cpp's file: blocks are ggml's, what was written is read back, and damage is named."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.models import GGML, for_ggml, quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import shared
from tokenizers.decoders import ByteLevel
from torch import Tensor

from edge_asr.config import target_named
from edge_asr.errors import UserError
from edge_asr.export.base import exporters
from edge_asr.export.formats.ggml import MODEL, packed_blocks, read_whole
from edge_asr.export.ggml_container import FLOAT16, FLOAT32, MAGIC, read_container
from edge_asr.export.write import export, write_for
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.layers import quantized_layers
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.weight import QuantizedWeight, round_nearest

gguf = pytest.importorskip("gguf")
TYPES = {
    "ggml_q4_0": gguf.GGMLQuantizationType.Q4_0,
    "ggml_q4_1": gguf.GGMLQuantizationType.Q4_1,
    "ggml_q5_0": gguf.GGMLQuantizationType.Q5_0,
    "ggml_q5_1": gguf.GGMLQuantizationType.Q5_1,
    "ggml_q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "ggml_q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "ggml_q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "ggml_q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "ggml_q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "ggml_q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def rounded(target: str, values: Tensor) -> QuantizedWeight:
    return round_nearest(values, minmax_parameters(values, GGML[target]), GGML[target])


@given(
    target=st.sampled_from(list(GGML)),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 4),
    gain=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=80, deadline=None)
def test_blocks_are_those_of_ggml(
    target: str, rows: int, blocks: int, gain: float, seed: int
) -> None:
    values = gain * torch.randn(rows, 32 * blocks, generator=torch.Generator().manual_seed(seed))
    weight = rounded(target, values)
    packed = packed_blocks(weight).reshape(rows, -1)
    found = gguf.quants.dequantize(packed, TYPES[target])
    assert np.array_equal(found, weight.dequantize().numpy())
    # Its own rounding of values that lie on the grid finds the same codes.
    assert np.array_equal(gguf.quants.quantize(found, TYPES[target]), packed)
    # Those of other values have the same scales and minima.
    theirs = gguf.quants.quantize(values.numpy(), TYPES[target])
    floats = 2 if GGML[target].symmetric else 4
    own, other = (one.reshape(rows * blocks, -1)[:, :floats] for one in (packed, theirs))
    assert np.array_equal(own, other)


@pytest.fixture(scope="module", params=list(GGML))
def written(
    request: pytest.FixtureRequest, wide_whisper: Checkpoint, tmp_path_factory: Any
) -> tuple[str, Checkpoint, Path]:
    """A target, a model for it and the folder that it was exported to."""
    target = request.param
    own = for_ggml(wide_whisper, target)
    folder = tmp_path_factory.mktemp("written") / "out"
    return target, own, export(own, target_named(target), folder)


def test_codes_are_read_back(written: tuple[str, Checkpoint, Path]) -> None:
    target, own, folder = written
    assert [path.name for path in folder.iterdir() if path.suffix == ".bin"] == [MODEL]
    found = exporters[target]().read_back(folder)
    embedding = own.architecture.embedding
    assert set(found) == {*quantized_layers(own.model), embedding}
    for name, weight in found.items():
        assert torch.equal(weight, own.model.get_parameter(f"{name}.weight")), name


def test_all_else_is_stored_as_whisper_cpp_wants_it(
    written: tuple[str, Checkpoint, Path],
) -> None:
    target, own, folder = written
    content = read_whole(folder / MODEL)
    assert (folder / MODEL).read_bytes()[:4] == MAGIC.to_bytes(4, "little") == b"lmgg"
    assert dataclasses.astuple(content.dimensions) == (
        own.model.config.vocab_size, 100, 96, 6, 2, 48, 96, 6, 2, 80, 2000 + FILE_TYPES[target]
    )  # fmt: skip
    filters = own.feature_extractor.mel_filters.T
    assert content.filters.shape == (80, 201)
    np.testing.assert_allclose(content.filters, filters, rtol=1e-6)
    tensors = {one.name: one for one in content.tensors}
    kinds = {
        "encoder.conv1.weight": (FLOAT16, (96, 80, 3)),
        "encoder.conv2.bias": (FLOAT32, (96, 1)),
        "encoder.positional_embedding": (FLOAT32, (100, 96)),
        "decoder.positional_embedding": (FLOAT32, (48, 96)),
        "decoder.blocks.1.cross_attn_ln.weight": (FLOAT32, (96,)),
        "encoder.blocks.0.mlp.0.bias": (FLOAT32, (384,)),
        "encoder.blocks.1.mlp.2.weight": (TYPES[target], (96, 384)),
        "decoder.token_embedding.weight": (TYPES[target], (own.model.config.vocab_size, 96)),
    }
    assert {name: (tensors[name].kind, tensors[name].shape) for name in kinds} == kinds
    bias = own.model.get_parameter("model.decoder.layers.1.encoder_attn.out_proj.bias")
    stored = tensors["decoder.blocks.1.cross_attn.out.bias"].data.view("<f4")
    assert torch.equal(torch.from_numpy(stored.copy()), bias)


def test_tokens_are_stored_as_their_bytes(wide_whisper: Checkpoint, tmp_path: Path) -> None:
    write_for("whisper_cpp", wide_whisper, tmp_path)
    tokenizer = wide_whisper.tokenizer
    tokens = read_whole(tmp_path / MODEL).tokens
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert len(tokens) == end
    decoder = ByteLevel()
    for number, token in enumerate(tokens):
        text = decoder.decode([tokenizer.convert_ids_to_tokens(number)])
        assert token.decode(errors="replace") == text
    assert sorted(one for token in tokens for one in token if len(token) == 1) == list(range(256))


def test_a_float_model_is_stored_in_halves(wide_whisper: Checkpoint, tmp_path: Path) -> None:
    write_for("whisper_cpp", wide_whisper, tmp_path)
    content = read_whole(tmp_path / MODEL)
    assert content.dimensions.file_type == FLOAT16
    tensors = {one.name: one for one in content.tensors}
    stored = tensors["decoder.blocks.0.attn.key.weight"]
    assert stored.kind == FLOAT16
    own = wide_whisper.model.get_parameter("model.decoder.layers.0.self_attn.k_proj.weight")
    values = torch.from_numpy(stored.data.view("<f2").reshape(stored.shape).copy())
    assert torch.equal(values, own.half())


def float_embedding(own: Checkpoint) -> None:
    embedding: Any = own.model.get_submodule(own.architecture.embedding)
    embedding.quantized = None


def float_layer(own: Checkpoint) -> None:
    layer: Any = own.model.get_submodule("model.encoder.layers.1.fc1")
    layer.quantized, layer.quantize_input = None, torch.nn.Identity()


def head_of_its_own(own: Checkpoint) -> None:
    head: Any = own.model.get_submodule(own.architecture.head)
    head.weight = torch.nn.Parameter(head.weight.detach().clone())


def fine_scales(own: Checkpoint) -> None:
    layer: Any = own.model.get_submodule("model.decoder.layers.0.fc2")
    weight = layer.quantized
    parameters = dataclasses.replace(weight.parameters, scale=weight.parameters.scale * 1.0001)
    layer.quantized = dataclasses.replace(weight, parameters=parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (float_embedding, r"embed_tokens stays floating point.*quantize with target=ggml_q4_0"),
        (float_layer, r"encoder\.layers\.1\.fc1 stays floating point.*leave out what keeps it so$"),
        (head_of_its_own, r"proj_out stays floating point.*leave out what keeps it so$"),
        (fine_scales, r"decoder\.layers\.0\.fc2 has scales that are no float16"),
    ],
)
def test_what_a_file_cannot_hold_is_one_line(
    wide_whisper: Checkpoint, tmp_path: Path, change: Callable[[Checkpoint], None], message: str
) -> None:
    own = for_ggml(wide_whisper, "ggml_q4_0")
    change(own)
    with pytest.raises(UserError, match=message) as refused:
        export(own, target_named("ggml_q4_0"), tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_another_family_is_refused(moonshine: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tiny: is of the family moonshine.*onnx_nbits"):
        write_for("whisper_cpp", moonshine, tmp_path)


def test_other_inner_widths_are_refused(whisper: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder_ffn_dim=96.*computes with 192 alone"):
        write_for("whisper_cpp", whisper, tmp_path)


def test_another_activation_is_refused(wide_whisper: Checkpoint, tmp_path: Path) -> None:
    model = copy.copy(wide_whisper.model)
    model.config = copy.copy(wide_whisper.model.config)
    model.config.activation_function = "relu"
    with pytest.raises(UserError, match=r"activation_function=relu.*computes with gelu alone"):
        write_for("whisper_cpp", dataclasses.replace(wide_whisper, model=model), tmp_path)


def test_inputs_that_its_runtime_would_not_quantize_are_refused(
    wide_whisper: Checkpoint, tmp_path: Path
) -> None:
    own = quantized(wide_whisper, GGML["ggml_q8_0"])
    with pytest.raises(UserError, match=r"^runtime=whisper_cpp: .*is to read floats"):
        write_for("whisper_cpp", own, tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.1, 0.3, 0.5, 0.8, 0.97, 0.999999])
def test_a_file_that_ends_too_early_is_one_line(
    wide_whisper: Checkpoint, tmp_path: Path, part: float
) -> None:
    write_for("whisper_cpp", wide_whisper, tmp_path)
    path = tmp_path / MODEL
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match="export it again") as refused:
        exporters["ggml_q4_0"]().read_back(tmp_path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_ends_behind_a_tensor_is_damaged(
    wide_whisper: Checkpoint, tmp_path: Path
) -> None:
    write_for("whisper_cpp", wide_whisper, tmp_path)
    path = tmp_path / MODEL
    content = read_container(path)
    path.write_bytes(dataclasses.replace(content, tensors=content.tensors[:-1]).to_bytes())
    with pytest.raises(UserError, match="its tensors are not those of its layers"):
        read_whole(path)


@given(place=st.integers(0, 3000), number=st.integers(-(2**31), 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_a_wrong_number_is_damage_or_nothing(
    small_file: bytes, tmp_path_factory: Any, place: int, number: int
) -> None:
    """Never another exception, and never a wait."""
    path = tmp_path_factory.mktemp("damage") / MODEL
    # The filters are numbers of any size.
    place += 4 * 80 * 201 if place >= 56 else 0
    path.write_bytes(
        small_file[:place] + number.to_bytes(4, "little", signed=True) + small_file[place + 4 :]
    )
    with suppress(UserError):
        read_whole(path)


@pytest.fixture(scope="module")
def small_file(wide_whisper: Checkpoint, tmp_path_factory: Any) -> bytes:
    folder = tmp_path_factory.mktemp("small")
    write_for("whisper_cpp", wide_whisper, folder)
    return (folder / MODEL).read_bytes()


def test_a_published_model_is_read_back(tmp_path: Path) -> None:
    own = for_ggml(load_checkpoint(str(shared("checkpoints", "whisper-tiny.en"))), "ggml_q5_0")
    folder = export(own, target_named("ggml_q5_0"), tmp_path / "out")
    content = read_whole(folder / MODEL)
    assert len(content.tokens) == 50256
    assert content.tokens[220] == b" "
    # 5.5 bits a weight, and convolutions, positions, filters and tokens.
    assert 28e6 < (folder / MODEL).stat().st_size < 33e6

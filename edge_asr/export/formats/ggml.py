"""The file that whisper.cpp reads, its matrices in ggml's blocks of 32 codes with one scale.

Values are scale x code, the scale float16: q4_0 stores code + 8 in 4 bits, of which byte j holds
the ones of columns j and j + 16, the first in its low half; q5_0 code + 16, its fifth bits apart
and in front; q8_0 the code itself in a byte. Values of q4_1 and q5_1 are scale x code + minimum,
which is float16 as well, behind the scale (ggml: src/ggml-common.h and src/ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edge_asr.errors import UserError
from edge_asr.export.base import Exporter, exporters
from edge_asr.export.ggml_container import (
    AGAIN,
    FLOAT16,
    FLOAT32,
    Container,
    Dimensions,
    StoredTensor,
    read_container,
)
from edge_asr.models.families.base import Architecture
from edge_asr.models.families.whisper import Whisper
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.grid import minimum_of
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.store.files import write_bytes_atomically

MODEL = "model.bin"
FAMILIES = (Whisper.family,)  # whisper.cpp runs no other
COLUMNS = 32  # a block
VERSION = 2 * 1000  # of the blocks: GGML_QNT_VERSION * GGML_QNT_VERSION_FACTOR


@dataclass(frozen=True)
class BlockType:
    """One of ggml's types of blocks.

    Attributes:
        bits: Width of its codes.
        kind: Its ggml_type.
        file_type: The ggml_ftype of a file whose matrices are such.
    """

    bits: int
    kind: int
    file_type: int


class GgmlExporter(Exporter):
    """Writes `model.bin`: matrices in blocks, or all in float16 where none is quantized."""

    packages: ClassVar[tuple[str, ...]] = ("gguf",)
    extra: ClassVar[str] = "whisper_cpp"
    block: ClassVar[BlockType]

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        refuse_computation(checkpoint)
        names = tensor_names(*checkpoint.architecture.depth(checkpoint.model.config))
        coded = coded_weights(checkpoint, names)
        content = Container(
            dimensions(checkpoint, VERSION + self.block.file_type if coded else FLOAT16),
            np.asarray(checkpoint.feature_extractor.mel_filters, np.float32).T,
            tuple(vocabulary(checkpoint.tokenizer)),
            tuple(stored_tensors(checkpoint.model, names, coded, self.block)),
        )
        write_bytes_atomically(folder / MODEL, content.to_bytes())

    def read_back(self, folder: Path) -> Mapping[str, Tensor]:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        content = read_whole(folder / MODEL)
        depth = content.dimensions.audio_layers, content.dimensions.text_layers
        layers = {own: name.removesuffix(".weight") for name, own in tensor_names(*depth).items()}
        return {
            layers[one.name]: torch.from_numpy(
                dequantize(one.data, GGMLQuantizationType(one.kind)).reshape(one.shape)
            )
            for one in content.tensors
            if one.kind not in (FLOAT16, FLOAT32)
        }


@exporters.register("ggml_q4_0")
class GgmlQ4(GgmlExporter):
    """Codes of 4 bits."""

    block: ClassVar[BlockType] = BlockType(bits=4, kind=2, file_type=2)


@exporters.register("ggml_q4_1")
class GgmlQ41(GgmlExporter):
    """Codes of 4 bits and a minimum."""

    block: ClassVar[BlockType] = BlockType(bits=4, kind=3, file_type=3)


@exporters.register("ggml_q5_0")
class GgmlQ5(GgmlExporter):
    """Codes of 5 bits."""

    block: ClassVar[BlockType] = BlockType(bits=5, kind=6, file_type=8)


@exporters.register("ggml_q5_1")
class GgmlQ51(GgmlExporter):
    """Codes of 5 bits and a minimum."""

    block: ClassVar[BlockType] = BlockType(bits=5, kind=7, file_type=9)


@exporters.register("ggml_q8_0")
class GgmlQ8(GgmlExporter):
    """Codes of 8 bits."""

    block: ClassVar[BlockType] = BlockType(bits=8, kind=8, file_type=7)


def read_whole(path: Path) -> Container:
    """What the file at `path` holds. Raises UserError where it does not hold just its tensors."""
    content = read_container(path)
    depth = content.dimensions.audio_layers, content.dimensions.text_layers
    found = {one.name for one in content.tensors}
    # A damaged number of layers would make more names than a machine holds.
    if max(depth) > len(found) or found != set(tensor_names(*depth).values()):
        raise UserError(f"{path}: is damaged, its tensors are not those of its layers; {AGAIN}")
    return content


def refuse_computation(checkpoint: Checkpoint) -> None:
    """Raises UserError where whisper.cpp would compute something else than the model does."""
    family, name = checkpoint.architecture.family, checkpoint.name
    if family not in FAMILIES:
        raise UserError(
            f"{name}: is of the family {family}, and whisper.cpp runs {', '.join(FAMILIES)} alone; "
            "take --target=onnx_nbits and runtime=onnxruntime"
        )
    config: Any = checkpoint.model.config
    inner = 4 * checkpoint.architecture.width(config)
    expected = {
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "activation_function": "gelu",
        "scale_embedding": False,
    }
    for field, value in expected.items():
        if getattr(config, field) != value:
            raise UserError(
                f"{name}: config.json has {field}={getattr(config, field)}, and whisper.cpp "
                f"computes with {value} alone; take --target=onnx_nbits and runtime=onnxruntime"
            )


def dimensions(checkpoint: Checkpoint, file_type: int) -> Dimensions:
    """The model's numbers for a file of that type."""
    architecture, config = checkpoint.architecture, checkpoint.model.config
    width = architecture.width(config)
    (audio_heads, text_heads), (audio_layers, text_layers) = (
        architecture.heads(config), architecture.depth(config)
    )  # fmt: skip
    return Dimensions(
        config.vocab_size, config.max_source_positions, width, audio_heads, audio_layers,
        config.max_target_positions, width, text_heads, text_layers, config.num_mel_bins, file_type,
    )  # fmt: skip


def vocabulary(tokenizer: Any) -> Iterator[bytes]:
    """The bytes of every token before the special ones, which whisper.cpp names itself."""
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.get_added_vocab().values())
    bytes_of = byte_alphabet()
    number = 0
    while number in texts and number not in special:
        yield bytes(bytes_of[character] for character in texts[number])
        number += 1


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a token stands for.

    Printable ones of Latin-1 stand for themselves, and those from 256 on for the other bytes in
    order (openai/gpt-2: src/encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [one for one in range(256) if one not in printable]
    own = {chr(one): one for one in printable}
    return own | {chr(256 + index): one for index, one in enumerate(others)}


def tensor_names(encoder_layers: int, decoder_layers: int) -> dict[str, str]:
    """whisper.cpp's name of every parameter, by that of a checkpoint.

    It is that of OpenAI's own checkpoints. Keys of attentions have no bias.
    """
    architecture = Whisper()
    encoder, decoder = architecture.encoder_module, architecture.decoder_module
    names = {
        f"{encoder}.embed_positions.weight": "encoder.positional_embedding",
        f"{decoder}.embed_positions.weight": "decoder.positional_embedding",
        f"{architecture.embedding}.weight": "decoder.token_embedding.weight",
    }
    keys = []
    for path, own in _layer_names(architecture, encoder_layers, decoder_layers):
        names |= {f"{path}.{part}": f"{own}.{part}" for part in ("weight", "bias")}
        keys += [f"{path}.bias"] if own.endswith(".key") else []
    return {name: own for name, own in names.items() if name not in keys}


def _layer_names(
    architecture: Architecture, encoder_layers: int, decoder_layers: int
) -> Iterator[tuple[str, str]]:
    """Path and name of every layer and norm."""
    yield from zip(
        (axis.layer for axis in architecture.stem()),
        ("encoder.conv1", "encoder.conv2"),
        strict=True,
    )
    yield architecture.encoder_norm, "encoder.ln_post"
    yield architecture.decoder_norm, "decoder.ln"
    own = ("attn.query", "attn.key", "attn.value", "attn_ln", "attn.out")
    inner = ("mlp.0", "mlp_ln", "mlp.2")
    for index in range(encoder_layers):
        qkv, out, fc1, fc2 = architecture.encoder_block(index).sites
        paths = (*qkv.layers, qkv.source, *out.layers, *fc1.layers, fc1.source, *fc2.layers)
        names = (f"encoder.blocks.{index}.{name}" for name in (*own, *inner))
        yield from zip(map(str, paths), names, strict=True)
    cross = ("cross_attn.query", "cross_attn_ln", "cross_attn.out")
    memory = ("cross_attn.key", "cross_attn.value")
    for index in range(decoder_layers):
        qkv, out, query, read, fc1, fc2 = architecture.decoder_block(index).sites
        paths = (
            *qkv.layers, qkv.source, *out.layers, *query.layers, query.source, *read.layers,
            *architecture.cross_layers(index), *fc1.layers, fc1.source, *fc2.layers,
        )  # fmt: skip
        names = (f"decoder.blocks.{index}.{name}" for name in (*own, *cross, *memory, *inner))
        yield from zip(map(str, paths), names, strict=True)


def coded_weights(checkpoint: Checkpoint, names: Mapping[str, str]) -> dict[str, QuantizedWeight]:
    """The codes of every matrix, by its parameter; none of a float model.

    Raises UserError where a file has no place for a parameter.
    """
    model: Any = checkpoint.model
    parameters = dict(model.named_parameters())
    for name in sorted(names.keys() ^ parameters.keys()):
        raise UserError(
            f"{name}: is {'not in the model' if name in names else 'not of the checkpoint'}, and a "
            "file of whisper.cpp holds a published checkpoint's tensors alone; quantize with "
            "method/transform=none"
        )
    found: dict[str, QuantizedWeight | None] = {
        name: getattr(model.get_submodule(name.removesuffix(".weight")), "quantized", None)
        for name, own in names.items()
        if own.endswith(".weight") and parameters[name].ndim == 2
    }
    if all(weight is None for weight in found.values()):
        return {}
    coded = {}
    for name, weight in found.items():
        assert weight is not None, f"{name} is no matrix of the target"
        coded[name] = weight
    return coded


def stored_tensors(
    model: nn.Module,
    names: Mapping[str, str],
    coded: Mapping[str, QuantizedWeight],
    block: BlockType,
) -> Iterator[StoredTensor]:
    """Every tensor of the file: codes, other weights in float16, and all else in float32."""
    for name, parameter in model.named_parameters():
        own = names[name]
        values = parameter.detach().cpu().float().numpy()
        if name in coded:
            yield StoredTensor(own, block.kind, values.shape, packed_blocks(coded[name]))
        elif own.endswith(".weight") and values.ndim > 1:
            yield StoredTensor(own, FLOAT16, values.shape, _bytes_of(values.astype("<f2")))
        else:
            # A convolution's bias is added to [channels, frames].
            shape = (len(values), 1) if own.startswith("encoder.conv") else values.shape
            yield StoredTensor(own, FLOAT32, shape, _bytes_of(values.astype("<f4")))


def packed_blocks(weight: QuantizedWeight) -> np.ndarray:
    """Codes, scales and minima in blocks, uint8 [blocks, bytes of a block], row by row."""
    grid, scale, zero = weight.grid, weight.parameters.scale, weight.parameters.zero
    bits = grid.bits
    scales = _halves(scale)
    codes = weight.codes.numpy().reshape(-1, COLUMNS)
    if bits == 8:
        return np.hstack([scales, codes.view(np.uint8)])
    unsigned = (codes.astype(np.int16) - grid.lowest).astype(np.uint8)
    minima = [] if grid.symmetric else [_halves(minimum_of(zero, scale, grid))]
    fifth = [np.packbits(unsigned >> 4, axis=1, bitorder="little")] if bits == 5 else []
    low = unsigned & 0xF
    half = COLUMNS // 2
    return np.hstack([scales, *minima, *fifth, low[:, :half] | low[:, half:] << 4])


def _halves(values: Tensor) -> np.ndarray:
    """`values` [rows, blocks] in float16, uint8 [blocks of all rows, 2]."""
    return _bytes_of(values.numpy().astype("<f2")).reshape(-1, 2)


def _bytes_of(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

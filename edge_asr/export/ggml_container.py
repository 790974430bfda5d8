"""The file of whisper.cpp: numbers of the model, mel filters, vocabulary and tensors, one by one.

All numbers are little-endian int32 or float32: the magic "ggml", the eleven of `Dimensions`, the
filters with their shape, every token's length and bytes, and for every tensor its number of axes,
the length of its name, its type, its axes from the last to the first, its name and its values
(whisper.cpp: models/convert-h5-to-ggml.py and `whisper_model_load` in src/whisper.cpp).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from edge_asr.errors import UserError

MAGIC = 0x67676D6C
FLOAT32, FLOAT16 = 0, 1  # ggml_type; those of blocks are with their packing
MOST_AXES = 4
AGAIN = "export it again"


@dataclass(frozen=True)
class Dimensions:
    """The model's numbers, in the order of the file.

    Attributes:
        vocabulary: Tokens, with those that have no text in the file.
        frames, audio_width, audio_heads, audio_layers: Of the encoder.
        positions, text_width, text_heads, text_layers: Of the decoder.
        mels: Mel bins.
        file_type: What most tensors are (ggml_ftype); of blocks, 1000 times their version more.
    """

    vocabulary: int
    frames: int
    audio_width: int
    audio_heads: int
    audio_layers: int
    positions: int
    text_width: int
    text_heads: int
    text_layers: int
    mels: int
    file_type: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is stored.

    Attributes:
        name: As whisper.cpp calls it.
        kind: Its ggml_type.
        shape: Of its values, the first axis first.
        data: uint8, its bytes.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    data: np.ndarray


@dataclass(frozen=True)
class Container:
    """What a file holds.

    Attributes:
        dimensions: The model's numbers.
        filters: float32 [mels, bins of the spectrum].
        tokens: Bytes of every token that has a text, by its id.
        tensors: All of them.
    """

    dimensions: Dimensions
    filters: np.ndarray
    tokens: tuple[bytes, ...]
    tensors: tuple[StoredTensor, ...]

    def to_bytes(self) -> bytes:
        """The file's content."""
        return b"".join(self._parts())

    def _parts(self) -> Iterator[bytes]:
        yield _integers(MAGIC, *astuple(self.dimensions))
        yield _integers(*self.filters.shape) + self.filters.astype("<f4").tobytes()
        yield _integers(len(self.tokens))
        for token in self.tokens:
            yield _integers(len(token)) + token
        for tensor in self.tensors:
            name = tensor.name.encode()
            yield _integers(len(tensor.shape), len(name), tensor.kind, *reversed(tensor.shape))
            yield name + tensor.data.tobytes()


def _integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def read_container(path: Path) -> Container:
    """What the file at `path` holds; values of tensors stay on disk until they are looked at.

    Raises UserError where it is no such file or is damaged.
    """
    if not path.is_file() or not path.stat().st_size:
        raise UserError(f"{path}: is no file of whisper.cpp; {AGAIN}")
    reader = _Reader(path)
    if reader.integers(1, "magic") != (MAGIC,):
        raise UserError(f'{path}: does not start with whisper.cpp\'s "ggml"; {AGAIN}')
    dimensions = Dimensions(*reader.integers(11, "dimensions"))
    shape = reader.integers(2, "mel filters")
    filters = reader.take(4 * _product(shape), "mel filters").view("<f4").reshape(shape)
    (count,) = reader.integers(1, "vocabulary")
    tokens = [
        reader.take(reader.integers(1, "vocabulary")[0], "vocabulary").tobytes()
        for _ in range(count)
    ]
    tensors = []
    while reader.left:
        tensors.append(_tensor(reader))
    return Container(dimensions, filters, tuple(tokens), tuple(tensors))


def _tensor(reader: _Reader) -> StoredTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    axes, length, kind = reader.integers(3, "tensors")
    if not 0 < axes <= MOST_AXES or kind not in GGML_QUANT_SIZES:
        raise reader.damage("tensors")
    shape = reader.integers(axes, "tensors")[::-1]
    name = reader.take(length, "tensors").tobytes().decode(errors="replace")
    size, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if shape[-1] % size:
        raise reader.damage(name)
    return StoredTensor(name, kind, shape, reader.take(_product(shape) // size * width, name))


def _product(shape: tuple[int, ...]) -> int:
    """Of axes; negative, which nothing is long enough for, where one of them is."""
    return -1 if min(shape) < 0 else math.prod(shape)


class _Reader:
    """Takes a file apart from its start on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = np.memmap(path, np.uint8, "r")
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._bytes) - self._position

    def damage(self, what: str) -> UserError:
        return UserError(f"{self._path}: is damaged at its {what}; {AGAIN}")

    def take(self, count: int, what: str) -> np.ndarray:
        """The next `count` bytes, uint8."""
        if not 0 <= count <= self.left:
            raise self.damage(what)
        self._position += count
        return self._bytes[self._position - count : self._position]

    def integers(self, count: int, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", self.take(4 * count, what).tobytes())

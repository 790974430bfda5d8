"""The files of a model of CTranslate2, read without it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_asr.errors import UserError

MODEL, CONFIG = "model.bin", "config.json"
LAYERS = "edge_asr_layers"  # in `config.json`: by int8 matrix, the layers whose rows it holds
# By the numbers that stand for them, and the version of the layout.
DTYPES = (
    torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16,
)  # fmt: skip
VERSION = 6


def quantized_in(folder: Path) -> Mapping[str, list[str]]:
    """The layers in each int8 matrix of an exported model. Raises UserError if it is none."""
    layers: Mapping[str, list[str]] = _described(folder, LAYERS)
    return layers


def begin_suppressed(folder: Path) -> list[int]:
    """The tokens that it does not write first. Raises UserError if it is none."""
    tokens: list[int] = _described(folder, "suppress_ids_begin")
    return tokens


def _described(folder: Path, name: str) -> Any:
    path = folder / CONFIG
    try:
        return json.loads(path.read_bytes())[name]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(path) from error


def read_variables(path: Path) -> dict[str, Tensor]:
    """All variables of a `model.bin`, by name (ctranslate2: specs/model_spec.py, `_serialize`).

    Raises UserError where it is not whole.
    """
    try:
        reader = _Reader(path.read_bytes())
        (version,) = reader.numbers("I")
        if version != VERSION:
            raise ValueError(version)
        reader.string()  # the kind of model,
        reader.numbers("I")  # and its revision
        found = dict(reader.variable() for _ in range(*reader.numbers("I")))
        for _ in range(*reader.numbers("I")):
            alias = reader.string()
            found[alias] = found[reader.string()]
        if not reader.is_at_end:
            raise ValueError("more than there should be")
    except (OSError, ValueError, LookupError, struct.error, RuntimeError) as error:
        raise damaged(path) from error
    return found


def damaged(path: Path) -> UserError:
    """What is said of a file that cannot be read."""
    return UserError(f"{path}: is missing, damaged or of another program; export the model again")


class _Reader:
    """Takes values from the front of a file's content, little-endian."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = bytearray(content), 0

    @property
    def is_at_end(self) -> bool:
        return self._position == len(self._content)

    def numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._content, self._position)
        self._position += struct.calcsize(f"<{form}")
        return values

    def string(self) -> str:
        """Its size, with the zero byte at its end, comes first."""
        (size,) = self.numbers("H")
        (text,) = self.numbers(f"{size}s")
        return str(text[:-1], "utf-8")

    def variable(self) -> tuple[str, Tensor]:
        name = self.string()
        (rank,) = self.numbers("B")
        shape = self.numbers(f"{rank}I")
        number, size = self.numbers("BI")
        dtype = DTYPES[number]
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(name)
        # Raises ValueError where there are not so many bytes left.
        values = torch.frombuffer(
            self._content, dtype=dtype, count=math.prod(shape), offset=self._position
        )
        self._position += size
        return name, values.reshape(shape)

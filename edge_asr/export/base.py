"""What every exporter does: write the codes of a quantized model, and read them back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edge_asr.errors import UserError, first_line
from edge_asr.models.loading import Checkpoint
from edge_asr.models.tensors import Slot
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.layers import QuantizedLayer
from edge_asr.quant.scheme import WEIGHTS
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.registry import Registry


class Exporter(ABC):
    """Writes models in the format of one runtime, or of several targets of it.

    Attributes:
        packages: What has to be installed besides, by the name it is imported under.
        extra: What to install it with: `pip install 'edge_asr[extra]'`.
        writes_floats: Whether it can write a float model too.
    """

    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]
    writes_floats: ClassVar[bool] = True

    @abstractmethod
    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Write the model, which the target holds, into an empty folder."""

    @abstractmethod
    def read_back(self, folder: Path) -> Mapping[str, Tensor]:
        """Every quantized weight by its layer's path, float32, as a runtime dequantizes it, from
        the file alone."""


exporters: Registry[Exporter] = Registry("exporter", "--target")
# The targets whose files a runtime runs, by its name; the first also says how it holds floats.
RUNTIME_TARGETS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx_nbits", "onnx_nbits_a8", "onnx_dynamic"),
    "ctranslate2": ("ctranslate2_int8",),
    "whisper_cpp": ("ggml_q4_0", "ggml_q4_1", "ggml_q5_0", "ggml_q5_1", "ggml_q8_0"),
}


def require_packages(option: str, packages: Iterable[str], extra: str) -> None:
    """Raises UserError where one of `packages`, by the names for import, is not installed or
    cannot be imported."""
    for package in packages:
        try:
            import_module(package)
        except (ImportError, OSError) as error:  # the latter of libraries that are not there
            absent = isinstance(error, ModuleNotFoundError) and error.name == package
            said = "is not installed" if absent else f"cannot be imported ({first_line(error)})"
            raise UserError(
                f"{option}: needs {package}, which {said}; pip install 'edge_asr[{extra}]'"
            ) from error


def weighted_layers(checkpoint: Checkpoint) -> Iterator[tuple[Slot, Any]]:
    """Every layer with a weight that a scheme can give a format."""
    for slot in checkpoint.architecture.slots(checkpoint.model.config):
        if slot.kind in WEIGHTS:
            yield slot, checkpoint.model.get_submodule(slot.name)


def stored_weight(checkpoint: Checkpoint, slot: Slot) -> QuantizedWeight | None:
    """What is stored of the weight of `slot`; of a head that is the embedding, what is of that."""
    model, architecture = checkpoint.model, checkpoint.architecture
    name = slot.name
    if slot.kind == "head" and architecture.is_tied(model):
        name = architecture.embedding
    layer = model.get_submodule(name)
    return layer.quantized if isinstance(layer, QuantizedLayer) else None


def narrowest(values: Tensor) -> Tensor:
    """In float16 where that holds them exactly."""
    values = values.detach().cpu()
    half = values.half()
    return half if torch.equal(half.to(values.dtype), values) else values


def format_of(layer: nn.Module, weight: QuantizedWeight | None) -> TensorFormat:
    """What the layer is stored as and reads."""
    entry = getattr(layer, "quantize_input", None)
    inputs = entry.settings if isinstance(entry, InputQuantizer) else None
    return TensorFormat(None if weight is None else weight.grid, inputs)

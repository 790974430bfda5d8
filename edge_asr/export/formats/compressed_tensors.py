"""The format `pack-quantized` of compressed-tensors, which transformers and vLLM read.

A folder as the checkpoint's: codes in dense int32 words, scales, zero points, and in `config.json`
what they mean. Values are scale x (code - zero point), codes signed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from edge_asr.export.base import Exporter, exporters, format_of, narrowest
from edge_asr.models.files import ARCHITECTURE_FILES, PROCESSING_FILES, WEIGHTS
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat
from edge_asr.quant.layers import quantized_layers
from edge_asr.quant.weight import QuantizedWeight
from edge_asr.store.files import write_bytes_atomically, write_text_atomically

CONFIG, FORMAT = "config.json", "pack-quantized"


@exporters.register("compressed_tensors")
class CompressedTensors(Exporter):
    """Loads with `from_pretrained` where the package is installed."""

    packages: ClassVar[tuple[str, ...]] = ("compressed_tensors",)
    extra: ClassVar[str] = "compressed_tensors"
    writes_floats: ClassVar[bool] = False

    def write(self, checkpoint: Checkpoint, folder: Path) -> None:
        layers = quantized_layers(checkpoint.model)
        tensors: dict[str, Tensor] = {}
        groups: dict[TensorFormat, list[str]] = {}
        for name, layer in layers.items():
            assert layer.quantized is not None
            tensors |= {
                f"{name}.{key}": value for key, value in packed_tensors(layer.quantized).items()
            }
            groups.setdefault(format_of(layer, layer.quantized), []).append(name)
        weights = {f"{name}.weight" for name in layers}
        for name, parameter in checkpoint.model.named_parameters():
            if name not in weights:
                tensors[name] = parameter.detach().to(checkpoint.stored_dtype(name))
        whole = {name: value.cpu().contiguous() for name, value in tensors.items()}
        write_bytes_atomically(folder / WEIGHTS, save(whole, {"format": "pt"}))
        for name in (*ARCHITECTURE_FILES, *PROCESSING_FILES):
            path = checkpoint.files.folder / name
            if path.is_file():
                shutil.copyfile(path, folder / name)
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        plain["quantization_config"] = quantization_config(groups)
        write_text_atomically(folder / CONFIG, json.dumps(plain, indent=2) + "\n")

    def read_back(self, folder: Path) -> Mapping[str, Tensor]:
        tensors = load_file(folder / WEIGHTS)
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = {}
        for group in plain["quantization_config"]["config_groups"].values():
            for name in group["targets"]:
                own = {
                    key.removeprefix(f"{name}."): value
                    for key, value in tensors.items()
                    if key.startswith(f"{name}.")
                }
                found[name] = unpacked(own, group["weights"])
        return found


def packed_tensors(weight: QuantizedWeight) -> dict[str, Tensor]:
    """What stands for a layer's weight in the file."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    grid, parameters = weight.grid, weight.parameters
    shift = 0 if grid.signed else 1 << (grid.bits - 1)
    codes = (weight.codes.to(torch.int32) - shift).to(torch.int8)
    tensors = {
        "weight_packed": pack_to_int32(codes, grid.bits),
        "weight_scale": narrowest(parameters.scale),
        "weight_shape": torch.tensor(codes.shape),
    }
    if not grid.symmetric:
        zero = (parameters.zero - shift).to(torch.int8)
        tensors["weight_zero_point"] = pack_to_int32(zero, grid.bits, packed_dim=0)
    return tensors


def unpacked(tensors: Mapping[str, Tensor], weights: Mapping[str, Any]) -> Tensor:
    """The weight that `tensors` of one layer stand for, float32, by the meaning `weights`."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    shape = torch.Size(tensors["weight_shape"].tolist())
    scale = tensors["weight_scale"].float()
    codes = unpack_from_int32(tensors["weight_packed"], weights["num_bits"], shape)
    zero = torch.zeros_like(scale)
    if not weights["symmetric"]:
        packed = tensors["weight_zero_point"]
        zero = unpack_from_int32(packed, weights["num_bits"], scale.shape, packed_dim=0).float()
    size = weights["group_size"] or shape[1]
    scale, zero = (one.repeat_interleave(size, 1)[:, : shape[1]] for one in (scale, zero))
    return scale * (codes.float() - zero)


def quantization_config(groups: Mapping[TensorFormat, list[str]]) -> dict[str, Any]:
    """What `config.json` says, checked by the package's own schema."""
    from compressed_tensors.quantization import QuantizationConfig

    plain = {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{index}": {
                "targets": names,
                "weights": _weights(format.weights),
                "input_activations": _inputs(format.inputs),
                # Else the package expects what it would have chosen itself.
                "format": FORMAT,
            }
            for index, (format, names) in enumerate(groups.items())
        },
        "ignore": [],
    }
    QuantizationConfig.model_validate(plain)
    return plain


def _weights(grid: Grid | None) -> dict[str, Any] | None:
    if grid is None:
        return None
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "channel" if grid.group_size is None else "group",
        "group_size": grid.group_size,
    }


def _inputs(inputs: ActivationGrid | None) -> dict[str, Any] | None:
    if inputs is None:
        return None
    return {
        "num_bits": inputs.bits,
        "type": "int",
        "symmetric": inputs.symmetric,
        "strategy": "token",
        "dynamic": True,
    }

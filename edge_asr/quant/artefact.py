"""A quantized model, or a part of one, as tensors and a JSON description, and back, bit for bit.

Stored are packed codes with their scales, zero points and outliers, runtime ops by the names they
are registered under (one that several layers share, once), and every other parameter as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edge_asr.quant.layers import QuantizedLayer, StoredModule, modules
from edge_asr.quant.packing import read_weight, weight_description, weight_tensors
from edge_asr.store.files import write_bytes_atomically, write_text_atomically

# The dtype in which the parameter at a path is stored.
StoredDtype = Callable[[str], torch.dtype]
Captured = tuple[dict[str, Tensor], dict[str, Any]]
INPUT = "quantize_input"  # what a layer's input quantizer is called


def capture(
    model: nn.Module,
    within: Iterable[str] | None = None,
    stored_dtype: StoredDtype | None = None,
) -> Captured:
    """Tensors by name, and the description, of all of `model` or of the modules `within` it.

    Parameters that are not quantized keep the dtype they have, or take that of `stored_dtype`.
    """
    roots = None if within is None else tuple(within)
    chosen = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if roots is None or any(path == root or path.startswith(f"{root}.") for root in roots)
    }
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    stored_modules = []
    first: dict[nn.Module, str] = {}
    for path, module in chosen.items():
        if first.setdefault(module, path) != path:
            if isinstance(module, StoredModule):
                stored_modules.append({"path": path, "same_as": first[module]})
            continue
        if isinstance(module, StoredModule):
            description = {"path": path, "name": modules.name_of(module)}
            stored_modules.append(description | {"settings": module.description()})
            tensors |= {f"{path}:{name}": value for name, value in module.stored().items()}
        if isinstance(module, QuantizedLayer) and module.quantized is not None:
            layers[path] = weight_description(module.quantized)
            weights = weight_tensors(module.quantized)
            tensors |= {f"{path}:{name}": value for name, value in weights.items()}
    for name, parameter in model.named_parameters():
        path = name.rpartition(".")[0]
        if path in chosen and not (path in layers and name == f"{path}.weight"):
            dtype = parameter.dtype if stored_dtype is None else stored_dtype(name)
            tensors[name] = parameter.detach().to(dtype)
    description = {"layers": layers, "modules": stored_modules}
    return {name: value.cpu().contiguous() for name, value in tensors.items()}, description


def layer_names(description: Mapping[str, Any]) -> set[str]:
    """Layers that are quantized, or read quantized inputs, by what `capture` described."""
    readers = [
        path for path, _, child in (one["path"].rpartition(".") for one in description["modules"])
        if child == INPUT
    ]  # fmt: skip
    return {*description["layers"], *readers}


@torch.no_grad()
def restore(
    model: nn.Module, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Make of `model`, whose layers are installed, what `capture` saw.

    A parameter that `model` does not have by that name alone (a bias that a rewrite added, a head
    that was untied from the embedding) becomes one of its own.
    """
    device = next(model.parameters()).device
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        path, _, name = key.partition(":")
        parts.setdefault(path, {})[name] = value
    for path, layer_description in description["layers"].items():
        layer = model.get_submodule(path)
        if not isinstance(layer, QuantizedLayer):
            raise TypeError(f"{path} is no QuantizedLayer")
        layer.store(read_weight(layer_description, parts[path]))
    for entry in description["modules"]:
        if "same_as" in entry:
            shared = model.get_submodule(entry["same_as"])
            parent, _, child = entry["path"].rpartition(".")
            model.get_submodule(parent).add_module(child, shared)
            continue
        stored = parts.get(entry["path"], {})
        module = modules[entry["name"]].rebuild(entry["settings"], stored).to(device)
        module.train(model.training).attach(model, entry["path"])
    own = dict(model.named_parameters())
    for name, value in tensors.items():
        if ":" in name:
            continue
        if name in own:
            own[name].copy_(value)
            continue
        path, _, child = name.rpartition(".")
        fresh = nn.Parameter(value.to(device, torch.float32), requires_grad=False)
        setattr(model.get_submodule(path), child, fresh)


def write(folder: Path, stem: str, captured: Captured) -> None:
    """Write `stem.safetensors`, and then `stem.json`, whose presence says that both are whole."""
    tensors, description = captured
    write_bytes_atomically(folder / f"{stem}.safetensors", save(tensors))
    write_text_atomically(folder / f"{stem}.json", json.dumps(description) + "\n")


def read(folder: Path, stem: str) -> Captured | None:
    """What `write` wrote, or None where it is not there as a whole."""
    path = folder / f"{stem}.json"
    if not path.is_file():
        return None
    return load_file(folder / f"{stem}.safetensors"), json.loads(path.read_text(encoding="utf-8"))

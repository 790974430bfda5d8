"""GPTQ by llm-compressor, W4A16_ASYM, for `bench_llm_compressor.py`, which writes its inputs.

    PYTHON scripts/gptq_of_llm_compressor.py MODEL INPUTS WEIGHTS THREADS

PYTHON belongs to an environment with llm-compressor, so nothing here may import edge_asr. Writes
the quantized layers' dequantized weights to WEIGHTS and prints seconds, peak bytes and versions.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import metadata
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForSpeechSeq2Seq


def clips_of(path: str) -> list[dict[str, torch.Tensor]]:
    """The model's inputs of every clip: tensors named CLIP.INPUT, clips numbered with zeros."""
    clips: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in sorted(load_file(path).items()):
        clip, name = key.split(".")
        clips.setdefault(clip, {})[name] = value
    return list(clips.values())


def main() -> None:
    # Here, so that the reader above can be tested where llm-compressor is not installed.
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    folder, inputs, weights, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(folder, local_files_only=True)
    # As ours is; the inputs are, too, and a half-precision checkpoint would refuse them.
    model.float()
    loader: Any = DataLoader(clips_of(inputs), batch_size=None)  # type: ignore[arg-type]
    recipe = GPTQModifier(targets="Linear", scheme="W4A16_ASYM", ignore=["proj_out"])
    began = time.perf_counter()
    # One pass for all layers: going block by block, it does not find those of Whisper's encoder.
    oneshot(
        model=model, dataset=loader, recipe=recipe, num_calibration_samples=len(loader),
        pipeline="basic",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    layers = {
        f"{name}.weight": module.weight.detach().contiguous()
        for name, module in model.named_modules()
        if hasattr(module, "weight_scale")
    }
    save_file(layers, weights)
    versions = {name: metadata.version(name) for name in ("llmcompressor", "torch", "transformers")}
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "versions": versions}))


if __name__ == "__main__":
    main()

"""Steps of a run by all that decides their results; where one of it changes, it is made again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from edge_asr.config import Settings
from edge_asr.experiments.clips import DrawnClips
from edge_asr.models.decoding import StackDtypes
from edge_asr.models.families.base import Architecture
from edge_asr.models.files import CheckpointFiles
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.recipe import Recipe
from edge_asr.runtimes.base import runtimes
from edge_asr.store.artefacts import Step

# Raised when a step makes something else of the same inputs.
CALIBRATE_VERSION = 3
QUANTIZE_VERSION = 2
TRANSCRIBE_VERSION = 3


def _family(architecture: Architecture) -> list[Any]:
    return [architecture.family, architecture.version]


def tokens_per_second_of(settings: Settings, architecture: Architecture) -> float | None:
    """The cap on generated tokens a second of audio, or None."""
    return architecture.tokens_per_second(
        settings.model.tokens_per_second, settings.decode.language
    )


def dtypes_of(settings: Settings, files: CheckpointFiles) -> StackDtypes:
    """What the stacks transcribe in."""
    own: Any = "float32"
    if torch.device(settings.device).type != "cpu":
        own = str(files.usual_dtype).removeprefix("torch.")
    return StackDtypes(settings.encoder.dtype or own, settings.decoder.dtype or own)


def calibrate_step(
    settings: Settings,
    files: CheckpointFiles,
    architecture: Architecture,
    drawn: DrawnClips,
) -> Step:
    """Drawing batches of the calibration clips."""
    return Step(
        "calibrate",
        {
            "version": CALIBRATE_VERSION,
            "weights": files.weights_fingerprint,
            "processing": files.processing_fingerprint,
            "family": _family(architecture),
            "clips": [
                [digest, clip.utterance.text]
                for digest, clip in zip(drawn.digests, drawn.clips, strict=True)
            ],
            "count": settings.calibration.clips,
            "seed": settings.calibration.seed,
            "batch_size": settings.calibration.batch_size,
            "tokens_per_second": tokens_per_second_of(settings, architecture),
            "decode": dataclasses.asdict(settings.decode),
        },
    )


def quantize_step(
    settings: Settings,
    files: CheckpointFiles,
    architecture: Architecture,
    recipe: Recipe,
    formats: dict[str, TensorFormat],
    served: dict[str, TensorFormat],
    calibrate: Step | None,
) -> Step:
    """Quantizing the model; `served` is what the recipe makes of `formats`."""
    return Step(
        "quantize",
        {
            "version": QUANTIZE_VERSION,
            "weights": files.weights_fingerprint,
            "family": _family(architecture),
            "calibrate": None if calibrate is None else calibrate.key,
            "padding": _padding(settings, architecture) if calibrate else None,
            "dtype": settings.calibration.dtype if calibrate else None,
            "recipe": recipe.identity,
            "formats": {name: dataclasses.asdict(one) for name, one in formats.items()},
            **_half_scales(formats),
            **_one_sided_ranges(served),
            # The folder that is written holds the processor's files too.
            "processing": files.processing_fingerprint,
            "layer_errors": settings.layer_errors is not False and calibrate is not None,
        },
    )


def _half_scales(formats: Mapping[str, TensorFormat]) -> dict[str, int]:
    """A version of its own of how inputs with float16 scales are rounded."""
    used = any(one.inputs is not None and one.inputs.half_scales for one in formats.values())
    return {"half_scales": 2} if used else {}


def _one_sided_ranges(served: Mapping[str, TensorFormat]) -> dict[str, int]:
    """A version of its own of how ranges shrink that need not hold zero."""
    grids = [one.weights for one in served.values() if one.weights is not None]
    used = any(not one.symmetric and not one.include_zero for one in grids)
    return {"one_sided_ranges": 2} if used else {}


def _padding(settings: Settings, architecture: Architecture) -> list[Any] | None:
    """What is done with windows that clips do not fill, where a model hears such."""
    if not architecture.hears_padding:
        return None
    return [settings.calibration.padding_weight, settings.calibration.pack]


def transcribe_step(
    settings: Settings,
    files: CheckpointFiles,
    architecture: Architecture,
    audio: str,
    weights: str,
) -> Step:
    """Transcribing clips whose audio is `audio` by a model whose weights are `weights`."""
    return Step(
        "transcribe",
        {
            "version": TRANSCRIBE_VERSION,
            "weights": weights,
            "processing": files.processing_fingerprint,
            "family": _family(architecture),
            "audio": audio,
            "batch_size": settings.batch_size,
            "max_new_tokens": settings.max_new_tokens,
            "tokens_per_second": tokens_per_second_of(settings, architecture),
            "decode": dataclasses.asdict(settings.decode),
            "dtype": dataclasses.asdict(dtypes_of(settings, files)),
            # Nobody has shown that an accelerator finds the same digits as a processor.
            "device": settings.device.partition(":")[0],
            "runtime": [settings.runtime, runtimes[settings.runtime].version],
        },
    )

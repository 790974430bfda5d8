"""Passes over tiny models: by a recipe, or rewriting and inspecting blocks and rounding nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from options import composed
from tiny import ListCorpus, tone
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_asr.calibration.batches import CalibrationBatch, calibration_batches
from edge_asr.calibration.capture import CalibrationPass
from edge_asr.models.families.sites import Site
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.context import BlockContext, ModelContext, Reconstruction
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat
from edge_asr.quant.layers import install_layers, quantized_layers
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.result import BlockResult, LayerResult, Quantization
from edge_asr.quant.scheme import Scheme
from edge_asr.quant.sequential import Progress, quantize_model
from edge_asr.quant.stages import Transform
from edge_asr.quant.weight import QuantizedWeight

GRID = Grid(3, granularity="group", group_size=16)
# Learned parts, trained just long enough for small models.
LEARNED: dict[str, dict[str, dict[str, Any]]] = {
    "adaround": {"rounding": {"name": "adaround", "iterations": 60}},
    "signround": {"rounding": {"name": "signround", "iterations": 60}},
    "tesseraq": {
        "rounding": {
            "name": "tesseraq",
            "iterations": 100,
            "learning_rate": 1e-2,
            "scale_learning_rate": 5e-4,
        }
    },
    "let": {"transform": {"name": "let", "iterations": 60, "patience": 10, "weight_only": True}},
    "let and lwc": {
        "transform": {"name": "let", "iterations": 60, "patience": 10, "weight_only": True},
        "range": {"name": "lwc", "iterations": 60, "patience": 10},
    },
    "lwc": {
        "range": {
            "name": "lwc",
            "iterations": 60,
            "patience": 10,
            "learning_rate": 5e-2,
            "initial_logit": 4.0,
        },
    },
}


@dataclass(frozen=True)
class Inspect(Transform):
    """Calls a function of the test with every block."""

    action: Callable[[BlockContext], None]

    def rewrite_block(self, context: BlockContext) -> None:
        self.action(context)


def batches_of(
    checkpoint: Checkpoint, seed: int = 0, padding_weight: float = 0.0
) -> list[CalibrationBatch]:
    """Two batches of two noisy clips, with padding in frames and tokens."""
    clips = []
    for index, seconds in enumerate((1.5, 0.6, 1.1, 0.9)):
        generator = torch.Generator().manual_seed(10 * seed + index)
        samples = tone(seconds, 200.0 + 30 * seed)
        noise = 0.1 * torch.randn(len(samples), generator=generator).numpy()
        text = "one two" if index < 2 else "she sells sea shells by the sea"
        clips.append(((samples + noise).astype("float32"), text))
    return calibration_batches(
        checkpoint, ListCorpus(clips), 4, 2, seed=0, padding_weight=padding_weight
    )


def uneven(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A copy whose norms and values give channels of very different sizes."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if "norm" in name and isinstance(weight, Tensor):
                weight *= torch.exp(torch.randn(len(weight), generator=generator))
            if name.endswith("v_proj"):
                weight *= torch.exp(torch.randn(len(weight), 1, generator=generator))
    return model


@dataclass(frozen=True)
class WeightResult(LayerResult):
    """Of one layer, with its quantized weight."""

    weight: QuantizedWeight = field(kw_only=True)


def known(error: float | None) -> float:
    """An error that was measured."""
    assert error is not None
    return error


@dataclass
class Weights:
    """What quantizing a model found, with every layer's quantized weight."""

    result: Quantization
    layers: dict[str, WeightResult]

    @property
    def output_error(self) -> float:
        """Summed output error of all layers."""
        return sum(known(layer.output_error) for layer in self.layers.values())

    @property
    def nearest_error(self) -> float:
        """Summed output error that rounding to nearest would have had on the same inputs."""
        return sum(known(layer.nearest_error) for layer in self.layers.values())

    @property
    def warnings(self) -> list[str]:
        return self.result.warnings

    @property
    def blocks(self) -> dict[str, BlockResult]:
        return self.result.blocks

    @property
    def reconstructions(self) -> list[Reconstruction]:
        return self.result.reconstructions


def with_weights(model: nn.Module, result: Quantization) -> Weights:
    """`result` beside the weights that `model` holds by now."""
    stored = {name: layer.quantized for name, layer in quantized_layers(model).items()}
    assert stored.keys() == result.layers.keys()
    layers = {
        name: WeightResult(layer.output_error, layer.nearest_error, weight=weight)
        for name, layer in result.layers.items()
        if (weight := stored[name]) is not None
    }
    return Weights(result, layers)


def formats_of(
    checkpoint: Checkpoint, grid: Grid, activation: ActivationGrid | None = None
) -> dict[str, TensorFormat]:
    """One format for every Linear inside a block."""
    blocks = checkpoint.architecture.blocks(checkpoint.model.config)
    return {name: TensorFormat(grid, activation) for block in blocks for name in block.layers}


@torch.no_grad()
def rewrite_blocks(
    checkpoint: Checkpoint,
    transform: Transform,
    *,
    model: PreTrainedModel | None = None,
    grid: Grid = GRID,
) -> tuple[PreTrainedModel, Quantization]:
    """Rewrite all blocks of a copy of the model, rounding nothing."""
    model = copy.deepcopy(model or checkpoint.model)
    architecture, batches = checkpoint.architecture, batches_of(checkpoint)
    formats = formats_of(checkpoint, grid)
    install_layers(model, formats)
    whole = ModelContext(model, architecture, batches, formats)
    transform.rewrite_model(whole)
    warnings = whole.warnings
    for captured in CalibrationPass(model, architecture, batches).captured_blocks():
        context = BlockContext(
            model, architecture, captured.block, captured.module,
            list(captured.calls), captured.row_weights, formats,
        )  # fmt: skip
        # As in a run that measures errors: statistics are there before anything is rewritten.
        for site in captured.block.sites:
            context.statistics(site)
        transform.rewrite_block(context)
        warnings += context.warnings
    return model, Quantization(warnings=warnings)


def contexts(
    checkpoint: Checkpoint, model: PreTrainedModel | None = None
) -> Iterator[BlockContext]:
    """The context of every block, all weights float."""
    seen: list[BlockContext] = []
    rewrite_blocks(checkpoint, Inspect(seen.append), model=model)
    yield from seen


def site_of(
    checkpoint: Checkpoint,
    stack: str,
    role: str,
    model: PreTrainedModel | None = None,
) -> tuple[BlockContext, Site]:
    """The first site of that role in that stack, with the context of its block."""
    for context in contexts(checkpoint, model):
        for site in context.block.sites:
            if (site.stack, site.role) == (stack, role):
                return context, site
    raise LookupError(f"no {role} in the {stack}")


@torch.no_grad()
def rows_of(context: BlockContext, module: nn.Module) -> list[Tensor]:
    """What `module` reads in every batch, valid rows only, by a hook of our own."""
    seen: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    with module.register_forward_pre_hook(catch, with_kwargs=True):
        for call in context.calls:
            context.module(*call.args, **call.kwargs)
    return [rows[weights > 0] for rows, weights in zip(seen, context.row_weights, strict=True)]


def without_rows(context: BlockContext) -> BlockContext:
    """The same context, with no row that counts."""
    none = [torch.zeros_like(weights) for weights in context.row_weights]
    return replace(context, row_weights=none, warnings=[], _statistics={})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@torch.no_grad()
def outputs(model: PreTrainedModel, batches: Sequence[CalibrationBatch]) -> list[Tensor]:
    """Logits at every batch, padding included."""
    return [
        model(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids).logits
        for batch in batches
    ]


def largest_change(
    checkpoint: Checkpoint, before: PreTrainedModel, after: PreTrainedModel
) -> float:
    """Largest logit change on clips that calibration has not seen."""
    batches = batches_of(checkpoint, seed=1)
    pairs = zip(outputs(before, batches), outputs(after, batches), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


class EncoderOnly(Transform):
    """Rewrites encoder blocks only, without the memory."""

    def __init__(self, part: Transform) -> None:
        self.part = part

    def rewrite_block(self, context: BlockContext) -> None:
        if context.block.stack == "encoder":
            self.part.rewrite_block(context)


@torch.no_grad()
def largest_encoder_change(
    checkpoint: Checkpoint, before: PreTrainedModel, after: PreTrainedModel
) -> float:
    """Largest change of the encoder's output on clips that calibration has not seen."""
    name = checkpoint.architecture.encoder_module
    changes = []
    for batch in batches_of(checkpoint, seed=1):
        states = [
            model.get_submodule(name)(**batch.encoder_inputs).last_hidden_state
            for model in (before, after)
        ]
        changes.append(float((states[0] - states[1]).abs().max()))
    return max(changes)


def stages(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A recipe of plain rounding to nearest with some stages changed."""
    plain = {
        "transform": {"name": "none"},
        "outliers": {"name": "none"},
        "range": {"name": "minmax"},
        "rounding": {"name": "nearest"},
        "correction": {"name": "none"},
    }
    return plain | changes


def quantized_with(
    checkpoint: Checkpoint,
    options: dict[str, dict[str, Any]],
    grid: Grid,
    *,
    batches: Sequence[CalibrationBatch] | None = None,
    activation: ActivationGrid | None = None,
    finished: Path | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[PreTrainedModel, Weights]:
    """A quantized copy of the checkpoint's model."""
    model = copy.deepcopy(checkpoint.model)
    batches = batches_of(checkpoint) if batches is None else batches
    result = quantize_model(
        model,
        checkpoint.architecture,
        batches,
        Recipe.build(options),
        formats_of(checkpoint, grid, activation),
        finished=finished,
        progress=progress,
    )
    return model, with_weights(model, result)


def quantized_by_options(
    checkpoint: Checkpoint, *overrides: str
) -> tuple[PreTrainedModel, Weights]:
    """A copy of the model, quantized as the command line's `overrides` say."""
    settings = composed(*overrides)
    recipe = Recipe.build(settings.method.stages)
    scheme = Scheme.build(settings.method.rules, settings.scheme.rules, settings.shorthands)
    model = copy.deepcopy(checkpoint.model)
    formats = scheme.resolve(checkpoint.architecture.slots(model.config))
    batches = batches_of(checkpoint)
    result = quantize_model(model, checkpoint.architecture, batches, recipe, formats)
    return model, with_weights(model, result)


def contexts_with_targets(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32
) -> Iterator[BlockContext]:
    """Every block of a copy of the model, with its own outputs as targets."""
    model = copy.deepcopy(checkpoint.model)
    blocks = checkpoint.architecture.blocks(model.config)
    install_layers(model, [name for block in blocks for name in block.layers])
    for captured in CalibrationPass(
        model, checkpoint.architecture, batches_of(checkpoint), dtype
    ).captured_blocks():
        yield BlockContext(
            model, checkpoint.architecture, captured.block, captured.module,
            list(captured.calls), captured.row_weights, formats_of(checkpoint, Grid(4)),
            captured.outputs(),
        )  # fmt: skip

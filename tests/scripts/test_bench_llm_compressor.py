"""The peer's inputs, and output errors that are taken the same way for both sides."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_llm_compressor import layer_weights, peer_inputs, summed_errors
from gptq_of_llm_compressor import clips_of
from quant.walks import batches_of
from safetensors.torch import save_file
from torch import Tensor, nn

from edge_asr.data.calibration import CalibrationBatch
from edge_asr.models.loading import Checkpoint


def rows_of_layers(
    checkpoint: Checkpoint, batches: Sequence[CalibrationBatch]
) -> dict[str, Tensor]:
    """Every layer's valid input rows in plain forward passes of the float model."""
    model: Any = checkpoint.model
    rows: dict[str, list[Tensor]] = defaultdict(list)

    def note(name: str, batch: CalibrationBatch) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            frames = args[0].shape[1] == batch.frame_mask.shape[1]
            rows[name].append(args[0][batch.frame_mask if frames else batch.token_mask])

        return see

    for batch in batches:
        with ExitStack() as hooks, torch.no_grad():
            for key in layer_weights(checkpoint):
                name = key.removesuffix(".weight")
                layer = model.get_submodule(name)
                hooks.enter_context(layer.register_forward_pre_hook(note(name, batch)))
            model(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)
    return {name: torch.cat(parts).double() for name, parts in rows.items()}


def test_errors_are_those_of_the_float_models_valid_rows(checkpoint: Checkpoint) -> None:
    batches = batches_of(checkpoint)
    copied = Checkpoint(**vars(checkpoint) | {"model": copy.deepcopy(checkpoint.model)})
    exact = {key: weight.clone() for key, weight in layer_weights(copied).items()}
    torch.manual_seed(0)
    noisy = {key: weight + 0.01 * torch.randn_like(weight) for key, weight in exact.items()}
    expected = 0.0
    for name, rows in rows_of_layers(copied, batches).items():
        key = f"{name}.weight"
        outputs = rows @ exact[key].double().T
        changes = rows @ (noisy[key] - exact[key]).double().T
        variance = (outputs - outputs.mean(0)).square().sum(1).mean()
        expected += float(changes.square().sum(1).mean() / variance)
    assert summed_errors(copied, batches, [exact, noisy]) == [0, pytest.approx(expected, rel=1e-3)]


def test_both_sides_quantize_the_same_layers(checkpoint: Checkpoint) -> None:
    weights = layer_weights(checkpoint)
    missing = dict(list(weights.items())[1:])
    with pytest.raises(ValueError, match=f"one side only: {next(iter(weights))}"):
        summed_errors(checkpoint, [], [weights, missing])


def test_the_peer_reads_the_inputs_it_is_given(checkpoint: Checkpoint, tmp_path: Path) -> None:
    batches = batches_of(checkpoint)
    save_file(peer_inputs(batches), tmp_path / "inputs")
    read = clips_of(str(tmp_path / "inputs"))
    assert len(read) == len(batches)
    for batch, inputs in zip(batches, read, strict=True):
        assert torch.equal(inputs.pop("decoder_input_ids"), batch.decoder_input_ids)
        assert inputs.keys() == batch.encoder_inputs.keys()
        assert all(torch.equal(inputs[name], batch.encoder_inputs[name]) for name in inputs)

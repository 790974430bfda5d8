"""Models that decode in another dtype: float and quantized, both families."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from tiny import tone
from torch import Tensor, nn

from edge_asr import api
from edge_asr.errors import UserError
from edge_asr.models.decoding import Dtype, StackDtypes
from edge_asr.models.files import EMBEDDED
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.layers import RuntimeOp, runtime_ops
from edge_asr.runtimes.decoding_model import decoding_model
from edge_asr.runtimes.torch_greedy import TorchRuntime

CLIPS = [tone(0.9), tone(0.5, 300.0)]
# Where inputs are quantized, rounding in front of a grid point counts too.
ROUNDING: dict[Dtype, float] = {"float32": 1e-6, "bfloat16": 0.2, "float16": 0.03}
ALONE = [
    StackDtypes(encoder=one, decoder=other)
    for one in get_args(Dtype)
    for other in get_args(Dtype)
    if "float32" in (one, other)
]


def logits(model: Any, checkpoint: Checkpoint, dtypes: StackDtypes) -> Tensor:
    """Of the prompt, behind encoder and decoder."""
    inputs = checkpoint.architecture.model_inputs(checkpoint.feature_extractor, CLIPS)
    encoder = model.get_submodule(checkpoint.architecture.encoder_module)
    decoder = model.get_submodule(checkpoint.architecture.decoder_module)
    dtype = getattr(torch, dtypes.encoder)
    cast = {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}
    memory = encoder(**cast).last_hidden_state
    assert memory.dtype == dtype
    mask = checkpoint.architecture.memory_mask(inputs, memory.shape[1])
    tokens = torch.tensor([checkpoint.architecture.prompt(model)] * len(CLIPS))
    memory = memory.to(getattr(torch, dtypes.decoder))
    states = decoder(input_ids=tokens, encoder_hidden_states=memory, **mask).last_hidden_state
    found: Tensor = model.get_submodule(checkpoint.architecture.head)(states)
    assert found.dtype == getattr(torch, dtypes.decoder)
    return found.float()


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("method", ["float", "rtn", "quarot", "awq"])
def test_another_dtype_changes_logits_by_its_rounding(name: str, method: str) -> None:
    """With input quantizers and runtime ops (rotations, un-fused scales) too."""
    checkpoint = load_checkpoint(name)
    if method != "float":
        checkpoint = api.quantize(
            checkpoint,
            method,
            "calibration.clips=2",
            bits=8,
            act_bits=None if method == "awq" else 8,
        )
    before = {name: id(one) for name, one in checkpoint.model.named_parameters()}
    with torch.inference_mode():
        expected = logits(checkpoint.model, checkpoint, StackDtypes())
        for dtypes in [*ALONE, StackDtypes("bfloat16", "bfloat16")]:
            made = decoding_model(checkpoint, dtypes)
            error = (logits(made, checkpoint, dtypes) - expected).norm() / expected.norm()
            assert error < max(ROUNDING[dtypes.encoder], ROUNDING[dtypes.decoder]), dtypes
    assert before == {name: id(one) for name, one in checkpoint.model.named_parameters()}


@pytest.mark.parametrize("dtypes", ALONE, ids=str)
def test_parameters_are_shared_where_the_dtype_is_the_same(
    checkpoint: Checkpoint, dtypes: StackDtypes
) -> None:
    made = decoding_model(checkpoint, dtypes)
    own = dict(checkpoint.model.named_parameters())
    for name, parameter in made.named_parameters():
        in_encoder = name.startswith(f"{checkpoint.architecture.encoder_module}.")
        wanted = dtypes.encoder if in_encoder else dtypes.decoder
        assert parameter.dtype == getattr(torch, wanted)
        assert (parameter is own[name]) == (wanted == "float32")
    head, embedding = (
        made.get_submodule(name).weight
        for name in (checkpoint.architecture.head, checkpoint.architecture.embedding)
    )
    assert head is embedding


def test_runtime_ops_compute_in_float32() -> None:
    checkpoint = api.quantize(
        load_checkpoint("moonshine-micro"), "quarot", "calibration.clips=2", bits=8
    )
    made = decoding_model(checkpoint, StackDtypes("bfloat16", "float16"))
    ops = runtime_ops(made)
    assert {name.split(".")[1] for name in ops} == {"encoder", "decoder"}
    plain = runtime_ops(checkpoint.model)
    for name, op in ops.items():
        dtype = torch.bfloat16 if ".encoder." in name else torch.float16
        states = torch.randn(3, op.width).to(dtype)
        assert isinstance(op, RuntimeOp)
        assert torch.equal(op(states), plain[name](states.float()).to(dtype))


def test_a_dtype_that_the_device_cannot_compute_in_is_named(whisper: Checkpoint) -> None:
    class Refusing(nn.Conv1d):
        def forward(self, input: Tensor) -> Tensor:
            if input.dtype == torch.float16:
                raise RuntimeError("\"slow_conv1d\" not implemented for 'Half'\nmore")
            return super().forward(input)

    model: Any = copy.deepcopy(whisper.model)
    model.model.encoder.conv1.__class__ = Refusing
    checkpoint = replace(whisper, model=model)
    TorchRuntime(checkpoint, StackDtypes("bfloat16", "float16")).warm_up()
    with pytest.raises(
        UserError, match=r"^encoder\.dtype=float16, .*: cpu cannot .*Half.*float32$"
    ):
        TorchRuntime(checkpoint, StackDtypes("float16", "float32")).warm_up()

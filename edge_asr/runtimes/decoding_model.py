"""The model as it decodes: its own dtypes, and what only helps other processors left out."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edge_asr.models.decoding import StackDtypes
from edge_asr.models.loading import Checkpoint


def decoding_model(checkpoint: Checkpoint, dtypes: StackDtypes) -> Any:
    """A copy of a checkpoint's model that is made for decoding.

    The model itself is left as it is, for others calibrate and quantize it. The copy shares its
    tensors but for parameters of a stack that computes in another dtype; what is neither encoder
    nor decoder (the head) goes with the decoder. Modules that say `in_float32` keep computing so.
    """
    model, encoder_module = checkpoint.model, checkpoint.architecture.encoder_module
    encoder_dtype, decoder_dtype = (
        getattr(torch, name) for name in (dtypes.encoder, dtypes.decoder)
    )
    memo: dict[int, Any] = {
        id(value): value
        for module in model.modules()
        for value in vars(module).values()
        if not isinstance(value, dict | nn.Module)
    }
    memo |= {id(tensor): tensor for tensor in model.buffers()}
    memo |= _cast(model.parameters(), decoder_dtype)
    memo |= _cast(model.get_submodule(encoder_module).parameters(), encoder_dtype)
    made = copy.deepcopy(model, memo)
    encoder = list(made.get_submodule(encoder_module).modules())
    _keep_in_float32(encoder, encoder_dtype)
    _keep_in_float32((one for one in made.modules() if one not in encoder), decoder_dtype)
    if model.device.type == "cpu":
        checkpoint.architecture.leave_out_head_padding(made)
    return made


def _cast(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> dict[int, nn.Parameter]:
    """Every parameter in `dtype`, by its id: itself where it is of that dtype."""
    return {
        id(one): one if one.dtype == dtype else nn.Parameter(one.to(dtype), requires_grad=False)
        for one in parameters
    }


def _keep_in_float32(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Let those that say `in_float32` take states of `dtype` and give such, but compute so."""
    if dtype == torch.float32:
        return
    for module in modules:
        if getattr(module, "in_float32", False):
            module.register_forward_pre_hook(_in_float32)
            module.register_forward_hook(partial(_back, dtype))


def _in_float32(module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    del module
    return tuple(one.float() for one in states)


def _back(dtype: torch.dtype, module: nn.Module, states: tuple[Tensor, ...], out: Tensor) -> Tensor:
    del module, states
    return out.to(dtype)

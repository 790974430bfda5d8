"""The model as it decodes: its own dtypes, and what only helps other processors left out."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import nn

from edge_asr.models.loading import Checkpoint


def decoding_model(checkpoint: Checkpoint) -> Any:
    """A copy of a checkpoint's model that is made for decoding and shares all tensors with it.

    The model itself is left as it is: others calibrate and quantize it.
    """
    model = checkpoint.model
    memo: dict[int, Any] = {
        id(value): value
        for module in model.modules()
        for value in vars(module).values()
        if not isinstance(value, dict | nn.Module)
    }
    memo |= {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    made = copy.deepcopy(model, memo)
    if model.device.type == "cpu":
        checkpoint.architecture.leave_out_head_padding(made)
    return made

"""What a passage keeps and what it makes anew."""

from __future__ import annotations

import copy

import torch
from quant.walks import batches_of

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.passage import Passage


def test_the_shared_memory_makes_its_outputs_at_every_look(checkpoint: Checkpoint) -> None:
    model = copy.deepcopy(checkpoint.model)
    memory = checkpoint.architecture.memory_block(model.config)
    stations = Passage(model, checkpoint.architecture, batches_of(checkpoint)).stations()
    (station,) = (station for station in stations if station.block.module == memory.module)
    outputs = station.outputs()
    assert len(outputs) == len(station.calls)
    first = outputs[0]
    with torch.no_grad():
        model.get_submodule(memory.layers[0]).weight.mul_(2)
    width = model.get_submodule(memory.layers[0]).out_features
    again = station.outputs()[0]
    assert not torch.allclose(again[..., :width], first[..., :width])
    torch.testing.assert_close(again[..., width:], first[..., width:])

"""What the peer of the GPTQ bench is given."""

from __future__ import annotations

from pathlib import Path

import torch
from bench_llm_compressor import peer_inputs
from gptq_of_llm_compressor import clips_of
from quant.passes import batches_of
from safetensors.torch import save_file

from edge_asr.models.loading import Checkpoint


def test_the_peer_reads_the_inputs_it_is_given(checkpoint: Checkpoint, tmp_path: Path) -> None:
    batches = batches_of(checkpoint)
    save_file(peer_inputs(batches), tmp_path / "inputs")
    read = clips_of(str(tmp_path / "inputs"))
    assert len(read) == len(batches)
    for batch, inputs in zip(batches, read, strict=True):
        assert torch.equal(inputs.pop("decoder_input_ids"), batch.decoder_input_ids)
        assert inputs.keys() == batch.encoder_inputs.keys()
        assert all(torch.equal(inputs[name], batch.encoder_inputs[name]) for name in inputs)

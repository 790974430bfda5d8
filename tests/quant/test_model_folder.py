"""A saved model needs nothing but its folder, and a process that knows nothing else."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quant.passes import batches_of, formats_of, outputs, stages
from tiny import tiny_whisper

from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.quant.model_folder import load_model, save_model
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.sequential import quantize_model

SCRIPT = """
import sys, torch
from pathlib import Path
from edge_asr.quant.model_folder import load_model
torch.set_num_threads(1)
checkpoint = load_model(Path(sys.argv[1]))
inputs = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save(checkpoint.model(**inputs).logits, sys.argv[3])
"""


@pytest.fixture
def quantized(tmp_path: Path) -> Checkpoint:
    """A rotated model with outlier columns and quantized inputs: all that is stored of one."""
    checkpoint = load_checkpoint(str(tiny_whisper(tmp_path / "checkpoint")), name="mine")
    recipe = Recipe.build(
        stages(
            transform={"name": "hadamard"},
            outliers={"name": "columns"},
            rounding={"name": "gptq"},
        )
    )
    formats = formats_of(checkpoint, Grid(3), ActivationGrid(8))
    batches = batches_of(checkpoint)
    quantize_model(checkpoint.model, checkpoint.architecture, batches, recipe, formats)
    return checkpoint


def test_a_fresh_process_computes_the_same_logits(quantized: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_model(folder, quantized)
    batch = batches_of(quantized, seed=1)[0]
    inputs = {**batch.encoder_inputs, "decoder_input_ids": batch.decoder_input_ids}
    torch.save(inputs, tmp_path / "inputs")
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "inputs")]
    subprocess.run(
        [*command, str(tmp_path / "logits")],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    logits = torch.load(tmp_path / "logits", weights_only=True)
    assert torch.equal(logits, outputs(quantized.model, [batch])[0])


def test_name_and_cap_come_back(quantized: Checkpoint, tmp_path: Path) -> None:
    save_model(tmp_path / "saved", dataclasses.replace(quantized, tokens_per_second=7.5))
    loaded = load_model(tmp_path / "saved")
    assert (loaded.name, loaded.tokens_per_second) == ("mine", 7.5)
    assert loaded.architecture.prompt(loaded.model) == quantized.architecture.prompt(loaded.model)


def test_what_is_decoded_comes_back(tmp_path: Path) -> None:
    """As it was saved, or as it is asked for."""
    folder = tiny_whisper(tmp_path / "checkpoint", multilingual=True)
    german = Decoding(language="de", task="translate", suppression="none", too_long="error")
    checkpoint = load_checkpoint(str(folder), decoding=german)
    save_model(tmp_path / "saved", checkpoint)
    loaded = load_model(tmp_path / "saved")
    assert (loaded.language, loaded.task, loaded.decoding) == ("de", "translate", german)
    assert loaded.architecture.prompt(loaded.model) == checkpoint.architecture.prompt(
        checkpoint.model
    )
    english = load_model(tmp_path / "saved", decoding=Decoding(language="en"))
    assert (english.language, english.task) == ("en", "transcribe")
    with pytest.raises(UserError, match=r"decode\.language=fr"):
        load_model(tmp_path / "saved", decoding=Decoding(language="fr"))


def test_saving_leaves_the_model_as_it_is(quantized: Checkpoint, tmp_path: Path) -> None:
    before = copy.deepcopy(quantized.model.state_dict())
    save_model(tmp_path / "saved", quantized)
    for name, value in quantized.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_folder_without_a_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no quantized model"):
        load_model(tmp_path)

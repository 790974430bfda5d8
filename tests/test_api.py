"""What a notebook calls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_moonshine, tiny_whisper

from edge_asr import api
from edge_asr.errors import UserError
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.layers import quantized_layers


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(4):
        wave = np.sin(np.arange(16000) * (0.1 + 0.05 * index)).astype(np.float32) / 2
        soundfile.write(folder / f"{index}.wav", wave, 16000)
        condition = "clean" if index % 2 else "noisy"
        rows.append({"audio": f"{index}.wav", "text": f"one two {index}", "condition": condition})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl"


@pytest.fixture(scope="module", params=["whisper", "moonshine"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model") / request.param
    {"whisper": tiny_whisper, "moonshine": tiny_moonshine}[request.param](folder)
    return api.load(str(folder))


def test_a_notebook_in_five_lines(model: Checkpoint, clips: Path, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    small = api.quantize(model, "gptq", bits=3, group_size=16, calibration=clips)
    after = model.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    plain = api.evaluate(model, clips, batch_size=2)
    heard = api.evaluate(small, clips, batch_size=2, against=plain)
    again = api.load_quantized(api.save(small, tmp_path / "small"))

    loaded = api.evaluate(again, str(clips), batch_size=2)
    assert loaded.transcription.hypotheses[0].pred_text == heard.hypotheses["pred_text"][0]
    assert loaded.wer == heard.wer
    assert loaded.cost == heard.cost
    assert plain.difference is None
    assert heard.difference is not None
    assert heard.difference.estimate == pytest.approx(heard.wer.estimate - plain.wer.estimate)
    assert list(heard.frame["condition"]) == ["all", "clean", "noisy", "0-5 s"]
    assert heard.frame["size_mb"][0] < 0.6 * plain.frame["size_mb"][0]
    assert str(heard).count("\n") == 4
    grids = {
        layer.quantized.grid.bits
        for layer in quantized_layers(again.model).values()
        if layer.quantized
    }
    assert grids == {3}


def test_it_costs_what_a_run_says(model: Checkpoint, clips: Path, tmp_path: Path) -> None:
    record = api.run(
        "method=rtn", "bits=4", "model=custom", f"model.path={model.files.folder}",
        "data=manifest", f"data.path={clips}", "batch_size=2", f"results={tmp_path / 'runs'}",
    )  # fmt: skip
    heard = api.evaluate(api.quantize(model, "rtn", bits=4), clips, batch_size=2)
    assert record.cost is not None
    assert heard.cost == record.cost.quantized
    assert heard.results[0].wer == record.results[0].wer


def test_words_and_options_reach_the_recipe(model: Checkpoint) -> None:
    small = api.quantize(model, "rtn", "method/range=mse", "method.range.steps=10", bits=4,
                         group_size=None, act_bits=8)  # fmt: skip
    layer = next(iter(quantized_layers(small.model).values()))
    assert layer.quantized is not None
    assert layer.quantized.grid.granularity == "channel"


@pytest.mark.parametrize("name", ["whisper_micro", "moonshine_micro", "whisper-micro"])
def test_a_name_of_the_configuration_is_loaded(name: str) -> None:
    assert api.load(name).name == name.replace("_", "-")


def test_mistakes_are_one_line(model: Checkpoint, clips: Path, tmp_path: Path) -> None:
    small = api.quantize(model, "rtn", bits=4)
    for call, told in (
        (lambda: api.load("whisper_mikro"), "whisper_mikro"),
        (lambda: api.quantize(model, "gptqq"), "did you mean gptq"),
        (lambda: api.quantize(model, "rtn", bits=17), "bits=17: must be"),
        (lambda: api.quantize(model, "float"), "quantizes nothing"),
        (lambda: api.quantize(model, "gptq", calibration="/no/such.jsonl"), "/no/such.jsonl"),
        (lambda: api.quantize(small, "rtn"), "is quantized already"),
        (lambda: api.save(model, tmp_path / "x"), "is not quantized"),
        (lambda: api.load_quantized(tmp_path), "holds no quantized model"),
        (lambda: api.evaluate(model, clips, protocol="mine"), "protocol=mine: known are"),
        (lambda: api.evaluate(model, clips, batch_size=0), "batch_size=0: must be"),
        (lambda: api.evaluate(model, clips, limit=0), "limit=0"),
    ):
        with pytest.raises(UserError, match=told) as error:
            call()
        assert "\n" not in str(error.value)

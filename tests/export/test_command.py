"""The command: from a run's folder to a file, and what it says where that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from options import composed
from tiny import tone

from edge_asr.experiments.ptq import run_experiment
from edge_asr.export.__main__ import main
from edge_asr.export.exported import checkpoint_of, read_export
from edge_asr.models.loading import load_checkpoint
from edge_asr.runtimes.onnx_runtime import OnnxRuntime
from edge_asr.runtimes.torch_greedy import TorchRuntime

OPTIONS = ("model=moonshine_micro", "data.limit=2", "batch_size=2", "threads=1", "group_size=48")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, a float one and one for compressed-tensors, with a store beside it."""
    folder = tmp_path_factory.mktemp("work") / "runs"
    for words in (("method=float",), ("method=rtn", "target=compressed_tensors")):
        run_experiment(composed(*OPTIONS, *words, f"results={folder}"))
    return folder


def of(runs: Path, method: str) -> Path:
    (found,) = (runs / "moonshine-micro").glob(f"{method}-*")
    return found


def test_a_run_is_exported_by_its_folder(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(of(runs, "rtn")), "--target", "compressed_tensors", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "MB; read back, every weight is that of" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("float", "compressed_tensors", "is a run of the float model"),
        ("rtn", "compressed_tensor", "did you mean compressed_tensors?"),
        ("rtn", "none", "known are compressed_tensors"),
        ("rtn", "onnx_dynamic", "give --target=compressed_tensors, or make a run with target=onnx"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    method: str, target: str, message: str,
) -> None:  # fmt: skip
    code = main([str(of(runs, method)), "--target", target, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{file}/inside", "--out={file}/inside: cannot be written ("),
        ("{folder}/" + 300 * "x", "cannot be written (File name too long); choose another folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, message: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    out = place.format(file=file, folder=tmp_path)
    assert main([str(of(runs, "rtn")), "--target", "compressed_tensors", "--out", out]) == 2
    error = capsys.readouterr().err
    assert message.format(file=file) in error
    assert error.count("\n") == 1


def test_what_is_not_there_is_told(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--target", "compressed_tensors", "--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "nothing"), *out]) == 2
    assert "nothing: is no folder; give that of a run" in capsys.readouterr().err
    lost = tmp_path / "lost"
    lost.mkdir()
    assert main([str(of(runs, "rtn")), *out, "--store", str(lost)]) == 2
    assert "make the run again with rerun=true" in capsys.readouterr().err
    # The record itself is as good as its folder.
    assert main([str(of(runs, "rtn") / "record.json"), *out]) == 0


def test_the_float_model_of_a_run_is_exported_beside_it(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "float"
    words = [str(of(runs, "rtn")), "--float", "--target"]
    assert main([*words, "onnx_nbits", "--out", str(out)]) == 0
    assert f"MB; the float model of {of(runs, 'rtn')}" in capsys.readouterr().out.replace("\n", "")
    export = read_export(out)
    assert (export.checkpoint, export.formats) == ("moonshine-micro", "float")
    own, floats = load_checkpoint("moonshine-micro"), heard(out)
    assert floats == [one.text for one in TorchRuntime(own).transcribe([tone(0.7)], [8])]
    assert main([*words, "compressed_tensors", "--out", str(tmp_path / "x")]) == 2
    assert "is one of quantized models alone; the float one is" in capsys.readouterr().err
    assert main([str(tmp_path), "--float", "--target", "onnx_nbits", "--out", "x"]) == 2
    assert "--float takes the folder of a run" in capsys.readouterr().err
    plain = json.loads((of(runs, "float") / "record.json").read_text())
    plain["model"]["weights_sha256"] = "0" * 32
    (tmp_path / "record.json").write_text(json.dumps(plain))
    assert main([str(tmp_path), "--float", "--target", "onnx_nbits", "--out", "x"]) == 2
    assert "has other weights than" in capsys.readouterr().err


def heard(folder: Path) -> list[str]:
    """What the file writes of a tone."""
    own = checkpoint_of(read_export(folder), folder)
    return [one.text for one in OnnxRuntime(own, exported=folder).transcribe([tone(0.7)], [8])]


def test_a_model_that_the_store_gave_up_says_where_it_was_looked_for(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere" / "runs"
    shutil.copytree(runs, moved)
    words = [str(of(moved, "rtn")), "--target", "compressed_tensors"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "elsewhere" / ".edge_asr") in error
    assert "--store" in error
    assert (
        main([*words, "--out", str(tmp_path / "a"), "--store", str(runs.parent / ".edge_asr")]) == 0
    )


def test_a_folder_that_holds_nothing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--target", "compressed_tensors", "--out", "out"]) == 2
    assert "holds no quantized model" in capsys.readouterr().err

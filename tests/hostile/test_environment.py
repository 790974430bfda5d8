"""Folders with awkward names, terminals without letters, full disks, places nobody may write to."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import tiny_whisper

from edge_asr.run import main


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, from an empty folder."""

    def ran(*words: str) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["run", *words])
        code = main()
        return Done(code, *capfd.readouterr())

    return ran


def in_process(
    *words: str, folder: Path, limit: int | None = None, output: int = subprocess.PIPE, **extra: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; no file may be longer than `limit` bytes."""

    def bounded() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "edge_asr.run", *words],
        cwd=folder,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        encoding=extra.get("PYTHONIOENCODING", "utf-8"),
        env={**os.environ, **extra},
        preexec_fn=bounded,
    )


def errors(lines: str) -> Sequence[str]:
    return [line for line in lines.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and two clips."""
    folder = tmp_path_factory.mktemp("parts")
    tiny_whisper(folder / "model")
    rows = []
    for index in range(2):
        wave = np.sin(np.arange(16000) * (0.1 + 0.05 * index)).astype(np.float32) / 2
        soundfile.write(folder / f"{index}.wav", wave, 16000)
        rows.append({"audio": f"{index}.wav", "text": f"one two {index}"})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def options(parts: Path) -> list[str]:
    return [
        "model=custom", f"model.path={parts / 'model'}", "data=manifest",
        f"data.path={parts / 'clips.jsonl'}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["été (1)", "a = b", "it's", 'a "quote"', "a, b", "{x} [y]", "~tilde", "日本 #1 & ;", "100%"],
)
def test_a_folder_may_have_any_name(name: str, parts: Path, tmp_path: Path, run: Run) -> None:
    place = shutil.copytree(parts, tmp_path / name)
    done = run(
        "method=rtn", *options(place), f"results={place / 'runs'}", f"store={place / 'store'}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(place.rglob("record.json"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_home_is_expanded_in_a_sweep_too(
    parts: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(parts, tmp_path / "clips")
    done = run(
        "-m", "method=rtn", "bits=4,3", "model=custom", "model.path=~/clips/model",
        "data=manifest", "data.path=~/clips/clips.jsonl", "results=~/runs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").rglob("record.json"))) == 3
    assert not (tmp_path / "~").exists()


def test_no_terminal_means_a_log_with_a_line_a_step(parts: Path, run: Run) -> None:
    done = run("method=rtn", *options(parts))
    told = [line.partition(" ")[2] for line in done.stderr.splitlines()[1:]]
    clips = f"{parts.name}-clips"
    assert [line for line in told if not line.endswith(" s")] == [
        "read the checkpoint and the clips",
        "load the float model",
        f"transcribe {clips} (float model)",
        "quantize model rtn W4",
        f"transcribe {clips} (quantized model)",
    ]
    ended = [line.partition(":")[0] for line in told if line.endswith(" s")]
    assert ended == ["transcribe float", "quantize rtn W4", "transcribe rtn W4"]


def test_a_terminal_without_greek_gets_its_table(parts: Path, tmp_path: Path) -> None:
    done = in_process("method=rtn", *options(parts), folder=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "d WER" in done.stdout


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    parts: Path, tmp_path: Path, run: Run
) -> None:
    done = in_process("method=rtn", *options(parts), folder=tmp_path, limit=20_000)
    assert done.returncode == 1
    assert len(errors(done.stderr)) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json"))
    (failed,) = tmp_path.rglob("error.json")
    noted = json.loads(failed.read_text())
    assert noted["error"] == "OSError"
    assert noted["settings"]["method"]["name"] == "rtn"
    done = run("method=rtn", *options(parts))
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("record.json"))) == 2
    assert not list(tmp_path.rglob("error.json"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_behind_the_table_is_one_line(parts: Path, tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = in_process("method=rtn", *options(parts), folder=tmp_path, output=full)
    os.close(full)
    assert done.returncode == 1
    assert len(errors(done.stderr)) == 1
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.rglob("record.json"))) == 2, "the work was done"


@pytest.mark.parametrize("option", ["results", "store"])
def test_a_place_nobody_may_write_to_is_one_line(
    option: str, parts: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in ("/proc/1/x", str(tmp_path / "file"), str(tmp_path / "file/below"), "x" * 300):
        done = run("method=rtn", *options(parts), f"{option}={place}")
        assert done.returncode == 2, (place, done.stderr)
        (line,) = errors(done.stderr)
        assert place in line
        assert f"{option}=" in line
        assert "Traceback" not in done.stderr


def test_nothing_is_left_in_the_temporary_folder(
    parts: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    done = run("-m", "method=rtn", "bits=4,3", *options(parts))
    assert done.returncode == 0, done.stderr
    assert not list(temporary.iterdir())


def test_a_sweep_goes_on_after_a_failed_run(parts: Path, tmp_path: Path, run: Run) -> None:
    damaged = shutil.copytree(parts / "model", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no tensors")
    models = f"model.path={damaged},{parts / 'model'}"
    done = run("-m", "model=custom", models, *options(parts)[2:])
    assert done.returncode == 1
    assert errors(done.stderr) == ["error: 1 of 2 runs failed; the same command tries them again"]
    assert len([line for line in done.stderr.splitlines() if line.startswith("failed: ")]) == 1
    assert f"failed: model.path='{damaged}': " in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.rglob("record.json"))) == 2, "of the model that is whole"
    (noted,) = tmp_path.rglob("error.json")
    assert "model.safetensors cannot be read" in json.loads(noted.read_text())["message"]
    shutil.copyfile(parts / "model/model.safetensors", damaged / "model.safetensors")
    again = run("-m", "model=custom", models, *options(parts)[2:])
    assert again.returncode == 0, again.stderr
    assert "1 of 1: damaged rtn W4: WER " in again.stderr, "what is finished is not launched"
    assert not list(tmp_path.rglob("error.json"))

"""Sweeps: which runs they have, which are new, and what becomes of them under every launcher."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile
from rich.console import Console
from tiny import tiny_whisper, tone

from edge_asr.cli.compose import Composer
from edge_asr.cli.overrides import parse, prepare, values
from edge_asr.cli.sweep import sweep_members
from edge_asr.cli.watch import Watch
from edge_asr.config import CONF
from edge_asr.errors import UserError
from edge_asr.experiments.sweeps import SweepRun, sweep_runs
from edge_asr.run import main
from edge_asr.store.artefacts import Store
from edge_asr.sweep import main as sweep_main

EIGHT = {"rtn", "smoothquant", "awq", "omniquant", "gptq", "spqr", "quik", "tesseraq"}


def members(*words: str) -> list[tuple[str, ...]]:
    with Composer() as composer:
        return sweep_members(composer, prepare(words, sweep=True))


def test_several_experiments_are_one_sweep_after_the_other() -> None:
    found = members("experiment=demo,smoke", "bits=4,2", "model=whisper_micro")
    assert len(found) == 2 * 2 + 3 * 2, "what is typed stands for the experiment's own values"
    assert found[0] == ("experiment=demo", "model=whisper_micro", "method=rtn", "bits=4")
    assert found[-1] == ("experiment=smoke", "model=whisper_micro", "method=gptq", "bits=2")


def test_all_values_that_do_not_fit_are_told() -> None:
    words = ("target=ggml_q8_0", "method=rtn,awq,hqq,spqr")
    with pytest.raises(
        UserError, match=r"others these do not fit: method=awq, method=hqq, method=spqr$"
    ):
        members(*words)
    with pytest.raises(UserError, match=r"use \S+=\S+$"):
        members("target=ggml_q8_0", "method=awq,rtn", "batch_size=1,2")


def test_experiments_that_ship_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_ASR_SHARED", "/some where")
    sizes = {}
    with Composer() as composer:
        for path in (CONF / "experiment").glob("*.yaml"):
            config = composer.config([f"experiment={path.stem}"], with_hydra=True)
            given = [f"{name}={value}" for name, value in config.hydra.sweeper.params.items()]
            overrides = [one for word in given for one in prepare([word], sweep=True)]
            for last in (0, -1):
                words = [word.partition("=")[0] + "=" + _values(word)[last] for word in overrides]
                composer.settings([f"experiment={path.stem}", *words])
            sizes[path.stem] = len(given)
            if path.stem in ("edge_asr_grid", "micro_grid", "real_tiny"):
                methods = set(_values(f"method={config.hydra.sweeper.params.method}"))
                assert methods >= EIGHT
                assert path.stem == "real_tiny" or methods == EIGHT
    assert {"edge_asr_grid", "micro_grid", "real_tiny", "smoke", "demo"} <= sizes.keys()


def _values(word: str) -> list[str]:
    return [one.partition("=")[2] for one in values(parse([word])[0])]


def test_a_launcher_is_for_sweeps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert run(monkeypatch, "hydra/launcher=joblib", "bits=4") == 2
    assert capsys.readouterr().err == "error: hydra/launcher=joblib: launches sweeps; add -m\n"


@dataclass(frozen=True)
class Parts:
    """A small model and six clips."""

    folder: Path

    @property
    def words(self) -> list[str]:
        clips = self.folder / "clips.jsonl"
        return [
            "model=custom", f"model.path={self.folder / 'model'}", "data=manifest",
            f"data.path={clips}", "protocol.resamples=100", "method=rtn", "batch_size=2",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    tiny_whisper(folder / "model")
    rows = []
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", tone(0.5 + index / 10), 16_000)
        rows.append({"audio": f"{index}.wav", "text": "she sells sea shells"})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Parts(folder)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run", *words])
    return main()


def resolved(parts: Parts, *words: str) -> list[SweepRun]:
    with Composer() as composer:
        found = sweep_members(composer, prepare([*parts.words, *words], sweep=True))
        return sweep_runs([(one, composer.settings(one)) for one in found])


def test_a_sweep_from_nothing_to_its_end(
    parts: Parts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "-m", "bits=4,3", *parts.words) == 0
    said = capfd.readouterr()
    lines = said.err.splitlines()
    assert lines[0].startswith("2 runs, 2 new: no estimate of 7 steps")
    assert [line.partition(": WER")[0] for line in lines[2:]] == [
        "1 of 2: model rtn W4",
        "2 of 2: model rtn W3",
    ], "no other line"
    assert said.out.count("open_asr_2024: ") == 1
    rows = [line.split()[:2] for line in said.out.splitlines() if line.startswith("  ")]
    assert rows[1] == ["float", "32"]
    assert sorted(rows[2:]) == [["rtn", "W3"], ["rtn", "W4"]], "one table of all"
    # Finished ones are known by content: settings that decide nothing make no other run.
    assert run(monkeypatch, "-m", "bits=4,3,2", "threads=1", *parts.words) == 0
    lines = capfd.readouterr().err.splitlines()
    assert re.match(r"3 runs, 1 new: about \d+ s one after the other, \d", lines[0])
    assert lines[-1].startswith("1 of 1: model rtn W2: WER ")
    assert sweep_main(["status", *parts.words, "bits=4,3,2,8"]) == 0
    assert re.search(r"3 of 4 runs done, 1 to do; left: about \d+ s", capfd.readouterr().out)
    assert sweep_main(["failed", *parts.words, "bits=4,3"]) == 0
    assert capfd.readouterr().out == "no run has failed\n"
    assert sweep_main(["cost", *parts.words, "bits=4,3"]) == 0
    assert "2 of 2 runs done; left: all their steps are made" in capfd.readouterr().out


def test_what_is_left_to_do_is_seen_from_the_folders(parts: Parts, tmp_path: Path) -> None:
    here = f"results={tmp_path / 'runs'}"
    four, three = resolved(parts, "bits=4,3", here)
    assert (four.state, three.state) == ("to do", "to do")
    assert len(four.folders) == 2, "that of half of two clips a batch too"
    shared = {one.key for one in four.work} & {one.key for one in three.work}
    assert len(shared) == 1, "the float run"
    store = Store(tmp_path / ".edge_asr")
    (store.folder / "unfinished" / f"quantize-{four.work[0].key}").mkdir(parents=True)
    four.folders[0].mkdir(parents=True)
    (three.folders[0]).mkdir(parents=True)
    (three.folders[0] / "error.json").write_text('{"error": "OSError", "message": "disk\\nfull"}')
    four, three, same = resolved(parts, "bits=4,3,default", here)[:2] + resolved(
        parts, "bits=default", here
    )
    assert (four.state, three.state) == ("begun", "failed")
    assert three.failure == "OSError: disk"
    assert same.folders == four.folders, "4 bits are the default"


def test_less_clips_together_is_another_run_unless_memory_made_it_so(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = f"results={tmp_path / 'runs'}"
    assert run(monkeypatch, *parts.words, "bits=4", "batch_size=1", here) == 0
    (two,) = resolved(parts, "bits=4", here)
    assert two.folders[1].exists()
    assert two.state != "done"
    path = two.folders[1] / "record.json"
    plain = json.loads(path.read_text())
    plain["warnings"].append("batch_size=1: memory was not enough for batches of 2 clips")
    path.write_text(json.dumps(plain))
    assert two.state == "done"


def test_an_old_failure_is_not_taken_for_a_new_one(parts: Parts, tmp_path: Path) -> None:
    (only,) = resolved(parts, "bits=4", f"results={tmp_path / 'runs'}")
    only.folders[0].mkdir(parents=True)
    error = only.folders[0] / "error.json"
    error.write_text('{"error": "UserError", "message": "no such file"}')
    console = Console(file=(tmp_path / "told").open("w"), width=200)
    watch = Watch([only], console)
    watch.look()
    assert watch.is_open(only)
    error.unlink()
    error.write_text('{"error": "UserError", "message": "still not"}')
    watch.look()
    assert watch.failed == {only.words: "still not"}
    console.file.flush()
    assert (tmp_path / "told").read_text() == "1 of 1: model rtn W4: failed: still not\n"


def test_runs_that_cannot_be_made_cost_themselves_alone(parts: Parts, tmp_path: Path) -> None:
    damaged = shutil.copytree(parts.folder / "model", tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"no tensors")
    models = f"model.path={damaged},{parts.folder / 'model'}"
    bad, good = resolved(parts, models, f"results={tmp_path / 'runs'}")
    assert (bad.state, good.state) == ("failed", "to do")
    assert bad.failure is not None
    assert "cannot be read" in bad.failure
    assert not list(tmp_path.rglob("error.json")), "whoever only asks notes nothing"


def test_a_run_that_fails_where_it_is_made_is_noted_and_tried_again(
    parts: Parts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    # Only the process that makes the run can tell that there is no such device.
    assert run(monkeypatch, "-m", "device=cuda:99,cpu", *parts.words) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert [line.partition(": ")[0] for line in said.splitlines()[-2:]] == ["failed", "error"]
    (noted,) = tmp_path.rglob("error.json")
    assert "device=cuda:99" in json.loads(noted.read_text())["message"]
    assert run(monkeypatch, "-m", "device=cuda:99,cpu", *parts.words) == 1, "it is tried again"
    assert "2 runs, 1 new" in capfd.readouterr().err

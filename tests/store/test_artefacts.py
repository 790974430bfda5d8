"""The store: made once, published whole, checked when read, shared by threads and processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge_asr.errors import UserError
from edge_asr.store.__main__ import main
from edge_asr.store.artefacts import Step, Store
from edge_asr.store.files import parse_size, show_size

STEP = Step("quantize", {"weights": "abc", "version": 1})


def build(folder: Path, working: Path) -> Mapping[str, Any]:
    del working
    (folder / "model.bin").write_bytes(b"x" * 1000)
    return {"warnings": ["mind the gap"], "label": "a model"}


class Counting:
    """A build that counts how often it was asked, and may wait or fail."""

    def __init__(self, fail: int = 0, wait: threading.Event | None = None) -> None:
        self.calls, self._fail, self._wait = 0, fail, wait
        self.started = threading.Event()

    def __call__(self, folder: Path, working: Path) -> Mapping[str, Any]:
        self.calls += 1
        self.started.set()
        if self._wait is not None:
            assert self._wait.wait(30)
        if self.calls <= self._fail:
            raise UserError("no luck")
        return build(folder, working)


def test_a_step_is_made_once(tmp_path: Path) -> None:
    making = Counting()
    first = Store(tmp_path).make(STEP, making)
    second = Store(tmp_path).make(STEP, making)
    assert making.calls == 1
    assert second == first
    assert (first.folder / "model.bin").stat().st_size == 1000
    assert first.warnings == ("mind the gap",)
    assert first.seconds >= 0
    assert first.inputs == {"weights": "abc", "version": 1}
    assert Store(tmp_path).find(Step("quantize", {"weights": "abd", "version": 1})) is None
    assert Store(tmp_path).find(Step("transcribe", STEP.inputs)) is None


def test_again_makes_it_anew(tmp_path: Path) -> None:
    making = Counting()
    store = Store(tmp_path)
    store.make(STEP, making)
    store.make(STEP, making, again=True)
    assert making.calls == 2
    assert store.find(STEP) is not None


def test_a_failed_step_leaves_nothing_to_be_found_but_what_it_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def failing(folder: Path, working: Path) -> Mapping[str, Any]:
        (folder / "half").write_text("half")
        (working / "kept").write_text("kept")
        raise UserError("no luck")

    with pytest.raises(UserError, match="no luck"):
        store.make(STEP, failing)
    assert store.find(STEP) is None
    assert not list(tmp_path.rglob("half"))

    def going_on(folder: Path, working: Path) -> Mapping[str, Any]:
        assert (working / "kept").read_text() == "kept"
        return build(folder, working)

    store.make(STEP, going_on)
    assert not list(tmp_path.rglob("kept"))


@pytest.mark.parametrize("damage", ["change", "remove", "describe", "truncate"])
def test_a_damaged_artefact_is_made_again(tmp_path: Path, damage: str) -> None:
    making = Counting()
    store = Store(tmp_path)
    artefact = store.make(STEP, making)
    file, description = artefact.folder / "model.bin", artefact.folder / "artefact.json"
    if damage == "change":
        file.write_bytes(b"y" * 1000)
    elif damage == "remove":
        file.unlink()
    elif damage == "describe":
        description.write_text("{}")
    else:
        description.write_text(description.read_text()[:40])
    assert store.find(STEP) is None
    again = store.make(STEP, making)
    assert making.calls == 2
    assert (again.folder / "model.bin").read_bytes() == b"x" * 1000


def test_the_first_to_publish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that make the same thing without a lock, as on a file system that has none."""
    store = Store(tmp_path)
    monkeypatch.setattr("edge_asr.store.artefacts.FileLock.acquire", _no_locks)
    inner = Counting()

    def outer(folder: Path, working: Path) -> Mapping[str, Any]:
        del working
        store.make(STEP, inner)
        (folder / "model.bin").write_bytes(b"second")
        return {}

    artefact = store.make(STEP, outer)
    assert inner.calls == 1
    assert (artefact.folder / "model.bin").read_bytes() == b"x" * 1000
    assert not list((tmp_path / "temporary").iterdir())


def _no_locks(*_: object, **__: object) -> None:
    raise OSError("no locks here")


def test_what_a_removal_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artefact = store.make(STEP, build)
    (artefact.folder / "artefact.json").unlink()
    assert store.find(STEP) is None
    assert store.make(STEP, build).folder == artefact.folder


def test_one_makes_while_others_wait_and_hear_of_it(tmp_path: Path) -> None:
    gate, transcribed = threading.Event(), []
    making = Counting(wait=gate)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(Store(tmp_path).make, STEP, making)
        assert making.started.wait(10)
        others = [
            pool.submit(Store(tmp_path).make, STEP, making, on_wait=transcribed.append)
            for _ in range(2)
        ]
        deadline = time.monotonic() + 20
        while len(transcribed) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        gate.set()
        results = [one.result(timeout=20) for one in (first, *others)]
    assert making.calls == 1
    assert len(transcribed) == 2
    assert "another process is making quantize" in transcribed[0]
    assert len({one.folder for one in results}) == 1


def test_making_if_free_does_not_wait(tmp_path: Path) -> None:
    gate = threading.Event()
    making = Counting(wait=gate)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Store(tmp_path).make, STEP, making)
        assert making.started.wait(10)
        assert Store(tmp_path).make_if_free(STEP, making) is None
        gate.set()
        made = first.result(timeout=20)
    assert Store(tmp_path).make_if_free(STEP, making) == made
    assert making.calls == 1


def _hang(store: Path, ready: Any) -> None:
    def hanging(folder: Path, working: Path) -> Mapping[str, Any]:
        (folder / "half").write_text("half")
        (working / "kept").write_text("kept")
        ready.set()
        time.sleep(600)
        return {}

    Store(store).make(STEP, hanging)


def test_a_process_that_is_killed_holds_nobody_up(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hang, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = Store(tmp_path)
    assert store.find(STEP) is None
    kept = []

    def going_on(folder: Path, working: Path) -> Mapping[str, Any]:
        kept.append((working / "kept").read_text())
        return build(folder, working)

    assert store.make(STEP, going_on).key == STEP.key
    assert kept == ["kept"]
    # The half that the killed one had begun is swept up with everything unfinished.
    assert store.remove_unfinished() == len("half")


def steps(store: Store, count: int) -> list[Step]:
    made = [Step("quantize", {"number": number}) for number in range(count)]
    for number, step in enumerate(made):
        artefact = store.make(step, build)
        os.utime(artefact.folder / "artefact.json", (1000 + number, 1000 + number))
    return made


def test_pruning_takes_the_longest_unused_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = steps(store, 4)
    assert store.find(made[0]) is not None  # used just now
    sizes = [one.bytes for one in store.artefacts()]
    removed, freed = store.prune(sum(sizes[2:]), "quantize")
    assert removed == 2
    assert freed == sum(sizes[:2])
    assert [store.find(step) is not None for step in made] == [True, False, False, True]


def test_pruning_leaves_other_steps_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    steps(store, 2)
    other = Step("transcribe", {"number": 0})
    store.make(other, build)
    assert store.prune(0, "quantize")[0] == 2
    assert store.find(other) is not None


def test_a_store_that_cannot_be_written_to_is_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"store=/dev/null/store: cannot write there"):
        Store(Path("/dev/null/store")).check_writable()


def test_looking_writes_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").find(STEP) is None
    assert not (tmp_path / "none").exists()


def test_list_size_and_prune_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps(Store(tmp_path), 3)
    assert main(["list", "--store", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("quantize") >= 3
    assert "a model" in shown
    assert main(["size", "--store", str(tmp_path)]) == 0
    assert "quantize: 3 artefacts" in capsys.readouterr().out
    assert main(["prune", "--store", str(tmp_path), "--keep", "2KB"]) == 0
    assert "removed 2 artefacts" in capsys.readouterr().out
    assert main(["prune", "--store", str(tmp_path), "--step", "transcribe", "--keep", "0"]) == 0
    assert len(list(Store(tmp_path).artefacts())) == 1
    assert main(["prune", "--store", str(tmp_path), "--keep", "0"]) == 0
    assert not list(Store(tmp_path).artefacts())


def test_mistakes_on_the_command_line_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    (store / "quantize").mkdir(parents=True)
    for words, told in (
        (["list", "--store", str(tmp_path / "none")], "is no folder"),
        (["list", "--store", str(tmp_path)], "is no store"),
        (["prune", "--store", str(store), "--keep", "much"], "--keep=much"),
        (["prune", "--store", str(store)], "prune --keep 1GB"),
        (["size", "--store", str(store), "--keep", "1GB"], "goes with prune"),
        (["lst"], "invalid choice: 'lst'"),
        ([], "action"),
    ):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


@pytest.mark.parametrize(
    ("text", "size"), [("10GB", 10**10), ("1.5 kb", 1500), ("7", 7), ("2MB", 2 * 10**6)]
)
def test_sizes_are_read_and_shown(text: str, size: int) -> None:
    assert parse_size(text, "store_cap") == size
    assert parse_size(show_size(size), "store_cap") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 parsec", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="store_cap="):
        parse_size(text, "store_cap")


def test_a_description_is_plain_json(tmp_path: Path) -> None:
    artefact = Store(tmp_path).make(STEP, build)
    plain = json.loads((artefact.folder / "artefact.json").read_text())
    assert plain["key"] == STEP.key
    assert set(plain["files"]) == {"model.bin"}

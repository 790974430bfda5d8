"""Disks that are full or may not be written to, and what a kill leaves: named, and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from edge_asr.errors import UserError
from edge_asr.store.artefacts import Step, Store, read_artefact
from edge_asr.store.files import LEFTOVER, write_bytes_atomically, write_text_atomically
from edge_asr.store.fingerprint import Digests

STEP = Step("quantize", {"weights": "abc"})
LONG = "n" * 300


def build(folder: Path, working: Path) -> Mapping[str, Any]:
    del working
    (folder / "model.bin").write_bytes(b"x" * 1000)
    return {}


def left(folder: Path) -> list[str]:
    """Files below `folder` that are no locks."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(str(path.relative_to(folder)) for path in paths)


# In a process of its own with a limit on the size of files, which acts as a full disk does.
LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from edge_asr.store.artefacts import Step, Store
from edge_asr.store.files import write_bytes_atomically
folder = Path(sys.argv[1])

def build(target, working):
    (working / "kept").write_bytes(b"k" * 100)
    write_bytes_atomically(target / "model.bin", b"x" * 100_000)
    return {}

try:
    if sys.argv[2] == "file":
        write_bytes_atomically(folder / "record.json", b"x" * 100_000)
    else:
        Store(folder).make(Step("quantize", {"weights": "abc"}), build)
except OSError as error:
    print(type(error).__name__, error.filename)
"""


def limited(folder: Path, what: str) -> str:
    pytest.importorskip("resource")
    command = [sys.executable, "-c", LIMITED, str(folder), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_file_that_does_not_fit_is_named_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    assert limited(tmp_path, "file") == f"OSError {path}"
    assert path.read_text() == "old"
    assert left(tmp_path) == ["record.json"]


def test_a_step_that_does_not_fit_is_named_and_begun_again(tmp_path: Path) -> None:
    said = limited(tmp_path, "store")
    assert said.startswith("OSError ")
    assert said.endswith("model.bin")
    # Nothing half-written, but what the step goes on from; and nobody waits for its lock.
    assert left(tmp_path) == [f"unfinished/quantize-{STEP.key}/kept"]
    (lock,) = (tmp_path / "locks").iterdir()
    with FileLock(lock).acquire(timeout=0):
        pass
    artefact = Store(tmp_path).make(STEP, build)
    assert (artefact.folder / "model.bin").stat().st_size == 1000
    assert not list((tmp_path / "unfinished").iterdir())


def file_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    return path


UNWRITABLE: dict[str, Callable[[Path], Path]] = {
    "name too long": lambda folder: folder / LONG,
    "folder too long": lambda folder: folder / LONG / "a",
    "in a file": lambda folder: file_at(folder / "file") / "a",
    "in a file's folder": lambda folder: file_at(folder / "file") / "sub" / "a",
    "a folder": lambda folder: (folder / "a" / "b").parent,
    "kernel's": lambda _: Path("/proc/edge_asr/a"),
    "device": lambda _: Path("/dev/null/a"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    path = UNWRITABLE[name](tmp_path)
    if name == "a folder":
        path.mkdir()
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        write_bytes_atomically(path, b"content")
    assert caught.value.filename == str(path)
    assert not [one for one in left(tmp_path) if LEFTOVER in one]


@pytest.mark.parametrize("length", [1, 200, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path, length: int) -> None:
    write_text_atomically(tmp_path / ("n" * length), "content")
    assert left(tmp_path) == ["n" * length]


@pytest.mark.parametrize("where", ["", "quantize", "locks", "temporary", "unfinished"])
def test_a_file_in_place_of_a_store_is_named_before_the_work(tmp_path: Path, where: str) -> None:
    file = file_at(tmp_path / "store" / where if where else tmp_path / "store")
    made = []

    def counted(folder: Path, working: Path) -> Mapping[str, Any]:
        made.append(folder)
        return build(folder, working)

    with pytest.raises(OSError, match=r"\[Errno") as caught:
        Store(tmp_path / "store").make(STEP, counted)
    assert str(file) in str(caught.value.filename)
    assert not made
    assert file.read_text() == "in the way"


@pytest.mark.parametrize("name", ["a file", "in a file", "device", "kernel's", "name too long"])
def test_a_store_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    places = {"a file": file_at} | UNWRITABLE
    folder = places[name](tmp_path / "store" if name == "a file" else tmp_path)
    with pytest.raises(UserError, match=r"store=.*cannot write there .*store=FOLDER"):
        Store(folder).check_writable()


@pytest.mark.parametrize("kind", ["file", "link to nothing", "empty folder", "full folder"])
def test_what_lies_in_an_artefacts_place_is_no_obstacle(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "quantize" / STEP.key
    if kind == "file":
        file_at(place)
    elif kind == "link to nothing":
        place.parent.mkdir()
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir(parents=True)
        if kind == "full folder":
            file_at(place / "model.bin")
    assert Store(tmp_path).make(STEP, build).folder == place
    assert not list((tmp_path / "temporary").iterdir())


def test_a_file_in_place_of_digests_costs_only_the_reading(tmp_path: Path) -> None:
    digests = Digests(file_at(tmp_path / "digests"))
    clip = file_at(tmp_path / "clip")
    assert digests.of([clip], "sha256") == digests.of([clip], "sha256")


DESCRIPTIONS: dict[str, str] = {
    "nested": "[" * 100_000,
    "list": "[]",
    "torn": '{"step": "quan',
    "other program's": '{"name": "x"}',
    "files a list": '{"files": ["model.bin"]}',
    "notes null": '{"notes": null}',
    "a device": '{"files": {"/dev/zero": "0"}}',
    "climbing out": '{"files": {"../../x": "0"}}',
    "its own folder": '{"files": {"": "0"}}',
    "digest a number": '{"files": {"model.bin": 3}}',
    "changed digest": '{"files": {"model.bin": "0"}}',
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_an_artefact_that_is_described_wrongly_is_made_again(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    description = store.make(STEP, build).folder / "artefact.json"
    plain, change = json.loads(description.read_text()), DESCRIPTIONS[name]
    if change.startswith('{"files') or change.startswith('{"notes'):
        change = json.dumps(plain | json.loads(change))
    description.write_text(change)
    assert list(store.artefacts()) in ([], [read_artefact(description.parent)])
    assert store.find(STEP) is None
    assert store.make(STEP, build).files == plain["files"]


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", "null", '{"sha256:clip": 3}'])
def test_digests_that_cannot_be_read_are_made_again(tmp_path: Path, content: str) -> None:
    clip = file_at(tmp_path / "clip")
    right = Digests().of([clip], "sha256")
    digests = Digests(tmp_path / "digests")
    digests.of([clip], "sha256")
    (file,) = (tmp_path / "digests").iterdir()
    file.write_text(content)
    assert digests.of([clip], "sha256") == right


def test_what_a_killed_write_left_goes_with_a_later_one(tmp_path: Path) -> None:
    killed, going_on = (tmp_path / f".{name}{LEFTOVER}" for name in ("killed", "going-on"))
    for path in (killed, going_on):
        path.write_text("half")
    os.utime(killed, (1, 1))
    write_text_atomically(tmp_path / "record.json", "whole")
    assert left(tmp_path) == [going_on.name, "record.json"]


def test_removing_what_is_unfinished_takes_it_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.make(STEP, build)
    for folder in (tmp_path, tmp_path / "digests"):
        file_at(folder / f".killed{LEFTOVER}")
    before = left(tmp_path / "quantize")
    store.remove_unfinished()
    assert left(tmp_path) == [f"quantize/{name}" for name in before]

"""The store: one folder for every finished step, named by the fingerprint of its inputs.

An artefact is made in a temporary folder and renamed into place, so nobody ever sees half of one;
of two processes that make the same, the first to publish wins. Locks only save work: where a file
system has none, the same thing is made twice. An artefact's files are checked against their own
digests whenever it is read. The store is disposable; a run folder holds its own copy of results.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edge_asr.errors import UserError
from edge_asr.memory import peak_memory_bytes, reset_peak_memory
from edge_asr.store.files import LEFTOVER, remove_leftovers, write_text_atomically
from edge_asr.store.fingerprint import Digests, canonical, file_sha256, fingerprint

log = logging.getLogger(__name__)
MANIFEST = "artefact.json"
WAIT_SECONDS = 0.5
TELL_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class Step:
    """A step of a run and what makes its key.

    Attributes:
        name: `calibrate`, `quantize`, `transcribe`.
        inputs: Everything that can change what it makes, JSON values; keys of steps before it
            among them.
    """

    name: str
    inputs: Mapping[str, Any]

    @property
    def key(self) -> str:
        return fingerprint({"step": self.name, **self.inputs})


@dataclass(frozen=True)
class Artefact:
    """What a step has made.

    Attributes:
        folder: Its files.
        step, key: Which step, under which key.
        seconds: How long it took.
        peak_memory_bytes: Resident memory at most while it was made, or None.
        notes: What the step says about it, JSON values; `warnings` among them.
        files: SHA-256 of every file.
        inputs: What its key was made of.
        created: When, in UTC.
    """

    folder: Path
    step: str
    key: str
    seconds: float
    peak_memory_bytes: int | None
    notes: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        return sum(
            (self.folder / name).stat().st_size
            for name in (*self.files, MANIFEST)
            if (self.folder / name).exists()
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the record."""
        return tuple(self.notes.get("warnings", ()))


# Makes an artefact's files in the first folder and returns its notes; the second folder outlives a
# kill and holds whatever lets the step go on.
Build = Callable[[Path, Path], Mapping[str, Any]]


class Store:
    """A store folder, shared by processes and machines; it need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests_folder = folder / "digests"
        self.digests = Digests(self.digests_folder)

    def check_writable(self) -> None:
        """Raises UserError where the folder cannot be made or written to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".{uuid.uuid4().hex}{LEFTOVER}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"store={self.folder}: cannot write there ({error.strerror}); give a folder you "
                "may write to, store=FOLDER"
            ) from error

    def find(self, step: Step) -> Artefact | None:
        """The finished artefact of `step`; one that is damaged is removed and counts as missing."""
        folder = self._place(step)
        if not (folder / MANIFEST).is_file():
            return None
        artefact = read_artefact(folder)
        problem = "its description cannot be read" if artefact is None else _damage(artefact)
        if artefact is None or problem:
            log.warning("%s %s is damaged (%s) and is made again", step.name, step.key, problem)
            _remove(folder)
            return None
        with suppress(OSError):
            os.utime(folder / MANIFEST)  # when it was last used, for `prune`
        # Left by a kill between publishing and tidying up.
        shutil.rmtree(self._working(step), ignore_errors=True)
        return artefact

    def find_key(self, name: str, key: str) -> Artefact | None:
        """The finished artefact that a record names; None where it is gone or damaged."""
        folder = self.folder / name / key
        if not (folder / MANIFEST).is_file():
            return None
        artefact = read_artefact(folder)
        return None if artefact is None or _damage(artefact) else artefact

    def holds(self, step: Step) -> bool:
        """Whether an artefact of `step` is there, at a glance: it may turn out to be damaged."""
        return (self._place(step) / MANIFEST).is_file()

    def has_begun(self, step: Step) -> bool:
        """Whether `step` is being made, or was cut short and has left something to go on from."""
        return self._working(step).is_dir()

    def make(
        self,
        step: Step,
        build: Build,
        *,
        again: bool = False,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> Artefact:
        """The artefact of `step`, made by `build` unless it is there.

        A process that is making it already is waited for.

        Args:
            step: Which one.
            build: Makes it.
            again: Make it even if it is there.
            on_wait: Hears now and then that and for what it waits.
        """
        if not again and (found := self.find(step)):
            return found
        waiting = f"another process is making {step.name} {step.key[:12]}"
        with self._locked(step, lambda: self.find(step) is not None, on_wait, waiting):
            if not again and (found := self.find(step)):
                return found
            return self._build(step, build, replace=again)

    def make_if_free(self, step: Step, build: Build) -> Artefact | None:
        """The same, but None, at once, while another process is making it."""
        if found := self.find(step):
            return found
        lock = FileLock(self._lock_path(step))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except OSError:  # a file system without locks
            return self.find(step) or self._build(step, build, replace=False)
        try:
            return self.find(step) or self._build(step, build, replace=False)
        finally:
            lock.release()

    def artefacts(self) -> Iterator[Artefact]:
        """Every finished artefact, the longest unused first; not checked against its digests."""
        folders = [path.parent for path in self.folder.glob(f"*/*/{MANIFEST}")]
        aged = []
        for folder in folders:
            with suppress(OSError):
                aged.append(((folder / MANIFEST).stat().st_mtime, folder))
        for _, folder in sorted(aged):
            artefact = read_artefact(folder)
            if artefact is not None:
                yield artefact

    def prune(self, keep_bytes: int, step: str | None = None) -> tuple[int, int]:
        """Remove the longest unused artefacts (of one step) until at most `keep_bytes` are left.

        Returns how many were removed, and the bytes that this frees.
        """
        sizes = {one.folder: one.bytes for one in self.artefacts() if step in (None, one.step)}
        total, before = sum(sizes.values()), len(sizes)
        freed = 0
        for folder, size in list(sizes.items()):
            if total - freed <= keep_bytes:
                break
            freed += size
            del sizes[folder]
            _remove(folder)
        return before - len(sizes), freed

    def remove_unfinished(self) -> int:
        """Remove what interrupted steps have left to go on from; the bytes that this frees."""
        freed = 0
        for name in ("unfinished", "temporary"):
            folder = self.folder / name
            freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.folder, self.digests_folder):
            remove_leftovers(folder, seconds=0)
        return freed

    def _build(self, step: Step, build: Build, *, replace: bool) -> Artefact:
        working = self._working(step)
        if replace:
            shutil.rmtree(working, ignore_errors=True)
        temporary = self.folder / "temporary" / uuid.uuid4().hex
        working.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(parents=True)
        # Before the work, so that a file in its place does not cost it.
        self._place(step).parent.mkdir(parents=True, exist_ok=True)
        try:
            reset_peak_memory()
            began = time.perf_counter()
            notes = build(temporary, working)
            made = Artefact(
                folder=temporary,
                step=step.name,
                key=step.key,
                seconds=time.perf_counter() - began,
                peak_memory_bytes=peak_memory_bytes(),
                notes=notes,
                files={
                    path.name: file_sha256(path)
                    for path in sorted(temporary.iterdir())
                    if path.is_file()
                },
                inputs=canonical(step.inputs),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            plain = asdict(made)
            del plain["folder"]
            write_text_atomically(temporary / MANIFEST, json.dumps(plain, indent=1) + "\n")
            if replace:
                _remove(self._place(step))
            self._publish(temporary, self._place(step))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        found = self.find(step)
        if found is None:
            raise UserError(f"store={self.folder}: {step.name} {step.key} vanished; run it again")
        return found

    def _publish(self, temporary: Path, place: Path) -> None:
        try:
            temporary.rename(place)
        except OSError:
            # The first to publish wins.
            if not (place / MANIFEST).is_file():
                # What a removal that was interrupted has left there, or no folder at all.
                _remove(place)
                temporary.rename(place)

    def _place(self, step: Step) -> Path:
        return self.folder / step.name / step.key

    def _working(self, step: Step) -> Path:
        return self.folder / "unfinished" / f"{step.name}-{step.key}"

    def _lock_path(self, step: Step) -> Path:
        path = self.folder / "locks" / f"{step.name}-{step.key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def _locked(
        self,
        step: Step,
        done: Callable[[], bool],
        on_wait: Callable[[str], None],
        waiting: str,
    ) -> Iterator[None]:
        """Hold the lock of `step`, or go on without it once another process is `done`."""
        lock = FileLock(self._lock_path(step))
        told = -TELL_EVERY_SECONDS
        while True:
            try:
                lock.acquire(timeout=WAIT_SECONDS)
                break
            except Timeout:
                if time.monotonic() - told >= TELL_EVERY_SECONDS:
                    told = time.monotonic()
                    on_wait(waiting)
                if done():
                    break
            except OSError as error:
                log.debug("no lock for %s: %s", step.name, error)
                break
        try:
            yield
        finally:
            lock.release()


def read_artefact(folder: Path) -> Artefact | None:
    """The artefact in `folder` as it describes itself, or None where that cannot be read."""
    try:
        plain = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        artefact = Artefact(folder=folder, **plain)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    # Its files are its own: another name may be that of a device, which never ends.
    own = isinstance(artefact.files, dict) and all(
        isinstance(digest, str) and Path(name).name == name
        for name, digest in artefact.files.items()
    )
    return artefact if own and isinstance(artefact.notes, dict) else None


def _damage(artefact: Artefact) -> str | None:
    """Which file is not as it was written, if one is not."""
    for name, digest in artefact.files.items():
        try:
            if file_sha256(artefact.folder / name) != digest:
                return f"{name} has changed"
        except OSError:
            return f"{name} is missing"
    return None


def _remove(folder: Path) -> None:
    """Remove a folder so that nobody finds half of it: its description goes first. A file in its
    place goes as well."""
    with suppress(OSError):
        (folder / MANIFEST).unlink(missing_ok=True)
    with suppress(OSError):
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)

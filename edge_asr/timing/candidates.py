"""What is measured: exported folders, and what each is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import edge_asr.export.formats
import edge_asr.runtimes
from edge_asr.errors import UserError
from edge_asr.export.exported import CONFIG, Export, difference, read_export
from edge_asr.export.write import write_whole
from edge_asr.models.decoding import Decoding, Dtype
from edge_asr.models.files import EMBEDDED, PROCESSING_FILES, CheckpointFiles, find_files
from edge_asr.models.loading import load_checkpoint
from edge_asr.registry import import_modules, load_plugins
from edge_asr.runtimes.base import runtimes
from edge_asr.runtimes.file_runtime import FileRuntime
from edge_asr.settings import build, nearest
from edge_asr.store.fingerprint import file_sha256
from edge_asr.timing import faster_whisper
from edge_asr.timing.results import Candidate

import_modules("edge_asr.runtimes", edge_asr.runtimes.__path__)

TORCH = "torch"
FLOAT = "float"
TORCH_DTYPES: dict[str, Dtype] = {"torch": "float32", "torch_bf16": "bfloat16"}
AGAINST = (FLOAT, *TORCH_DTYPES, faster_whisper.NAME)
NOTHING = "none"


def file_runtime(name: str) -> type[FileRuntime]:
    """What runs files, by its name. Raises UserError for an unknown one."""
    if name == faster_whisper.NAME:
        return faster_whisper.FasterWhisper
    found = runtimes[name]
    if not issubclass(found, FileRuntime):
        raise UserError(f"runtime={name}: runs no files that were exported; times are of files")
    return found


def runtime_of(export: Export, folder: Path) -> str:
    """The name of what runs a folder.

    Raises UserError where nothing here does, or it lacks a package.
    """
    load_plugins()
    for name in runtimes:
        if export.target in (runtimes[name].targets or ()):
            file_runtime(name).require()
            return name
    known = sorted({one for name in runtimes for one in runtimes[name].targets or ()})
    raise UserError(
        f"{folder}: is exported for {export.target}, which no runtime here runs; give a folder "
        f"exported for {', '.join(known)}"
    )


@dataclass(frozen=True)
class Comparison:
    """What exported folders are compared with.

    Attributes:
        names: Some of `AGAINST`; None: all that are installed and make sense.
        checkpoints: Float checkpoints that were named.
        working: Folder for models that are written only to be measured.
        left_out: What is not compared with, and why; grows.
    """

    names: tuple[str, ...] | None
    checkpoints: tuple[CheckpointFiles, ...]
    working: Path
    left_out: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        return name in (AGAINST if self.names is None else self.names)


def parse_against(text: str | None) -> tuple[str, ...] | None:
    """`torch,float` as names. Raises UserError for an unknown one or a missing package."""
    if text is None:
        return None
    names = [one.strip() for one in text.split(",")]
    if names == [NOTHING]:
        return ()
    for name in names:
        if name not in AGAINST:
            raise UserError(f"--against={name}: {nearest(name, (*AGAINST, NOTHING))}")
    if faster_whisper.NAME in names:
        faster_whisper.require_faster_whisper()
    return tuple(dict.fromkeys(names))


def candidates(folders: Sequence[Path], comparison: Comparison) -> tuple[Candidate, ...]:
    """The exported folders, then what they are compared with, nothing twice.

    Raises UserError for a folder that is no export or that nothing runs, or a checkpoint that is
    none of theirs.
    """
    exports = {folder: read_export(folder) for folder in folders}
    runtimes_of = {folder: runtime_of(export, folder) for folder, export in exports.items()}
    found = [
        Candidate(
            name, runtimes_of[folder], export.formats, str(folder), export.bytes,
            {name: one.sha256 for name, one in export.files.items()},
        )
        for (folder, export), name in zip(exports.items(), names_of(list(exports)), strict=True)
    ]  # fmt: skip
    others: dict[tuple[str, ...], Candidate] = {}
    for folder, export in exports.items():
        files = float_checkpoint(export, folder, comparison)
        if files is not None:
            for one in against(export, folder, runtimes_of[folder], files, comparison):
                others.setdefault((one.runtime, one.formats, str(files.folder)), one)
    return _unique([*found, *others.values()])


def _unique(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The same with a number behind a name that another has."""
    names: list[str] = []
    for one in found:
        tries = (f"{one.name} ({index})" if index else one.name for index in count())
        names.append(next(name for name in tries if name not in names))
    return tuple(replace(one, name=name) for one, name in zip(found, names, strict=True))


def names_of(folders: Sequence[Path]) -> list[str]:
    """Their last parts, where these differ, or else the whole paths."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def float_checkpoint(
    export: Export, folder: Path, comparison: Comparison
) -> CheckpointFiles | None:
    """The float model of what was exported; None where there is none to compare with.

    Raises UserError where it is none of those that were named.
    """
    if comparison.names == ():
        return None
    if not comparison.checkpoints:
        here = export.source in EMBEDDED or Path(export.source).is_dir()
        files = find_files(export.source) if here else None
        reason = f"{folder}: its float model {export.source!r} is not here"
        if files is not None:
            problem = difference(export, files)
            if problem is None:
                return files
            reason = f"{folder}: {export.source!r} is not what it was made of, {problem}"
        if comparison.names is not None:
            raise UserError(f"{reason}; name it with --checkpoint, or set --against=none")
        comparison.left_out.append(f"{reason}; name it with --checkpoint to compare with it")
        return None
    differing = [difference(export, files) for files in comparison.checkpoints]
    if None not in differing:
        raise UserError(
            f"--checkpoint={comparison.checkpoints[0].reference}: is not what {folder} was made "
            f"of, {differing[0]}; give the checkpoint of {export.checkpoint}"
        )
    return comparison.checkpoints[differing.index(None)]


def against(
    export: Export, folder: Path, runtime: str, files: CheckpointFiles, comparison: Comparison
) -> Iterator[Candidate]:
    """What one folder is compared with."""
    if comparison.has(FLOAT):
        try:
            yield _float(export, runtime, files, comparison.working)
        except UserError as error:
            comparison.left_out.append(f"{FLOAT}: {error}")
    paths = [*files.weights, *(files.folder / one for one in (CONFIG, *PROCESSING_FILES))]
    for name, dtype in TORCH_DTYPES.items():
        if comparison.has(name):
            yield _candidate(
                f"{export.checkpoint} {dtype}", TORCH, dtype, folder, files.folder, paths, dtype
            )
    if comparison.has(faster_whisper.NAME):
        if export.family not in faster_whisper.FAMILIES:
            said = f"{faster_whisper.NAME}: knows Whisper only, not {export.checkpoint}"
            comparison.left_out.append(said)
            return
        try:
            faster_whisper.require_faster_whisper()
        except UserError as error:
            comparison.left_out.append(str(error))
        else:
            yield _faster_whisper(export, folder, files, comparison.working)


def _float(export: Export, runtime: str, files: CheckpointFiles, working: Path) -> Candidate:
    """The float model in the same runtime. Raises UserError where its exporter writes none."""
    folder = working / f"float-{runtime}-{files.weights_fingerprint[:12]}"
    if not folder.exists():
        checkpoint = load_checkpoint(
            files,
            name=export.checkpoint,
            tokens_per_second=export.tokens_per_second,
            decoding=build(Decoding, export.decode, Decoding.option()),
        )
        write_whole(checkpoint, export.target, folder)
    written = read_export(folder)
    hashes = {name: one.sha256 for name, one in written.files.items()}
    name = f"{export.checkpoint} float"
    return Candidate(name, runtime, written.formats, str(folder), written.bytes, hashes)


def _faster_whisper(
    export: Export, folder: Path, files: CheckpointFiles, working: Path
) -> Candidate:
    made = working / f"{faster_whisper.NAME}-{files.weights_fingerprint[:12]}"
    if not made.exists():
        faster_whisper.convert(files, made)
    name = f"{export.checkpoint} int8"
    return _candidate(name, faster_whisper.NAME, "int8", folder, made, sorted(made.iterdir()))


def _candidate(
    name: str, runtime: str, formats: str, exported: Path, weights: Path, paths: Sequence[Path],
    dtype: Dtype = "float32",
) -> Candidate:  # fmt: skip
    there = [path for path in paths if path.is_file()]
    return Candidate(
        name, runtime, formats, str(exported), sum(path.stat().st_size for path in there),
        {path.name: file_sha256(path) for path in there}, str(weights), dtype,
    )  # fmt: skip

"""Where the rows of a published data set lie: a repository on the hub, or a folder laid out so.

`datasets` says which files make up a split (the `configs` of the README, or names of folders and
files). Shards of Parquet are then read here, by row group, and so are folders of audio, by their
table of metadata; what else it knows (JSON, CSV, what `save_to_disk` wrote) becomes an Arrow table.
"""

from __future__ import annotations

import glob
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from edge_asr.data.audio_folder import audio_folder_table
from edge_asr.data.hub_errors import CONNECTION_ERRORS, explained
from edge_asr.data.parquet import REMOTE, ParquetRows
from edge_asr.data.rows import ArrowRows, Rows
from edge_asr.errors import UserError
from edge_asr.settings import nearest

log = logging.getLogger(__name__)

# Formats of `datasets` that are read, beside Parquet; others may hold code, or no audio.
TABLES = ("arrow", "csv", "json")
AUDIO_FOLDER = "audiofolder"
# What shards of a split are called where no README says it: inside the configuration's folder.
SHARDS = ("{split}-[0-9]*.parquet", "{split}.parquet", "{split}/*.parquet")


@dataclass(frozen=True)
class Place:
    """A split of a published data set, as a user names it.

    Attributes:
        path: `owner/name` on the hub, or a folder of the same layout.
        config: One of its configurations; None where it has only one.
        split: One of its splits.
        revision: Branch, tag or commit; None for the newest.
        streaming: Fetch only the rows that are needed, and keep none, where it is on the hub.
    """

    path: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class Found:
    """A place that was found.

    Attributes:
        place: Of it, with the configuration and, if it was published, the commit resolved.
        root: Its folder, or where it lies on the hub (`hf://...` at a commit).
        published: Whether `place.revision` is a commit on the hub.
        asked: The revision as it was asked for.
    """

    place: Place
    root: str
    published: bool = False
    asked: str | None = None

    @property
    def remote(self) -> bool:
        return self.root.startswith(REMOTE)

    def file(self, name: str) -> Path | bytes:
        """A file of the repository or folder, fetched if need be.

        Raises FileNotFoundError where there is none, and the hub's errors.
        """
        if self.published and (".." in PurePosixPath(name).parts or name.startswith("/")):
            raise FileNotFoundError(f"{name} lies outside of the data set")
        if not self.remote:
            return Path(self.root) / name
        try:
            if self.place.streaming:
                return bytes(fsspec.open(f"{self.root}/{name}", "rb").open().read())
            return Path(_download(self.place, name))
        except LocalEntryNotFoundError:  # which says that there is no network
            raise
        except EntryNotFoundError as error:
            raise FileNotFoundError(f"{name} is not in the data set") from error


def open_rows(place: Place, sampled: bool = False) -> tuple[Found, Rows]:
    """Find a split and open its rows.

    Args:
        place: The split.
        sampled: Only some rows will be read, so that nothing is fetched as a whole for them.

    Raises:
        UserError: for whatever is not there, may not be read, or cannot be.
    """
    found = _find(place)
    with explained(place.path, place.revision):
        saved = _saved_split(found)
        if saved is not None:
            from datasets import Dataset

            return found, _arrow_rows(found, Dataset.load_from_disk(str(saved)))
        config, files, builder = _split(found)
        found = replace(found, place=replace(found.place, config=config))
        if builder is None or builder.name == "parquet":
            return found, ParquetRows(_fetched(found, files, sampled))
        if builder.name == AUDIO_FOLDER:
            names = [_name_in(found, file) for file in files]
            return found, ArrowRows(audio_folder_table(place.path, names, found.file), place.split)
        if builder.name not in TABLES:
            raise UserError(
                f"data set {place.path!r} is of the format {builder.name}, which is not read; "
                f"known are parquet, {AUDIO_FOLDER}, {', '.join(TABLES)}"
            )
        if found.remote and place.streaming:
            raise UserError(
                f"data set {place.path!r} is of the format {builder.name}; only Parquet and "
                "folders of audio can be streamed, so leave out streaming=true"
            )
        builder.download_and_prepare()
        return found, _arrow_rows(found, builder.as_dataset(split=place.split))


def _find(place: Place) -> Found:
    """The folder or the commit. Raises UserError for what is neither here nor on the hub."""
    folder = Path(place.path).expanduser()
    if folder.is_dir():
        return Found(replace(place, revision=None), str(folder.resolve()))
    if place.path.count("/") != 1 or place.path.startswith((".", "/", "~")):
        raise UserError(
            f"data set {place.path!r} is no folder here, and no id of the hub of the form "
            "owner/name"
        )
    with explained(place.path, place.revision):
        try:
            commit = HfApi().dataset_info(place.path, revision=place.revision).sha
        except CONNECTION_ERRORS as error:
            # What was fetched before can do without the hub.
            try:
                cached = Path(_snapshot(place, place.revision, ["README.md"], here=True))
            except (OSError, ValueError):
                raise error from None
            commit, root = cached.name, str(cached.resolve())
            return Found(replace(place, revision=commit), root, True, place.revision)
    root = f"{REMOTE}datasets/{place.path}@{commit}"
    return Found(replace(place, revision=commit), root, True, place.revision)


def _split(found: Found) -> tuple[str, list[str], Any]:
    """The configuration's name, the files of the split, and the builder of `datasets` for them,
    or None for Parquet shards that were found by their names alone."""
    from datasets import load_dataset_builder

    place = found.place
    missing = f"no file of the split {place.split!r}"
    in_cache = found.published and not found.remote
    where = {"path": found.root}
    if found.remote:
        where = {"path": place.path, "revision": str(place.revision)}
    try:
        builder = load_dataset_builder(name=place.config, **where)
    except (ValueError, FileNotFoundError) as error:
        named = _shards_by_name(found)
        if named:
            return place.config or "default", named, None
        if in_cache:  # where the files of other parts may be missing too
            raise LocalEntryNotFoundError(missing) from error
        inner = Path(found.root) / str(place.config)
        if place.config and not found.remote and inner.is_dir():
            return place.config, *_split(_inside(found, inner))[1:]
        _check_config(found, where)
        raise
    config = str(builder.config.name)
    splits = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
    if splits.get(place.split):
        return config, splits[place.split], builder
    named = _shards_by_name(found)
    if named:
        return config, named, None
    if place.split not in splits:
        raise UserError(
            f"data set {place.path!r} has no split {place.split!r} in {config}; "
            f"{nearest(place.split, splits)}"
        )
    if in_cache:
        raise LocalEntryNotFoundError(missing)
    raise FileNotFoundError(f"{missing} that the README names for {config}")


def _inside(found: Found, folder: Path) -> Found:
    return replace(found, root=str(folder), place=replace(found.place, config=None))


def _check_config(found: Found, where: dict[str, str]) -> None:
    """Raises UserError where the data set has configurations and the one asked for is none."""
    from datasets import get_dataset_config_names

    place = found.place
    known = get_dataset_config_names(**where)
    if place.config is None and len(known) > 1:
        raise UserError(
            f"data set {place.path!r} has several configurations; give config as one of "
            f"{', '.join(sorted(known))}"
        )
    if place.config is not None and place.config not in known:
        raise UserError(
            f"data set {place.path!r} has no config {place.config!r}; "
            f"{nearest(place.config, known)}"
        )


def _shards_by_name(found: Found) -> list[str]:
    """Parquet shards that folders and names put into the split, where no README does."""
    place = found.place
    files, base = fsspec.core.url_to_fs(found.root)
    for folder in [place.config] if place.config else ["", "data"]:
        for pattern in SHARDS:
            inside = str(PurePosixPath(folder, pattern.format(split=glob.escape(place.split))))
            shards = sorted(map(str, files.glob(f"{glob.escape(base)}/{inside}")))
            if shards:
                return [f"{REMOTE}{one}" for one in shards] if found.remote else shards
    return []


def _fetched(found: Found, files: Sequence[str], sampled: bool) -> list[str]:
    """Where to read the shards: on the hub, in the cache, or in their folder."""
    place = found.place
    if not found.remote:
        if found.published:  # which may have been fetched in part only: ask by names like these
            names = [_name_in(found, one) for one in files]
            alike = {re.sub(r"\d+", "*", name) for name in names}
            _snapshot(place, place.revision, sorted(alike), here=True)
        return list(files)
    names = [_name_in(found, one) for one in files]
    if place.streaming:
        return list(files)
    if sampled:
        return [
            cached if isinstance(cached := _cached(place, name), str) else file
            for name, file in zip(names, files, strict=True)
        ]
    log.info("fetching %d files of %s (%s, %s)", len(names), place.path, place.config, place.split)
    wanted = [*map(glob.escape, names), "README.md"]
    folder = _snapshot(place, found.asked, wanted)
    if Path(folder).name != place.revision:  # a branch that moved in this minute
        folder = _snapshot(place, place.revision, wanted)
    return [str(Path(folder, name)) for name in names]


def _name_in(found: Found, file: str) -> str:
    """A file's name inside the repository or folder."""
    return file.removeprefix(f"{found.root}/")


def _snapshot(
    place: Place, revision: str | None, patterns: Sequence[str], here: bool = False
) -> str:
    """The folder of the hub's cache that holds those files of a revision."""
    return str(
        snapshot_download(
            place.path,
            repo_type="dataset",
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=here,
        )
    )


def _cached(place: Place, name: str) -> Any:
    return try_to_load_from_cache(place.path, name, revision=place.revision, repo_type="dataset")


def _download(place: Place, name: str) -> str:
    return str(hf_hub_download(place.path, name, revision=place.revision, repo_type="dataset"))


def _saved_split(found: Found) -> Path | None:
    """The folder that `save_to_disk` wrote for the split, if it was that. Raises UserError for a
    split that is not in it."""
    place = found.place
    folders = [Path(found.root)] + ([Path(found.root, place.config)] if place.config else [])
    for folder in [] if found.remote else folders:
        splits: list[str] = []
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        elif (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
            only = json.loads((folder / "state.json").read_text()).get("_split")
            if only in (None, place.split):
                return folder
            splits = [only]
        if place.split in splits:
            return folder / place.split
        if splits:
            raise UserError(
                f"data set {place.path!r} has no split {place.split!r}; "
                f"{nearest(place.split, splits)}"
            )
    return None


def _arrow_rows(found: Found, dataset: Any) -> ArrowRows:
    files = [Path(one["filename"]) for one in dataset.cache_files]
    return ArrowRows(dataset.data.table, found.place.split, files)

"""Folders laid out like the leaderboard's repositories, made of embedded clips."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from make_leaderboard_copy import leaderboard_rows, write_readme, write_split

from edge_asr.models.files import embedded_folder

MANIFEST = embedded_folder("test.jsonl")
# Configuration, split, condition of the embedded clips, and how many of them.
PARTS = (
    ("librispeech", "test.clean", "clean", 11),
    ("librispeech", "test.other", "noisy", 24),
    ("common_voice", "test", "noisy", 10),
)


def clips(condition: str, count: int) -> list[dict[str, Any]]:
    """Rows of the leaderboard's columns; shuffled ids, so that order is the file's."""
    rows = leaderboard_rows(MANIFEST, {"condition": condition}, "embedded")[:count]
    return [row | {"id": f"clip-{number * 7 % count:04d}"} for number, row in enumerate(rows)]


def make_copy(folder: Path, *, readme: bool = True) -> Path:
    """All parts: three shards each, row groups of three rows."""
    for config, split, condition, count in PARTS:
        write_split(folder / config, split, clips(condition, count), shards=3, group_rows=3)
    if readme:
        write_readme(folder, [(config, split) for config, split, _, _ in PARTS])
    return folder


def make_audiofolder(folder: Path, rows: list[dict[str, Any]], split: str = "test") -> Path:
    """The same rows as audio files and a table beside them."""
    inside = folder / split
    inside.mkdir(parents=True)
    with (inside / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "id", "text"])
        for number, row in enumerate(rows):
            name = f"{number:04d}.opus"
            (inside / name).write_bytes(row["audio"]["bytes"])
            table.writerow([name, row["id"], row["text"]])
    return folder

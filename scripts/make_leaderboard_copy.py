"""Make a folder that is laid out like a repository of the open ASR leaderboard, from a manifest.

    python scripts/make_leaderboard_copy.py MANIFEST OUT librispeech/test.other:set=NAME ...

Every part is CONFIG/SPLIT:FIELD=VALUE, the rows of the manifest whose FIELD is VALUE. Clips keep
their bytes. `data=hf data.path=OUT data.config=CONFIG` reads the copy as it would the repository,
and so do the leaderboard's own names: `data=librispeech_other data.path=OUT`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from edge_asr.data.manifest import ManifestCorpus

# As `Dataset.push_to_hub` writes it: columns of the leaderboard's repositories, 2024-07.
FEATURES = {
    "audio": {"sampling_rate": 16000, "_type": "Audio"},
    "dataset": {"dtype": "string", "_type": "Value"},
    "text": {"dtype": "string", "_type": "Value"},
    "id": {"dtype": "string", "_type": "Value"},
    "audio_length_s": {"dtype": "float64", "_type": "Value"},
}
SCHEMA = pa.schema(
    {
        "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "dataset": pa.string(),
        "text": pa.string(),
        "id": pa.string(),
        "audio_length_s": pa.float64(),
    },
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


def leaderboard_rows(manifest: Path, where: Mapping[str, str], name: str) -> list[dict[str, Any]]:
    """Rows of the leaderboard's columns from those of a manifest."""
    rows = []
    for row in ManifestCorpus(manifest, where=where).rows:
        file = manifest.parent / row.audio
        rows.append(
            {
                "audio": {"bytes": file.read_bytes(), "path": file.name},
                "dataset": name,
                "text": row.text,
                "id": row.id,
                "audio_length_s": soundfile.info(file).duration,
            }
        )
    return rows


def write_split(
    folder: Path,
    split: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    shards: int = 1,
    group_rows: int = 100,
    schema: pa.Schema = SCHEMA,
) -> list[Path]:
    """Write the shards of a split, in order; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(shards):
        start, end = (len(rows) * one // shards for one in (number, number + 1))
        path = folder / f"{split}-{number:05d}-of-{shards:05d}.parquet"
        table = pa.Table.from_pylist(list(rows[start:end]), schema=schema)
        pq.write_table(table, path, row_group_size=group_rows)
        paths.append(path)
    return paths


def write_readme(out: Path, parts: Sequence[tuple[str, str]]) -> None:
    """The README whose `configs` say which files make up a split."""
    lines = ["---", "configs:"]
    for config in dict.fromkeys(config for config, _ in parts):
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in (split for one, split in parts if one == config):
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (out / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="+", metavar="CONFIG/SPLIT:FIELD=VALUE")
    parser.add_argument("--shards", type=int, default=2, help="shards of every split")
    parser.add_argument("--group-rows", type=int, default=100, help="rows of a row group")
    arguments = parser.parse_args()
    parts = []
    for part in arguments.parts:
        place, _, condition = part.partition(":")
        config, _, split = place.partition("/")
        field, _, value = condition.partition("=")
        if not (config and split and field and value):
            parser.error(f"{part}: is not of the form CONFIG/SPLIT:FIELD=VALUE")
        rows = leaderboard_rows(arguments.manifest, {field: value}, config)
        write_split(
            arguments.out / config, split, rows,
            shards=arguments.shards, group_rows=arguments.group_rows,
        )  # fmt: skip
        parts.append((config, split))
        print(f"{config}/{split}: {len(rows)} clips")
    write_readme(arguments.out, parts)


if __name__ == "__main__":
    main()

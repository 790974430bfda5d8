"""The script that makes a folder like the leaderboard's repositories."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from edge_asr.data.manifest import ManifestCorpus
from edge_asr.models.files import embedded_folder

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "make_leaderboard_copy.py"
    return subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)


def test_a_copy_holds_the_rows_of_the_manifest(tmp_path: Path) -> None:
    manifest = embedded_folder("test.jsonl")
    speaker = ManifestCorpus(manifest).rows[0].metadata["speaker"]
    rows = ManifestCorpus(manifest, where={"speaker": speaker}).rows
    done = run(str(manifest), str(tmp_path), f"ami/test:speaker={speaker}", "--group-rows", "2")
    assert done.stdout == f"ami/test: {len(rows)} clips\n", done.stderr
    shards = sorted((tmp_path / "ami").iterdir())
    assert [one.name for one in shards] == [f"test-0000{one}-of-00002.parquet" for one in (0, 1)]
    found = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert [(row["id"], row["text"]) for row in found] == [(row.id, row.text) for row in rows]
    assert found[0]["audio"]["bytes"] == (manifest.parent / rows[0].audio).read_bytes()
    assert "path: ami/test-*" in (tmp_path / "README.md").read_text()


def test_a_part_of_another_form_is_refused(tmp_path: Path) -> None:
    done = run(str(embedded_folder("test.jsonl")), str(tmp_path), "ami")
    assert done.returncode == 2
    assert "CONFIG/SPLIT:FIELD=VALUE" in done.stderr

"""Corpora and the JSON-lines manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny import tone

from edge_asr.data.corpus import Corpus, DamagedClip, IndexedCorpus, Utterance
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.data.selection import chosen_rows
from edge_asr.errors import UserError


def write(folder: Path, *rows: dict[str, Any] | str) -> Path:
    """A manifest of rows (or raw lines) and, for every row, half a second of audio."""
    lines = []
    for row in rows:
        if isinstance(row, dict):
            clip = folder / str(row.get("audio", row.get("audio_filepath", "none.wav")))
            clip.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(clip, tone(0.5), 16_000)
        lines.append(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False))
    path = folder / "clips.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_clips_relative_to_the_manifest(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"audio": "a/1.wav", "text": "ein Ärger", "id": 7, "duration": 0.5, "snr_db": None},
        {"audio_filepath": "a/2.wav", "sentence": "two", "speaker": "x"},
    )
    corpus = ManifestCorpus(path)
    assert isinstance(corpus, Corpus)
    assert isinstance(corpus, IndexedCorpus)
    assert (corpus.name, len(corpus), corpus.conditions) == ("clips", 2, ())
    first, second = corpus
    assert isinstance(first, Utterance)
    assert isinstance(second, Utterance)
    assert (first.id, first.text, first.source) == ("7", "ein Ärger", "a/1.wav")
    assert (first.seconds, dict(first.metadata)) == (0.5, {"duration": "0.5"})
    assert (second.id, second.text, dict(second.metadata)) == ("a/2.wav", "two", {"speaker": "x"})
    assert len(list(corpus)) == 2, "a corpus can be read twice"


def test_text_keys_have_the_leaderboards_order(tmp_path: Path) -> None:
    row = {"audio": "1.wav", "transcription": "e", "transcript": "d", "normalized_text": "c"}
    assert ManifestCorpus(write(tmp_path, row)).rows[0].text == "c"
    assert ManifestCorpus(write(tmp_path, row | {"sentence": "b"})).rows[0].text == "b"
    kept = ManifestCorpus(write(tmp_path, row | {"sentence": "b", "text": ""})).rows[0]
    assert kept.text == "", "an empty reference is a reference"
    assert kept.metadata["transcript"] == "d"


def test_line_separators_inside_a_text_do_not_split_a_row(tmp_path: Path) -> None:
    path = write(tmp_path, {"audio": "1.wav", "text": "one\u2028two\x85three"})
    assert ManifestCorpus(path).rows[0].text == "one\u2028two\x85three"


def test_damaged_clips_keep_their_place(tmp_path: Path) -> None:
    rows = [{"audio": f"{index}.wav", "text": "x"} for index in range(3)]
    path = write(tmp_path, *rows)
    (tmp_path / "0.wav").unlink()
    (tmp_path / "1.wav").write_bytes(b"no audio")
    missing, broken, good = ManifestCorpus(path)
    assert missing == DamagedClip("0.wav", "0.wav", "the file does not exist")
    assert isinstance(broken, DamagedClip)
    assert "not readable" in broken.reason
    assert isinstance(good, Utterance)


def test_where_and_limit(tmp_path: Path) -> None:
    rows = [
        {"audio": f"{index}.wav", "text": "x", "condition": ("clean", "noisy")[index % 2]}
        for index in range(6)
    ]
    path = write(tmp_path, *rows)
    assert ManifestCorpus(path).conditions == ("clean", "noisy")
    noisy = ManifestCorpus(path, where={"condition": "noisy"}, limit=2)
    chosen = [["1.wav", "3.wav", "5.wav"][number] for number in chosen_rows(3, 2)]
    assert [row.id for row in noisy.rows] == chosen
    with pytest.raises(UserError, match=r"condition='loud'.*'clean', 'noisy'"):
        ManifestCorpus(path, where={"condition": "loud"})
    with pytest.raises(UserError, match=r"set='x'.*no row.*has a field set"):
        ManifestCorpus(path, where={"set": "x"})
    with pytest.raises(UserError, match="limit=0"):
        ManifestCorpus(path, limit=0)


def test_rows_without_text_are_for_calibration(tmp_path: Path) -> None:
    path = write(tmp_path, {"audio": "1.wav", "text": "x"}, "", {"audio": "2.wav", "text": None})
    with pytest.raises(UserError, match="line 3 has no transcript"):
        ManifestCorpus(path)
    assert [row.text for row in ManifestCorpus(path, require_text=False).rows] == ["x", None]
    unlabelled = ManifestCorpus(path, require_text=False)[1]
    assert isinstance(unlabelled, Utterance)
    assert unlabelled.text == ""


def test_rows_without_text_do_not_matter_unless_kept(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"audio": "1.wav", "text": "x", "set": "test"}, {"audio": "2.wav", "set": "train"}
    )
    assert len(ManifestCorpus(path, where={"set": "test"})) == 1
    with pytest.raises(UserError, match="line 2 has no transcript"):
        ManifestCorpus(path, where={"set": "train"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2 is no JSON"),
        ('["1.wav"]', "line 2 is no JSON object"),
        ('{"text": "x"}', "line 2 names no audio file"),
        ('{"audio": {"bytes": 1}, "text": "x"}', "line 2 names no audio file"),
        ('{"audio": "1.wav", "text": "x"}', r"line 2: id '1.wav' was used in line 1"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, {"audio": "1.wav", "text": "x"}, line)
    with pytest.raises(UserError, match=message):
        ManifestCorpus(path)


def test_missing_or_empty_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl' cannot be read"):
        ManifestCorpus(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match="has no rows"):
        ManifestCorpus(write(tmp_path, ""))


def test_an_utterance_is_checked() -> None:
    with pytest.raises(ValueError, match="float32"):
        Utterance("a", np.zeros(16_000), "", 1.0, "a.wav")
    with pytest.raises(ValueError, match="seconds"):
        Utterance("a", np.zeros(16_000, np.float32), "", 2.0, "a.wav")

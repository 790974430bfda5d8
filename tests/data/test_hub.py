"""Published data sets in folders: Parquet, what save_to_disk wrote, audio files with a table."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import clips, make_audiofolder, make_copy
from make_leaderboard_copy import SCHEMA, leaderboard_rows, write_readme, write_split

from edge_asr.audio import decode
from edge_asr.data.corpus import Corpus, DamagedClip, IndexedCorpus, Utterance
from edge_asr.data.hub import HubCorpus
from edge_asr.data.hub_columns import Names
from edge_asr.data.hub_files import Place
from edge_asr.data.selection import chosen_rows
from edge_asr.data.sources import sources
from edge_asr.errors import UserError
from edge_asr.store.fingerprint import Digests

OTHER = clips("noisy", 24)
SHARED = Path(os.environ.get("EDGE_ASR_SHARED", Path(__file__).parents[2] / "../shared"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_copy(tmp_path_factory.mktemp("copy"))


def other(folder: Path, limit: int | None = None, **options: Any) -> HubCorpus:
    """The part of 24 rows."""
    return HubCorpus(Place(str(folder), "librispeech", "test.other"), limit=limit, **options)


def saved(folder: Path, *, as_dict: bool) -> Path:
    from datasets import Dataset, DatasetDict, Features

    table = pa.Table.from_pylist(OTHER, schema=SCHEMA)
    rows = Dataset(table, split="test")
    assert isinstance(rows.features, Features)
    (DatasetDict({"test": rows}) if as_dict else rows).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize(
    "layout", ["readme", "names", "save_to_disk", "save_to_disk dict", "audiofolder"]
)
def test_every_layout_gives_the_same_clips(layout: str, limit: int | None, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    place = Place(str(folder))
    if layout in ("readme", "names"):
        make_copy(folder, readme=layout == "readme")
        place = Place(str(folder), "librispeech", "test.other", streaming=True)
    elif layout == "audiofolder":
        make_audiofolder(folder, OTHER)
    else:
        saved(folder, as_dict=layout.endswith("dict"))
    corpus = HubCorpus(place, limit=limit)
    expected = [OTHER[row] for row in chosen_rows(24, limit)]
    assert isinstance(corpus, Corpus)
    assert isinstance(corpus, IndexedCorpus)
    assert [(one.id, one.text) for one in corpus.entries] == [
        (row["id"], row["text"]) for row in expected
    ]
    for clip, row in zip(corpus, expected, strict=True):
        assert isinstance(clip, Utterance), clip
        np.testing.assert_array_equal(clip.samples, decode(row["audio"]["bytes"]).samples)
    backwards = corpus[len(corpus) - 1]
    assert backwards.id == expected[-1]["id"]


def test_configurations_and_splits_are_told_apart(copy: Path, tmp_path: Path) -> None:
    bare = make_copy(tmp_path / "bare", readme=False)
    for folder in (copy, bare):
        clean = HubCorpus(Place(str(folder), "librispeech", "test.clean"))
        assert [one.text for one in clean.entries] == [row["text"] for row in clips("clean", 11)]
        assert len(HubCorpus(Place(str(folder), "common_voice"))) == 10
    assert other(copy).origin == {
        "path": str(copy),
        "config": "librispeech",
        "split": "test.other",
    }


def overwrite(path: Path, start: int, length: int) -> None:
    """Garbage in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * length)


def column_range(path: Path, group: int, column: str) -> tuple[int, int]:
    """Where a column of a row group lies in the file, by its footer."""
    chunks = pq.read_metadata(path).row_group(group)
    for number in range(chunks.num_columns):
        chunk = chunks.column(number)
        if chunk.path_in_schema == column:
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            return min(start, chunk.data_page_offset), chunk.total_compressed_size
    raise KeyError(column)


def test_a_limit_reads_no_other_row_groups(tmp_path: Path) -> None:
    folder = make_copy(tmp_path)
    kept = chosen_rows(24, 3)
    groups = {(row // 8, row % 8 // 3) for row in kept}
    for shard, path in enumerate(sorted((folder / "librispeech").glob("test.other-*"))):
        for group in range(3):
            if (shard, group) not in groups:  # all but the ids, which tell whether they are unique
                for column in ("audio.bytes", "audio.path", "text", "audio_length_s"):
                    overwrite(path, *column_range(path, group, column))
    corpus = other(folder, limit=3)
    assert [clip.id for clip in corpus if isinstance(clip, Utterance)] == [
        OTHER[row]["id"] for row in kept
    ]
    damaged = [clip for clip in other(folder) if isinstance(clip, DamagedClip)]
    assert len(damaged) >= 24 - 3 * len(groups), "without a limit, what is damaged is seen"


def test_entries_are_read_without_audio(tmp_path: Path) -> None:
    folder = make_copy(tmp_path)
    path = min((folder / "librispeech").glob("test.other-*"))
    overwrite(path, *column_range(path, 1, "audio.bytes"))
    corpus = other(folder)
    assert [one.text for one in corpus.entries] == [row["text"] for row in OTHER]
    items = list(corpus)
    assert all(isinstance(item, DamagedClip) for item in items[3:6])
    assert "test.other-00000-of-00003.parquet, row group 1" in items[3].reason  # type: ignore[union-attr]
    assert all(isinstance(item, Utterance) for item in items[:3] + items[6:])


@pytest.mark.parametrize("harm", ["cut", "garbage", "empty", "missing"])
def test_a_damaged_shard_is_one_flagged_row(harm: str, tmp_path: Path) -> None:
    folder = make_copy(tmp_path)
    path = folder / "librispeech" / "test.other-00001-of-00003.parquet"
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(harm, b"\1" * 999))
    corpus = other(folder)
    items = list(corpus)
    assert [item.id for item in items[:8]] == [row["id"] for row in OTHER[:8]]
    assert [item.id for item in items[9:]] == [row["id"] for row in OTHER[16:]]
    flagged = items[8]
    assert isinstance(flagged, DamagedClip)
    assert flagged.reason.startswith("shard librispeech/test.other-00001-of-00003.parquet: ")
    assert ("missing" in flagged.reason) == (harm == "missing")
    assert corpus.audio_digests(Digests())[8] == "unreadable"
    for limit in (1, 2):  # told whatever a limit leaves
        assert flagged in list(other(folder, limit=limit))


def test_no_readable_shard_is_an_error(tmp_path: Path) -> None:
    folder = make_copy(tmp_path)
    for path in (folder / "librispeech").glob("test.other-*"):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"none of 3 Parquet shards can be read.*download"):
        other(folder)


def table_of(folder: Path, **columns: list[Any]) -> Path:
    """A data set of four rows, some columns replaced."""
    rows = {name: [row[name] for row in OTHER[:4]] for name in ("audio", "text", "id")} | columns
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({name: one for name, one in rows.items() if one}), folder / "test.parquet"
    )
    return folder


def test_damaged_rows_keep_their_place(tmp_path: Path) -> None:
    audio = [OTHER[0]["audio"], None, {"bytes": b"no audio", "path": "x"}, OTHER[3]["audio"]]
    folder = table_of(tmp_path, audio=audio, text=["a", "b", "c", None])
    good, *damaged = HubCorpus(Place(str(folder)))
    assert isinstance(good, Utterance)
    assert [type(one) for one in damaged] == [DamagedClip] * 3
    reasons = [one.reason for one in damaged if isinstance(one, DamagedClip)]
    assert reasons[0] == "the row has no audio"
    assert "not readable" in reasons[1]
    assert reasons[2] == "the row has no transcript"
    *_, last = HubCorpus(Place(str(folder)), require_text=False)
    assert isinstance(last, Utterance), "calibration can do without a transcript"


def test_a_text_that_is_no_unicode_is_flagged(tmp_path: Path) -> None:
    text = pa.array([b"a", b"\xff\xfe"]).view(pa.string())
    audio = [row["audio"] for row in OTHER[:2]]
    pq.write_table(pa.table({"audio": audio, "text": text}), tmp_path / "test.parquet")
    first, second = HubCorpus(Place(str(tmp_path)))
    assert isinstance(first, Utterance)
    assert isinstance(second, DamagedClip)
    assert "not UTF-8" in second.reason


def test_ids_are_unique_and_the_same_under_a_limit(tmp_path: Path) -> None:
    names = [row["audio"]["path"] for row in OTHER[:4]]
    same = ["a", "a", "b", "c"]
    nameless = [{"bytes": row["audio"]["bytes"], "path": None} for row in OTHER[:4]]
    for folder, columns, expected in (
        ("ids", {}, [row["id"] for row in OTHER[:4]]),
        ("paths", {"id": same}, names),
        ("numbers", {"id": same, "audio": nameless}, [f"test/{row}" for row in range(4)]),
    ):
        place = Place(str(table_of(tmp_path / folder, **columns)))  # type: ignore[arg-type]
        assert [one.id for one in HubCorpus(place).entries] == expected
        kept = [expected[row] for row in chosen_rows(4, 2)]
        assert [one.id for one in HubCorpus(place, limit=2).entries] == kept
    with pytest.raises(UserError, match=r"'id' gives several rows the same id.*id_column"):
        HubCorpus(Place(str(tmp_path / "paths")), names=Names(id="id"))


def test_columns_by_precedence_and_by_name(tmp_path: Path) -> None:
    texts = ["one", "t\u200bwo", "", "four"]
    speakers = [7, 7, 8, None]
    place = Place(str(table_of(tmp_path, sentence=texts, speaker_id=speakers)))
    assert [one.text for one in HubCorpus(place).entries] == [row["text"] for row in OTHER[:4]]
    entries = HubCorpus(place, names=Names(text="sentence", audio="audio")).entries
    assert [one.text for one in entries] == ["one", "two", "", "four"]
    assert [one.metadata.get("speaker") for one in entries] == ["7", "7", "8", None]
    assert entries[0].metadata["text"] == OTHER[0]["text"]


def test_digests_are_of_content(copy: Path, tmp_path: Path) -> None:
    first = other(copy).audio_digests(Digests())
    assert len(set(first)) == 24
    moved = shutil.copytree(copy, tmp_path / "moved")
    assert other(moved).audio_digests(Digests()) == first
    assert other(moved, limit=5).audio_digests(Digests()) == [
        first[row] for row in chosen_rows(24, 5)
    ]
    assert other(moved).audio_digests(Digests(), [3]) == [first[3]]
    files = [make_audiofolder(tmp_path / name, OTHER[:3]) for name in ("one", "two")]
    one, two = (HubCorpus(Place(str(folder))).audio_digests(Digests()) for folder in files)
    assert one == two
    (files[1] / "test" / "0001.opus").write_bytes(OTHER[9]["audio"]["bytes"])
    changed = HubCorpus(Place(str(files[1]))).audio_digests(Digests())
    assert [a == b for a, b in zip(one, changed, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            Place("COPY", "librispeach", "test"),
            r"no config 'librispeach'; did you mean librispeech",
        ),
        (Place("COPY"), "several configurations; give config as one of common_voice, librispeech"),
        (Place("COPY", "librispeech", "test"), "no split 'test' in librispeech; known are"),
        (
            Place("COPY/common_voice", split="train"),
            "no split 'train' in default; .*known are test",
        ),
        (Place("./nowhere"), "no folder here, and no id of the hub"),
    ],
)
def test_what_is_not_there_is_named(copy: Path, place: Place, message: str) -> None:
    path = place.path.replace("COPY", str(copy))
    with pytest.raises(UserError, match=message) as caught:
        HubCorpus(Place(path, place.config, place.split))
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    place = Place(str(table_of(tmp_path / "mute", text=[], words=["a"] * 4, count=[1, 2, 3, 4])))
    with pytest.raises(UserError, match=r"no column of transcripts.*text_column.*audio, count, id"):
        HubCorpus(place)
    with pytest.raises(UserError, match=r"'count' holds int64, no transcripts"):
        HubCorpus(place, names=Names(text="count"))
    with pytest.raises(UserError, match=r"no column 'word'; did you mean words"):
        HubCorpus(place, names=Names(text="word"))
    with pytest.raises(UserError, match=r"no column 'words2' of audio; name it with audio_column"):
        HubCorpus(place, names=Names(text="words", audio="words2"))
    deaf = Place(str(table_of(tmp_path / "deaf", audio=[])))
    with pytest.raises(UserError, match="no column of audio"):
        HubCorpus(deaf)


def test_folders_that_hold_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty' has nothing that can be read"):
        HubCorpus(Place(str(tmp_path / "empty")))
    script = tmp_path / "script"
    script.mkdir()
    (script / "script.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match=r"is a program.*never run"):
        HubCorpus(Place(str(script)))
    write_readme(table_of(tmp_path / "named"), [("gone", "test")])
    with pytest.raises(UserError, match="nothing that can be read"):
        HubCorpus(Place(str(tmp_path / "named"), "gone"))


def test_the_leaderboards_names_read_a_copy(copy: Path) -> None:
    group = sources.build(
        {"name": "open_asr_2024", "path": str(copy), "sets": ["librispeech_other", "common_voice"]}
    )
    first, second = group.data_sets("open_asr_2024", 6)
    assert (first.name, second.name) == ("librispeech_other-6clips", "common_voice-6clips")
    assert [one.id for one in first.entries] == [one.id for one in other(copy, 6).entries]
    with pytest.raises(UserError, match=r"sets=tedlum: did you mean tedlium"):
        sources.build({"name": "open_asr_2026", "sets": ["tedlum"]})
    with pytest.raises(UserError, match="several data sets"):
        group.clips()
    with pytest.raises(UserError, match="no config 'ami'"):
        sources.build({"name": "ami", "path": str(copy)}).clips()


def chunked(folder: Path) -> Path:
    """Two calls of five and three chunks: metadata, audio beside it, references elsewhere."""
    name = "Earnings22-Cleaned-AA"
    (folder / f"{name}-chunked" / "audio").mkdir(parents=True)
    calls = ["call-b"] * 5 + ["call-a"] * 3
    rows: dict[str, list[Any]] = {"file_name": [], "parent_id": calls, "chunk_index": []}
    for number, call in enumerate(calls):
        rows["file_name"].append(f"{call}_{number}.opus")
        rows["chunk_index"].append(number % 5)
        file = folder / f"{name}-chunked" / "audio" / rows["file_name"][-1]
        file.write_bytes(OTHER[number]["audio"]["bytes"])
    pq.write_table(pa.table(rows), folder / f"{name}-chunked" / "test.parquet")
    whole = [{**OTHER[0], "id": call, "text": f"all of {call}"} for call in ("call-a", "call-b")]
    write_split(folder / name, "test", whole)
    return folder


def test_chunks_have_the_text_of_their_call(tmp_path: Path) -> None:
    chunked(tmp_path)
    group = sources.build(
        {
            "name": "open_asr_2026",
            "path": str(tmp_path),
            "sets": ["earnings22_cleaned_aa_chunked"],
        }
    )
    (corpus,) = group.data_sets("open_asr_2026")
    clips = [clip for clip in corpus if isinstance(clip, Utterance)]
    assert [clip.text for clip in clips] == ["all of call-b"] * 5 + ["all of call-a"] * 3
    assert [(clip.metadata["parent_id"], clip.metadata["chunk_index"]) for clip in clips] == [
        *[("call-b", str(one)) for one in range(5)],
        *[("call-a", str(one)) for one in range(3)],
    ]
    for limit, count in ((1, (5, 3)), (3, (5, 3)), (6, (5, 3)), (8, (8,))):
        (part,) = group.data_sets("open_asr_2026", limit)
        assert len(part) in count, "whole calls, for a reference is that of a call"


def test_real_speech_as_the_leaderboard_has_it(tmp_path: Path) -> None:
    manifest = SHARED / "speech" / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip(f"no real speech at {manifest}; EDGE_ASR_SHARED names its folder")
    for config, split, name in (
        ("librispeech", "test.other", "librispeech_test_other_100"),
        ("common_voice", "test", "common_voice_en_100"),
    ):
        rows = leaderboard_rows(manifest, {"set": name}, config)
        write_split(tmp_path / config, split, rows, shards=2, group_rows=10)
    options = {"name": "open_asr_2024", "sets": ["librispeech_other", "common_voice"]}
    corpora = sources.build({**options, "path": str(tmp_path)}).data_sets("open_asr_2024", 20)
    for corpus in corpora:
        assert len(corpus) == 20
        assert all(isinstance(clip, Utterance) for clip in corpus)


def test_a_missing_file_of_an_audio_folder_is_a_flagged_row(tmp_path: Path) -> None:
    folder = make_audiofolder(tmp_path / "one", OTHER[:3])
    (folder / "test" / "0001.opus").unlink()
    first, second, third = HubCorpus(Place(str(folder)))
    assert isinstance(first, Utterance)
    assert isinstance(third, Utterance)
    assert isinstance(second, DamagedClip)
    assert second.reason == "the file does not exist"
    (folder / "test" / "metadata.csv").unlink()
    with pytest.raises(UserError, match=r"no metadata\.csv beside them"):
        HubCorpus(Place(str(folder)))


@pytest.mark.parametrize("lines", [True, False], ids=["jsonl", "csv"])
def test_tables_of_an_audio_folder(lines: bool, tmp_path: Path) -> None:
    folder = make_audiofolder(tmp_path, OTHER[:2]) / "test"
    (folder / "metadata.csv").unlink()
    if lines:
        rows = [{"file_name": f"000{one}.opus", "text": "12", "speaker_id": one} for one in (0, 1)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        (folder / "metadata.csv").write_text(
            "file_name,text,speaker_id\n0000.opus,12,0\n0001.opus,12,1\n", encoding="utf-8-sig"
        )
    entries = HubCorpus(Place(str(tmp_path))).entries
    assert [(one.id, one.text, one.metadata["speaker"]) for one in entries] == [
        ("0000.opus", "12", "0"),
        ("0001.opus", "12", "1"),
    ]


def test_tables_of_paths_are_read_through_the_library(tmp_path: Path) -> None:
    inside = make_audiofolder(tmp_path / "audio", OTHER[:2]) / "test"
    (tmp_path / "set").mkdir()
    rows = [{"audio": str(inside / f"000{one}.opus"), "text": "x", "n": one} for one in (0, 1)]
    (tmp_path / "set" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = HubCorpus(Place(str(tmp_path / "set")))
    assert all(isinstance(clip, Utterance) for clip in corpus)
    assert [clip.metadata for clip in corpus.entries] == [{"n": "0"}, {"n": "1"}]

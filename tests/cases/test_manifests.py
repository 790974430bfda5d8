"""Manifests and calibration texts that went wrong: every case of the shared folder, and the rest
of its kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from shared import shared
from tiny import tone

from edge_asr import api
from edge_asr.calibration.batches import DrawnClip, decoder_tokens
from edge_asr.data.corpus import DamagedClip, Utterance
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.errors import UserError
from edge_asr.runtimes.torch_greedy import TorchRuntime
from edge_asr.store.fingerprint import Digests

SENTENCE = "the tower that developed ignorance criticized"
MEETING = np.concatenate([tone(1.0, pitch) for pitch in (200.0, 300.0, 400.0)])


def case(name: str, manifest: str = "m.jsonl") -> ManifestCorpus:
    return ManifestCorpus(shared(f"cases/{name}/{manifest}"))


def heard(item: Utterance | DamagedClip) -> Utterance:
    assert isinstance(item, Utterance), item
    return item


def meeting(folder: Path, *rows: dict[str, Any] | str, name: str = "m.jsonl") -> ManifestCorpus:
    """Rows of one recording of 3 s; raw lines are written as they are."""
    soundfile.write(folder / "meeting.flac", MEETING, 16_000)
    lines = [
        row
        if isinstance(row, str)
        else json.dumps({"audio_filepath": "meeting.flac", "text": "x"} | row)
        for row in rows
    ]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return ManifestCorpus(folder / name)


@pytest.mark.parametrize("manifest", ["metadata.jsonl", "metadata.csv"])
def test_case_audiofolder(manifest: str) -> None:
    (clip,) = case("audiofolder", manifest)
    assert (heard(clip).id, heard(clip).text, heard(clip).flags) == ("a.wav", SENTENCE, ())


def test_case_base64_audio_field() -> None:
    good, data = case("base64-audio-field")
    assert heard(good).text == SENTENCE
    assert isinstance(data, DamagedClip)
    assert data.reason == "the path is too long; is it the audio itself?"


def test_case_bom_manifest() -> None:
    (clip,) = case("bom-manifest")
    assert heard(clip).text == SENTENCE


def test_case_surrogate_text() -> None:
    with pytest.raises(UserError, match="line 1: 'text' holds half of a surrogate pair"):
        case("surrogate-text")


def test_case_unicode_references() -> None:
    assert {heard(clip).text for clip in case("unicode-references")} == {SENTENCE}


def test_case_nemo_offset() -> None:
    corpus = case("nemo-offset")
    recording = soundfile.read(shared("cases/nemo-offset/meeting.flac"), dtype="float32")[0]
    for clip in map(heard, corpus):
        first = round(float(clip.metadata["offset"]) * 16_000)
        expected = recording[first : first + round(float(clip.metadata["duration"]) * 16_000)]
        np.testing.assert_array_equal(clip.samples, expected)
        assert clip.flags == ()
    digests = corpus.audio_digests(Digests())
    assert len(set(digests)) == 4


def test_case_nemo_offset_is_recognised() -> None:
    """Each row by itself, as good as any other clip; all of the recording for each gave 81.5 %."""
    model = api.load("moonshine_micro")
    wer = api.evaluate(model, str(shared("cases/nemo-offset/m.jsonl"))).wer
    assert wer.estimate <= 4


def test_case_calib_long_text() -> None:
    """A clip longer than the window, which Moonshine does not have, keeps no text that is not
    heard there."""
    (clip,) = case("calib-long-text")
    model = api.load("whisper_micro")
    runtime = TorchRuntime(model)
    said: list[str] = []
    drawn = [DrawnClip(0, heard(clip))]
    (tokens,) = decoder_tokens(model, runtime, drawn, 1, on_warning=said.append)
    window = runtime.window(heard(clip).samples)
    (own,) = runtime.transcribe([window], [runtime.token_limit(len(window))])
    prompt = model.architecture.prompt(model.model)
    assert tokens == [*prompt, *own.tokens]
    assert "1 calibration clips" in said[0]


def test_parts_of_a_recording(tmp_path: Path) -> None:
    corpus = meeting(
        tmp_path,
        {"offset": 0, "duration": 1},
        {"offset": 1.0, "duration": 1.0},
        {"offset": 2},
        {"offset": 2.0, "duration": 1.0, "id": "own"},
    )
    clips = [heard(clip) for clip in corpus]
    assert [clip.id for clip in clips] == [
        "meeting.flac@0.0+1.0", "meeting.flac@1.0+1.0", "meeting.flac@2.0", "own",
    ]  # fmt: skip
    for clip, start in zip(clips, (0, 16_000, 32_000, 32_000), strict=True):
        assert np.abs(clip.samples - MEETING[start : start + 16_000]).max() < 1e-4
        assert clip.flags == ()
    digests = corpus.audio_digests(Digests())
    assert len(set(digests)) == 4


def test_a_row_alone_keeps_its_path_as_its_id(tmp_path: Path) -> None:
    assert meeting(tmp_path, {"offset": 0.0, "duration": 3.0}).rows[0].id == "meeting.flac"


def test_parts_that_are_not_there_are_damaged(tmp_path: Path) -> None:
    corpus = meeting(
        tmp_path,
        {"offset": 3.5, "duration": 1.0},
        {"offset": 2.5, "duration": 1.0},
        {"offset": 1.0, "duration": 0.0},
    )
    assert [clip.reason for clip in corpus if isinstance(clip, DamagedClip)] == [
        "the cut begins at 3.5 s, behind the end",
        "the cut ends at 3.5 s, the file at 3 s",
        "the file holds no samples",
    ]


def test_a_table_has_parts_too(tmp_path: Path) -> None:
    lines = "audio_filepath,offset,duration,text\nmeeting.flac,0.5,1,x\nmeeting.flac,1.5,,y"
    first, second = meeting(tmp_path, lines, name="m.csv")
    assert (heard(first).seconds, heard(second).seconds) == (1.0, 1.5)


def test_the_leaderboards_manifest(tmp_path: Path) -> None:
    row = {"duration": 3.0, "time": 0.2, "text": "x", "pred_text": "y"}
    (clip,) = meeting(tmp_path, row)
    assert dict(heard(clip).metadata) == {"duration": "3.0", "time": "0.2", "pred_text": "y"}
    assert heard(clip).flags == ()


@pytest.mark.parametrize("field", ["offset", "duration"])
@pytest.mark.parametrize("value", ["-1", "NaN", "Infinity", '"long"', "[1]", "{}", "true", "1e300"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, field: str, value: str) -> None:
    line = f'{{"audio": "meeting.flac", "text": "x", "{field}": {value}}}'
    with pytest.raises(UserError, match=rf"line 2: {field} is .*; give seconds"):
        meeting(tmp_path, {"id": "good"}, line)


@pytest.mark.parametrize(
    ("stated", "flagged"), [(3.0, False), (3.05, False), (2.0, True), (4, True)]
)
def test_a_duration_is_compared_with_the_audio(
    tmp_path: Path, stated: float, flagged: bool
) -> None:
    (clip,) = meeting(tmp_path, {"duration": stated})
    expected = (f"3.00 s of audio, {stated:.2f} s by its duration",) if flagged else ()
    assert heard(clip).flags == expected


def test_audio_objects(tmp_path: Path) -> None:
    """The form of `datasets`: a path in it is read, data is refused."""
    rows: dict[str, Any] = {
        "audio_filepath": None,
        "audio": {"path": "meeting.flac", "bytes": None},
    }
    (clip,) = meeting(tmp_path, rows)
    assert (heard(clip).id, heard(clip).source) == ("meeting.flac", "meeting.flac")
    with pytest.raises(UserError, match="line 1 names no audio file"):
        meeting(tmp_path, rows | {"audio": {"path": "meeting.flac", "bytes": "UklGRg=="}})


@pytest.mark.parametrize(
    "audio", ["data:audio/wav;base64,UklGRg==", "UklGRiQAAABXQVZF", "UklG" * 2000, "http://a/b.wav"]
)
def test_data_in_the_place_of_a_path_is_damaged(tmp_path: Path, audio: str) -> None:
    first, second = meeting(tmp_path, {"audio_filepath": audio}, {})
    assert isinstance(first, DamagedClip)
    heard(second)


def test_a_limit_chooses_the_same_rows_in_order(tmp_path: Path) -> None:
    meeting(tmp_path, *({"id": f"{number:03}"} for number in range(200)))
    few, more = (
        [row.id for row in ManifestCorpus(tmp_path / "m.jsonl", limit=limit).rows]
        for limit in (20, 50)
    )
    assert (len(few), len(more)) == (20, 50)
    assert set(few) < set(more)
    assert few == sorted(few)
    assert few != [f"{number:03}" for number in range(20)]

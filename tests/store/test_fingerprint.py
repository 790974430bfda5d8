"""Fingerprints are of content: equal values have one, different ones never share it."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import pytest

from edge_asr.store.fingerprint import Digests, file_sha256, fingerprint


def test_equal_values_have_one_fingerprint() -> None:
    one = {"b": [1, 2.5, None], "a": {"x": True}}
    assert fingerprint(one) == fingerprint({"a": {"x": True}, "b": (1, 2.5, None)})
    assert len(fingerprint(one)) == 32


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({"a": None}, {}),
        ({"a": "1"}, {"a": 1}),
        ({"a": True}, {"a": 1}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": math.inf}, {"a": -math.inf}),
        ({"a": 0.1}, {"a": 0.1 + 1e-17 + 1e-16}),
    ],
)
def test_different_values_do_not_share_one(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_numbers_that_json_does_not_have_are_no_error() -> None:
    assert fingerprint({"a": math.inf}) == fingerprint({"a": float("inf")})
    assert fingerprint([math.nan]) == fingerprint([math.nan])


def test_a_path_is_no_content() -> None:
    with pytest.raises(TypeError, match="no place in a fingerprint"):
        fingerprint({"a": Path("/somewhere")})


def test_a_file_is_read_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    clip, remembered = tmp_path / "clip.wav", tmp_path / "digests"
    clip.write_bytes(b"sound")
    read: list[Path] = []

    def compute(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    expected = hashlib.sha256(b"sound").hexdigest()
    for _ in range(3):
        assert Digests(remembered).of([clip, clip], "sha256", compute) == [expected] * 2
    assert len(read) == 1
    os.utime(clip, (1, 1))
    assert Digests(remembered).of([clip], "sha256", compute) == [expected]
    assert len(read) == 2
    clip.write_bytes(b"other sound")
    assert Digests(remembered).of([clip], "sha256", compute) != [expected]


def test_another_kind_of_digest_is_another_entry(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    digests = Digests(tmp_path / "digests")
    assert digests.of([file], "size", lambda path: path.stat().st_size) == [4]
    assert digests.of([file], "sha256") == [hashlib.sha256(b"1234").hexdigest()]
    assert digests.of([file], "size", lambda _: -1) == [4]


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", '{"sha256:file": 3}', '{"sha256:file": [1, 2, 3]}']
)
def test_a_damaged_memory_is_no_memory(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    folder = tmp_path / "digests"
    expected = Digests(folder).of([file], "sha256")
    (memory,) = folder.iterdir()
    memory.write_text(damage)
    assert Digests(folder).of([file], "sha256") == expected


def test_without_a_folder_nothing_is_remembered(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1234")
    assert Digests().of([file], "sha256") == [file_sha256(file)]
    assert sorted(tmp_path.iterdir()) == [file]

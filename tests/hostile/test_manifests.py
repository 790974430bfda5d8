"""Manifests and clips that are damaged, hostile or merely unusual: one line, or read rightly."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from tiny import tone

from edge_asr.data.corpus import DamagedClip, Utterance
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.data.sources import Manifest
from edge_asr.errors import UserError
from edge_asr.store.fingerprint import Digests

GOOD = {"audio": "a.wav", "text": "one two"}
LONG = "n" * 300


def folder_with_clip(folder: Path) -> Path:
    soundfile.write(folder / "a.wav", tone(0.5), 16_000)
    return folder


def manifest(folder: Path, content: str | bytes, name: str = "m.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: str | Path) -> str:
    """What a user reads, by way of the source that `data=manifest` opens: one printable line."""
    with pytest.raises(UserError) as caught:
        Manifest(str(path)).clips()
    message = str(caught.value)
    assert "\n" not in message
    message.encode()
    return message


def row(**fields: Any) -> str:
    return json.dumps(GOOD | fields)


REFUSED_LINES: dict[str, tuple[str | bytes, str]] = {
    "surrogate in text": ('{"audio": "a.wav", "text": "six \\ud83d"}', "'text' holds half"),
    "surrogate in id": ('{"audio": "a.wav", "text": "x", "id": "\\udc00"}', "'id' holds half"),
    "surrogate in path": ('{"audio": "\\ud83d.wav", "text": "x"}', "holds half"),
    "surrogate in a field": ('{"audio": "a.wav", "text": "x", "set": "\\ud83d"}', "'set' holds"),
    "surrogate in a name": ('{"audio": "a.wav", "text": "x", "\\ud83d": "y"}', "ud83d' holds half"),
    "nested lists": ("[" * 100_000, "nested too deeply"),
    "nested objects": ('{"a":' * 100_000, "nested too deeply"),
    "nested field": (row(a=0).replace("0", "[" * 100_000 + "]" * 100_000), "nested too deeply"),
    "number of 10,000 digits": (row(a=0).replace("0", "9" * 10_000), "is no JSON .*digits"),
    "id of 10,000 digits": (row(id=0).replace("0", "9" * 10_000), "is no JSON .*digits"),
    "id list": (row(id=["a"]), r'id is \["a"\]; give a text or a number'),
    "id object": (row(id={"a": 1}), "id is {.*give a text or a number"),
    "id true": (row(id=True), "id is true; give a text or a number"),
    "id given twice": (row(id="x") + "\n" + row(id="x"), "line 2: id 'x' was used in line 1"),
    "id null twice": (row(id=None) + "\n" + row(), "line 2: id 'a.wav' was used in line 1"),
    "field given twice": ('{"audio": "a.wav", "text": "x", "text": "y"}', "'text' is given twice"),
    "empty path": (row(audio=""), "names no audio file"),
    "no path": ('{"text": "x"}', "names no audio file"),
    "path null": (row(audio=None), "names no audio file"),
    "path number": (row(audio=3), "names no audio file"),
    "text number": (row(text=3), "text is 3; give a text in quotes"),
    "text list": (row(text=["x"]), "text is .*give a text in quotes"),
    "text false": (row(text=False, sentence="x"), "text is false; give a text in quotes"),
    "text null": (row(text=None), "has no transcript"),
    "condition all": (row(condition="all"), "condition 'all'"),
    "list": ("[1]", "no JSON object"),
    "null": ("null", "no JSON object"),
    "torn": ('{"audio": "a.wav", "te', "is no JSON"),
    "control character": ('{"audio": "a.wav", "text": "a\tb"}', "is no JSON"),
    "UTF-16 with mark": (row().encode("utf-16"), "not UTF-8 .*save it as UTF-8"),
    "UTF-16 without mark": (row().encode("utf-16-le"), "holds a NUL.*save it as UTF-8"),
    "UTF-32": (row().encode("utf-32"), "save it as UTF-8"),
    "Latin-1": (row(text="Ärger").encode().replace(b"\\u00c4", b"\xc4"), "not UTF-8"),
    "zeros": (b"\0" * 1000, "holds a NUL"),
    "random bytes": (bytes(range(128, 256)), "not UTF-8"),
    "a clip": (b"RIFF\x24\0\0\0WAVEfmt ", "holds a NUL"),
    "nothing": ("", "has no rows"),
    "only a mark": (b"\xef\xbb\xbf", "has no rows"),
    "empty lines": ("\n\n \n", "has no rows"),
}


@pytest.mark.parametrize("name", REFUSED_LINES)
def test_a_bad_line_is_named(tmp_path: Path, name: str) -> None:
    content, said = REFUSED_LINES[name]
    path = manifest(folder_with_clip(tmp_path), content)
    message = refusal(path)
    assert str(path) in message
    with pytest.raises(UserError, match=said):
        ManifestCorpus(path)


READ_LINES: dict[str, tuple[str | bytes, str, str]] = {
    "id null": (row(id=None), "a.wav", "one two"),
    "id number": (row(id=7), "7", "one two"),
    "id fraction": (row(id=0.5), "0.5", "one two"),
    "id large": (row(id=10**400), "1" + "0" * 400, "one two"),
    "id with a line end": (row(id="a\nb"), "a\nb", "one two"),
    "id of control characters": (row(id="\x1b[31m"), "\x1b[31m", "one two"),
    "byte-order mark": (b"\xef\xbb\xbf" + row().encode(), "a.wav", "one two"),
    "mark in the middle": (b"\n\xef\xbb\xbf" + row().encode(), "a.wav", "one two"),
    "Windows line ends": ("\r\n" + row() + "\r\n", "a.wav", "one two"),
    "whole surrogate pair": ('{"audio": "a.wav", "text": "\\ud83d\\ude00"}', "a.wav", "\U0001f600"),
    "invisible characters": (row(text="\ufeffone t\u200bw\u00ado"), "a.wav", "one two"),
    "long text": (row(text="w " * 200_000), "a.wav", "w " * 200_000),
    "deep field": (row(a=0).replace("0", "[" * 400 + "]" * 400), "a.wav", "one two"),
    "not a number": (row(a=float("nan")), "a.wav", "one two"),
    "audiofolder": ('{"file_name": "a.wav", "transcription": "one two"}', "a.wav", "one two"),
    "many fields": (row(**{f"f{number}": number for number in range(5000)}), "a.wav", "one two"),
}


@pytest.mark.parametrize("name", READ_LINES)
def test_an_unusual_line_is_read(tmp_path: Path, name: str) -> None:
    content, wanted, text = READ_LINES[name]
    (clip,) = ManifestCorpus(manifest(folder_with_clip(tmp_path), content))
    assert isinstance(clip, Utterance)
    assert (clip.id, clip.text) == (wanted, text)
    json.dumps([clip.id, clip.text, dict(clip.metadata)], ensure_ascii=False).encode()


TABLES: dict[str, tuple[str | bytes, str | None]] = {
    "audiofolder": ("file_name,transcription\na.wav,one two\n", None),
    "Windows": (b"\xef\xbb\xbffile_name,text\r\na.wav,one two\r\n\r\n", None),
    "quoted": ('audio,text,id\n"a.wav","one two","x,\ny"\n', None),
    "short row": ("file_name,text\na.wav\n", "line 2 is no row .*1 cells under 2 names"),
    "long row": ("file_name,text\na.wav,one,two\n", "line 2 is no row .*3 cells under 2 names"),
    "open quote": ('file_name,text\na.wav,"one\n', "is no row"),
    "name twice": ("file_name,text,text\na.wav,x,y\n", "'text' is given twice"),
    "no names": ("a.wav,one two\nb.wav,three\n", "names no audio file"),
    "names only": ("file_name,text\n", "has no rows"),
    "empty": ("", "has no rows"),
    "huge cell": ("file_name,text\na.wav," + "w" * 200_000, "is no row .*limit"),
    "UTF-16": ("file_name,text\na.wav,x\n".encode("utf-16"), "save it as UTF-8"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table(tmp_path: Path, name: str) -> None:
    content, said = TABLES[name]
    path = manifest(folder_with_clip(tmp_path), content, "metadata.csv")
    if said is None:
        (clip,) = ManifestCorpus(path)
        assert isinstance(clip, Utterance)
        assert clip.text == "one two"
    else:
        with pytest.raises(UserError, match=said):
            ManifestCorpus(path)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def link(target: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.symlink_to(target)
        return path

    return make


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        # Bound by its short name: a socket's path may not be as long as a test's folder is.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)
    return path


def in_a_file(path: Path) -> Path:
    path.write_text("")
    return path / "m.jsonl"


# What no reader may open, or cannot.
UNREADABLE: dict[str, Callable[[Path], Path]] = {
    "pipe": pipe,
    "loop of links": loop,
    "link to a device": link("/dev/zero"),
    "link to the terminal": link("/dev/tty"),
    "link to nothing": link("nowhere"),
    "folder": folder,
    "socket": listening,
    "in a file": in_a_file,
    "missing": lambda path: path,
    "name too long": lambda path: path.with_name(LONG),
    "path too long": lambda path: path / "/".join(["n" * 200] * 30),
    "NUL": lambda path: path.with_name("a\0b"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_manifest_that_cannot_be_opened_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = UNREADABLE[name](tmp_path / "m.jsonl")
    message = refusal(path)
    assert repr(str(path)) in message
    assert "give the path of a JSON-lines file" in message


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/stdin", "~nobody-here/m.jsonl"])
def test_a_device_or_nobodys_home_is_no_manifest(path: str) -> None:
    assert repr(path) in refusal(path)


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_clip_that_cannot_be_opened_is_flagged(tmp_path: Path, name: str) -> None:
    """Not fatal, and never waited for; nor where the audio is only hashed."""
    folder_with_clip(tmp_path)
    clip = UNREADABLE[name](tmp_path / "clip.wav")
    path = manifest(tmp_path, row(audio=str(clip.relative_to(tmp_path))) + "\n" + row())
    corpus = ManifestCorpus(path)
    damaged, good = corpus
    assert isinstance(damaged, DamagedClip)
    assert damaged.reason
    assert isinstance(good, Utterance)
    first, second = corpus.audio_digests(Digests(tmp_path / "digests"))
    assert first == "unreadable"
    assert len(second) == 64


CLIPS: dict[str, str] = {
    "device": "/dev/zero",
    "data in the place of a path": "UklGRUkl" * 5000,
    "data as an address": "data:audio/wav;base64," + "UklGRUkl" * 100,
    "an address": "https://example.com/a.wav",
    "climbing out": "../" * 100 + "nowhere.wav",
    "white space": " ",
    "line end": "a\n.wav",
    "terminal sequences": "\x1b[2J.wav",
    "home": "~/a.wav",
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_path_that_is_none_is_flagged(tmp_path: Path, name: str) -> None:
    (clip,) = ManifestCorpus(manifest(tmp_path, row(audio=CLIPS[name])))
    assert isinstance(clip, DamagedClip)
    assert clip.reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_what_may_not_be_read_is_flagged(tmp_path: Path) -> None:
    for name in ("closed", "open"):
        folder_with_clip(folder(tmp_path / name))
    (tmp_path / "open" / "a.wav").chmod(0)
    (tmp_path / "closed").chmod(0)
    lines = [row(audio="closed/a.wav"), row(audio="open/a.wav")]
    corpus = ManifestCorpus(manifest(tmp_path, "\n".join(lines)))
    assert all(isinstance(clip, DamagedClip) for clip in corpus)
    assert corpus.audio_digests(Digests()) == ["unreadable"] * 2
    (tmp_path / "closed").chmod(0o700)


def test_many_clips_in_many_folders_are_hashed_in_time(tmp_path: Path) -> None:
    """A pass over all files for every folder would take half a minute here, and days elsewhere."""
    lines = []
    for number in range(4000):
        name = f"{number}/a.wav"
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
        lines.append(row(audio=name))
    corpus = ManifestCorpus(manifest(tmp_path, "\n".join(lines)))
    began = time.monotonic()
    assert len(set(corpus.audio_digests(Digests()))) == 1
    assert time.monotonic() - began < 12

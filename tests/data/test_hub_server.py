"""Data sets on the hub, which a server on this machine imitates: real requests, real refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from data_sets import clips, make_audiofolder, make_copy
from fake_hub import COMMIT

from edge_asr.data.selection import chosen_rows

TESTS = Path(__file__).parents[1]
MAIN = "hf-audio/esb-datasets-test-only-sorted"
OTHER = clips("noisy", 24)
# Opens every source that it is given and says what is in it, or the error.
READER = """
import json, sys
from edge_asr.data.corpus import Utterance
from edge_asr.data.sources import sources
from edge_asr.errors import UserError
from edge_asr.store.fingerprint import Digests
answers = []
for options in json.loads(sys.argv[1]):
    limit, protocol = options.pop("limit", None), options.pop("protocol", "open_asr_2024")
    try:
        answers.append([
            {
                "name": corpus.name,
                "origin": corpus.origin,
                "ids": [one.id for one in corpus.entries],
                "digests": corpus.audio_digests(Digests()),
                "heard": sum(isinstance(clip, Utterance) for clip in corpus),
            }
            for corpus in sources.build(options).data_sets(protocol, limit)
        ])
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Server:
    """The imitated hub: its address, its data sets, and its log of answers."""

    address: str
    folder: Path
    log: Path

    def sent(self) -> int:
        """Bytes of Parquet and audio that were answered so far."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return sum(int(line.split()[-1]) for line in lines if "/resolve/" in line)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hub")
    make_copy(folder / MAIN)
    make_copy(folder / "hf-audio/open-asr-leaderboard")
    make_copy(folder / "some/bare", readme=False)
    make_audiofolder(folder / "some/files", OTHER[:3])
    for name, code, message in (
        ("gated", "GatedRepo", "Access to dataset some/gated is restricted."),
        ("private", "RepoNotFound", "Invalid username or password."),
    ):
        make_copy(folder / "some" / name)
        rule = {"status": 401, "code": code, "message": message, "token": "good"}
        (folder / "some" / name / ".answer").write_text(json.dumps(rule))
    (folder / "some/script").mkdir()
    (folder / "some/script/script.py").write_text("raise SystemExit('it ran')")
    log = folder / "log.txt"
    program = [sys.executable, str(TESTS / "fake_hub.py"), str(folder), str(log)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield Server(process.stdout.readline().strip(), folder, log)
        process.terminate()


def read(server: Server, home: Path, *options: dict[str, Any], **variables: str) -> list[Any]:
    """What a program of its own finds, with a cache in `home`."""
    inherited = {name: one for name, one in os.environ.items() if not name.startswith("HF_")}
    environment = {
        **inherited,
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", READER, json.dumps(options)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[Any] = json.loads(done.stdout)
    assert all("\n" not in one for one in answers if isinstance(one, str))
    return answers


def test_streaming_and_cached_are_the_same(server: Server, tmp_path: Path) -> None:
    name = {"name": "librispeech_other"}
    limited, streamed, cached, whole = read(
        server, tmp_path, {**name, "limit": 5}, {**name, "limit": 5, "streaming": True},
        name, {**name, "streaming": True},
    )  # fmt: skip
    assert limited == streamed
    assert cached == whole
    origin = {"path": MAIN, "config": "librispeech", "split": "test.other", "revision": COMMIT}
    assert cached[0]["origin"] == origin
    assert cached[0]["ids"] == [row["id"] for row in OTHER]
    kept = chosen_rows(24, 5)
    assert limited[0]["ids"] == [OTHER[row]["id"] for row in kept]
    assert limited[0]["digests"] == [cached[0]["digests"][row] for row in kept]
    assert (limited[0]["heard"], cached[0]["heard"]) == (5, 24)


def test_a_limit_fetches_row_groups_only(server: Server, tmp_path: Path) -> None:
    before = server.sent()
    read(server, tmp_path, {"name": "librispeech_other", "limit": 1, "streaming": True})
    audio = [len(row["audio"]["bytes"]) for row in OTHER]
    (row,) = chosen_rows(24, 1)
    start = row // 8 * 8 + row % 8 // 3 * 3  # shards of 8 rows, row groups of 3
    footers = 3 * 2**16  # what pyarrow asks for at once at a file's end, for its footer
    assert server.sent() - before < sum(audio[start : start + 3]) + footers + 30_000


def test_without_a_network_what_is_cached_is_read(server: Server, tmp_path: Path) -> None:
    options = {"name": "librispeech_other"}
    (first,) = read(server, tmp_path, options)
    elsewhere = {"name": "common_voice"}
    again, uncached = read(server, tmp_path, options, elsewhere, HF_HUB_OFFLINE="1")
    assert again == first
    assert "HF_HUB_OFFLINE forbids to fetch it" in uncached
    again, uncached = read(server, tmp_path, options, elsewhere, HF_ENDPOINT="http://127.0.0.1:9")
    assert again == first
    assert "cannot be fetched from the hub" in uncached
    next(tmp_path.rglob("test.other-00002*")).unlink()
    (torn,) = read(server, tmp_path, options, HF_HUB_OFFLINE="1")
    assert "is not in the cache as a whole" in torn


def test_other_layouts_on_the_hub(server: Server, tmp_path: Path) -> None:
    bare = {"name": "hf", "path": "some/bare", "config": "librispeech", "split": "test.other"}
    files = {"name": "hf", "path": "some/files", "streaming": True}
    by_names, streamed, cached = read(
        server, tmp_path, {**bare, "limit": 2}, files, {**files, "streaming": False}
    )
    assert by_names[0]["ids"] == [OTHER[row]["id"] for row in chosen_rows(24, 2)]
    assert streamed[0]["ids"] == cached[0]["ids"] == [row["id"] for row in OTHER[:3]]
    assert streamed[0]["heard"] == cached[0]["heard"] == 3


def test_a_protocol_names_the_repository(server: Server, tmp_path: Path) -> None:
    one = {"name": "librispeech_other", "limit": 1}
    old, new, group = read(
        server, tmp_path, one, {**one, "protocol": "open_asr_2026"},
        {"name": "open_asr_2026", "sets": ["librispeech_other", "common_voice"], "limit": 1},
    )  # fmt: skip
    assert [part["origin"]["path"] for part in (*old, *new, *group)] == [
        MAIN, "hf-audio/open-asr-leaderboard", "hf-audio/open-asr-leaderboard", MAIN,
    ]  # fmt: skip


def test_refusals_without_a_token(server: Server, tmp_path: Path) -> None:
    part = {"name": "hf", "config": "librispeech", "split": "test.other", "limit": 1}
    gated, private, missing, revision, script, config, split = read(
        server, tmp_path,
        {**part, "path": "some/gated"}, {**part, "path": "some/private"},
        {**part, "path": "some/nothing"}, {**part, "path": MAIN, "revision": "v9"},
        {"name": "hf", "path": "some/script"}, {"name": "ami"},
        {**part, "path": MAIN, "split": "test.othr"},
    )  # fmt: skip
    assert "is gated" in gated
    assert "https://huggingface.co/datasets/some/gated" in gated
    assert "HF_TOKEN" in gated
    assert "HF_TOKEN is not set" in private
    assert private.replace("private'", "nothing'", 1) == missing, "the hub does not tell them apart"
    assert "has no revision 'v9'" in revision
    assert "is a program (a loading script), which is never run" in script
    assert "has no config 'ami'" in config
    assert "did you mean test.other?" in split


@pytest.mark.parametrize(
    ("token", "gated", "private"),
    [
        ("other", "accept its conditions at https://huggingface.co", "the token in use may not"),
        ("bad", "does not know the token in use", "does not know the token in use"),
        ("good", "", ""),
    ],
)
def test_refusals_with_a_token(
    server: Server, tmp_path: Path, token: str, gated: str, private: str
) -> None:
    part = {"name": "hf", "config": "common_voice", "limit": 1}
    options = [{**part, "path": f"some/{name}"} for name in ("gated", "private")]
    for said, expected in zip(
        read(server, tmp_path, *options, HF_TOKEN=token), (gated, private), strict=True
    ):
        assert expected in said if expected else said[0]["heard"] == 1

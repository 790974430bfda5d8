"""A server that answers as the Hugging Face hub does, for a folder of data sets on this machine.

`huggingface_hub` and `datasets` are real in the tests that use it; only the other end of the
connection is not. Run as a program it prints its address: `python tests/fake_hub.py FOLDER LOG`,
where FOLDER/OWNER/NAME is a data set and LOG gets a line for every answer: method, path, bytes.

A data set's folder may hold `.answer`, JSON: `status` and `code` refuse every request, `token`
those without that token. Answers follow https://huggingface.co/docs/hub/api and
huggingface_hub/utils/_http.py (2.4.0), which says what it expects.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", COMMIT)


class Hub(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    root: Path
    log: Path

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "api":
            parts = parts[1:]
        if parts[0] != "datasets" or len(parts) < 3:
            return self._refuse(404, "EntryNotFound")
        folder = self.root / parts[1] / parts[2]
        kind, revision, rest = [*parts[3:], "", ""][0], [*parts[4:], ""][0], parts[5:]
        if not folder.is_dir():
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        refused = self._refusal(folder)
        if refused:
            return self._refuse(*refused)
        if kind and revision not in REVISIONS:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if kind == "resolve":
            return self._file(folder.joinpath(*rest))
        if kind == "tree":
            if not folder.joinpath(*rest).is_dir():
                return self._refuse(404, "EntryNotFound")
            return self._json([self._entry(folder, one) for one in self._tree(folder, rest)])
        if kind == "paths-info":
            there = [folder / name for name in form.get("paths", [])]
            return self._json([self._entry(folder, one) for one in there if one.exists()])
        names = [one.relative_to(folder).as_posix() for one in _files(folder)]
        siblings = [{"rfilename": name} for name in names]
        identity = "/".join(parts[1:3])
        return self._json({"id": identity, "sha": COMMIT, "siblings": siblings, "tags": []})

    def _refusal(self, folder: Path) -> tuple[int, str, str] | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == "bad":
            return 401, "", "Invalid credentials in Authorization header"
        rule = folder / ".answer"
        if not rule.is_file():
            return None
        said: dict[str, Any] = json.loads(rule.read_text())
        if token and token == said.get("token"):
            return None
        return (403 if token else said["status"]), said["code"], said.get("message", "restricted")

    def _tree(self, folder: Path, rest: list[str]) -> list[Path]:
        inside = folder.joinpath(*rest)
        deep = "recursive=true" in self.path.lower()
        found = inside.rglob("*") if deep else inside.iterdir()
        return sorted(one for one in found if one.name != ".answer")

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        return {"type": "file", "oid": _etag(path), "size": path.stat().st_size, "path": name}

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        content = path.read_bytes()
        total, status = len(content), 200
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            last = min(int(end) if end else total - 1, total - 1)
            content, status = content[int(start) : last + 1], 206
            headers["Content-Range"] = f"bytes {start}-{last}/{total}"
        self._send(status, content, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str = "Not found") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            with self.log.open("a") as log:
                log.write(f"{self.command} {self.path} {len(content)}\n")

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: the log says what was answered."""


def _files(folder: Path) -> list[Path]:
    return sorted(one for one in folder.rglob("*") if one.is_file() and one.name != ".answer")


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    Hub.root, Hub.log = Path(sys.argv[1]), Path(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()

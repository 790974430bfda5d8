"""A stream of audio inside a file: which of the bytes libsndfile is to read as one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from mmap import mmap

Content = bytes | mmap


class DamagedAudio(Exception):
    """A clip that cannot be used; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Stream:
    """One stream of a file.

    Attributes:
        content: The file.
        head: What libsndfile reads first: a header put right.
        start, end: The part of `content` that it reads after `head`.
        following: Where the file goes on behind the stream.
        last: What the stream ends with, in words.
        declared: How much audio the header promises, in `unit`; the same as `present` where it
            promises nothing.
        present: How much of it the file holds.
        unit: What those two count.
        flags: What is doubtful about the stream.
    """

    content: Content
    head: bytes
    start: int
    end: int
    following: int
    last: str
    declared: int = 1
    present: int = 1
    unit: str = "bytes"
    flags: tuple[str, ...] = ()

    def file(self) -> StreamFile:
        """The bytes of this stream as a file."""
        return StreamFile(self)


class StreamFile:
    """A stream as libsndfile reads it, without a copy of its content.

    It seeks anywhere and never raises: an exception could not pass through libsndfile.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._size = len(stream.head) + stream.end - stream.start
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        stream, begin = self._stream, self._position
        end = min(begin + max(count, 0), self._size)
        if end <= begin:
            return b""
        self._position = end
        # Behind the head, position 0 of the file is this one of the content.
        origin = stream.start - len(stream.head)
        first, last = max(begin + origin, stream.start), max(end + origin, stream.start)
        return stream.head[begin:end] + stream.content[first:last]

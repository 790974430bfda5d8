"""Ogg: chained streams, of which libsndfile reads the first, and pages that are damaged.

Source: RFC 3533, section 6 (pages).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from edge_asr.audio.stream import Content, DamagedAudio, Stream

HEADER_BYTES = 27
BEGINS, ENDS = 2, 4  # flags of a page
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Page:
    """A whole page: where it ends, its flags, and whether its checksum is right."""

    end: int
    flags: int
    intact: bool


def ogg_streams(content: Content, start: int) -> list[Stream]:
    """The stream that begins at `start`, up to the next one's first page.

    Raises DamagedAudio where a page is cut off or damaged: how much it held, nothing says.
    """
    position, flags, has_body = start, 0, False
    while page := _page(content, position):
        if not page.intact:
            raise DamagedAudio("a page of the Ogg file is damaged")
        # Streams side by side (sound and film) all begin before any goes on.
        if page.flags & BEGINS and has_body:
            break
        has_body = has_body or not page.flags & BEGINS
        position, flags = page.end, page.flags
    rest = content[position : position + 4]
    if page is None and rest and b"OggS".startswith(rest):
        raise DamagedAudio("cut off inside a page of the Ogg file")
    if not has_body:
        raise DamagedAudio("not readable as audio: no page of Ogg audio")
    told = () if flags & ENDS else ("the Ogg stream has no last page",)
    return [Stream(content, b"", start, position, position, "last page", flags=told)]


def _page(content: Content, position: int) -> Page | None:
    """The page at `position`, or None where none begins or it is cut off."""
    head = content[position : position + HEADER_BYTES + 255]
    if head[:4] != b"OggS" or len(head) < HEADER_BYTES:
        return None
    segments = head[26]
    lengths = head[HEADER_BYTES : HEADER_BYTES + segments]
    end = position + HEADER_BYTES + segments + sum(lengths)
    if len(lengths) < segments or end > len(content):
        return None
    checked = content[position : position + 22] + bytes(4) + content[position + 26 : end]
    return Page(end, head[5], _checksum(checked) == int.from_bytes(head[22:26], "little"))


def _checksum(content: bytes) -> int:
    """Ogg's CRC-32: that of zlib with the bits of every byte, and of the result, in reverse order,
    and without its inversions."""
    crc = zlib.crc32(content.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)

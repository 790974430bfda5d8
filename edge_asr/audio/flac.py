"""FLAC: where the last frame ends and how many samples there are up to it.

A FLAC that was streamed does not say its length, and libsndfile reads none without; of one that is
joined to another, or has garbage behind it, nothing says where it ends.

Source: RFC 9639, sections 8 (metadata) and 9 (frames).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_asr.audio.stream import Content, DamagedAudio, Stream
from edge_asr.audio.tags import behind_tags

# "fLaC" and the header of the one metadata block that must follow.
BEGINNING = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
STREAMINFO = 8  # where its body begins
SYNCHRONISATION = re.compile(rb"\xff[\xf8\xf9]")
# Behind these, a frame that cannot be found is not there.
CANDIDATES = 64
FRAME_BYTES = 1 << 20


@dataclass(frozen=True)
class Frame:
    """A frame's place in the file and in the stream."""

    start: int
    end: int
    samples_before: int
    samples: int

    @property
    def samples_until(self) -> int:
        return self.samples_before + self.samples


def flac_streams(content: Content, start: int) -> list[Stream]:
    """The stream that begins at `start`.

    Raises DamagedAudio where no whole frame is found.
    """
    beginning = content[start : start + STREAMINFO + 34]
    if len(beginning) < STREAMINFO + 34 or not BEGINNING.match(beginning):
        raise DamagedAudio("not readable as audio: the header of a FLAC file is cut off")
    joined = BEGINNING.search(content, start + STREAMINFO)
    bound = joined.start() if joined else len(content)
    block_size = int.from_bytes(beginning[STREAMINFO + 2 : STREAMINFO + 4], "big")
    last = _last_frame(content, start + STREAMINFO + 34, bound, block_size)
    if last is None:
        raise DamagedAudio("not readable as audio: no whole FLAC frame")
    # The lower 36 bits of these 8 bytes, behind rate, channels and bits.
    packed = int.from_bytes(beginning[STREAMINFO + 10 : STREAMINFO + 18], "big")
    claimed = packed & (1 << 36) - 1
    head = b""
    flags: tuple[str, ...] = ()
    if claimed != last.samples_until:
        packed += last.samples_until - claimed
        head = beginning[: STREAMINFO + 10] + packed.to_bytes(8, "big")
    if 0 < claimed < last.samples_until:
        flags = (f"header claims {claimed} samples, the file holds {last.samples_until}",)
    return [
        Stream(
            content,
            head,
            start + len(head),
            last.end,
            last.end,
            "last frame",
            max(claimed, last.samples_until),
            last.samples_until,
            "samples",
            flags,
        )
    ]


def _last_frame(content: Content, start: int, bound: int, block_size: int) -> Frame | None:
    """The last whole frame before `bound`: one whose checksum is right."""
    position = bound
    for _ in range(CANDIDATES):
        position = _synchronisation_before(content, start, position)
        if position < 0:
            return None
        header = _header(content[position : position + 16], block_size)
        if header is None:
            continue
        length, before, samples = header
        end = _end(content, position, position + length, bound)
        if end is not None:
            return Frame(position, end, before, samples)
    return None


def _synchronisation_before(content: Content, start: int, position: int) -> int:
    while True:
        position = content.rfind(b"\xff", start, position)
        if position < 0 or SYNCHRONISATION.match(content, position):
            return position


def _header(head: bytes, block_size: int) -> tuple[int, int, int] | None:
    """Length of a frame's header, samples before the frame and in it; None where it is none."""
    if len(head) < 6 or head[3] & 1 or head[2] >> 4 == 0:
        return None
    # The number of the frame or of its first sample, as UTF-8 would write it, up to 36 bits.
    extra = max(8 - (head[4] ^ 0xFF).bit_length() - 1, 0)
    if extra > 6 or head[4] >> 6 == 2 or len(head) < 5 + extra:
        return None
    number = head[4] & (0x7F if extra == 0 else 0x3F >> extra)
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    at = 5 + extra
    code = head[2] >> 4
    if code in (6, 7):
        samples = int.from_bytes(head[at : at + code - 5], "big") + 1
        at += code - 5
    else:
        samples = 192 if code == 1 else 144 << code if code < 6 else 1 << code
    at += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    varying = head[1] & 1
    return at + 1, number if varying else number * block_size, samples


def _end(content: Content, start: int, behind_header: int, bound: int) -> int | None:
    """Where the frame ends: its checksum, behind it, makes that of the whole zero.

    The bound where that holds there, else the place before a tag, else the first.
    """
    body = content[start : min(bound, start + FRAME_BYTES)]
    crc = 0
    ends = []
    for index, byte in enumerate(body, 1):
        crc = (crc << 8 & 0xFFFF) ^ CRC16[crc >> 8 ^ byte]
        if not crc and start + index > behind_header + 2:
            ends.append(start + index)
    if ends and ends[-1] == bound:
        return bound
    return next((end for end in ends if behind_tags(content, end) > end), ends[0] if ends else None)


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << bits - 8
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> bits - 1 else 0)
            crc &= (1 << bits) - 1
        table.append(crc)
    return tuple(table)


CRC8 = _crc_table(0x07, 8)
CRC16 = _crc_table(0x8005, 16)


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc = CRC8[crc ^ byte]
    return crc

"""MPEG audio: which frames a file holds, whatever its header says.

libsndfile believes the header's count of frames, and guesses without one: of a file at a variable
bit rate it then reads too much or too little, of joined files the first.

Sources: ISO/IEC 11172-3 and 13818-3 (frame headers); K. Windström, "MP3 Audio File Info Header" of
LAME, and Fraunhofer's VBRI header (the count of frames).
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.audio.stream import Content, DamagedAudio, Stream
from edge_asr.audio.tags import behind_tags

# kbit/s by the index in the header, from 1 to 14.
BIT_RATES = {
    ("1", 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    ("1", 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    ("1", 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    ("2", 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    ("2", 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    ("2", 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SAMPLING_RATES = (44_100, 48_000, 32_000)
# Of a header: synchronisation, version, layer and sampling rate, the same in all frames.
SAME = 0xFFFE0C00
FRAMES_TO_BELIEVE = 3  # so many in a row are no chance
SEARCHED_BYTES = 65_536
OTHER_STREAMS = (b"RIFF", b"RF64", b"OggS", b"fLaC")


@dataclass(frozen=True)
class Frame:
    """One frame: its header, four bytes as a number, and its length in bytes."""

    header: int
    length: int

    @property
    def kind(self) -> int:
        return self.header & SAME

    @property
    def side_information(self) -> int:
        """Bytes between the header and where the count of frames may stand (layer III)."""
        mono = self.header >> 6 & 3 == 3
        if self.header >> 19 & 3 == 3:
            return 17 if mono else 32
        return 9 if mono else 17


@dataclass(frozen=True)
class Run:
    """Frames without a gap: their number without that of the header, and where they are."""

    start: int
    end: int
    frames: int
    declared: int | None


def frame_at(content: Content, position: int) -> Frame | None:
    """The frame whose header is at `position`, or None where there is none."""
    header = int.from_bytes(content[position : position + 4], "big")
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bit_rate, rate = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or rate == 3 or bit_rate in (0, 15):
        return None
    kbits = BIT_RATES["1" if version == 3 else "2", layer][bit_rate - 1]
    hertz = SAMPLING_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    padding = header >> 9 & 1
    if layer == 1:
        return Frame(header, (12_000 * kbits // hertz + padding) * 4)
    halved = layer == 3 and version != 3
    return Frame(header, (72_000 if halved else 144_000) * kbits // hertz + padding)


def is_mp3(content: Content, position: int) -> bool:
    """Whether frames begin at `position`: a few in a row, or some up to a tag or the end."""
    kind, here = None, position
    for _ in range(FRAMES_TO_BELIEVE):
        frame = frame_at(content, here)
        if frame is None or kind not in (None, frame.kind):
            tagged = behind_tags(content, here)
            return here > position and (tagged > here or here == len(content))
        kind, here = frame.kind, here + frame.length
    return here <= len(content)


def find_mp3(content: Content, position: int) -> int | None:
    """Where frames begin, not far behind `position`."""
    limit = min(position + SEARCHED_BYTES, len(content))
    while (position := content.find(b"\xff", position, limit)) >= 0:
        if is_mp3(content, position):
            return position
        position += 1
    return None


def mp3_streams(content: Content, start: int) -> list[Stream]:
    """The frames from `start` on, up to a tag, the header of another file, or what is no frame.

    Raises DamagedAudio where there are none.
    """
    runs = [_run(content, start)]
    skipped = 0
    while (position := runs[-1].end) < len(content):
        if behind_tags(content, position) > position:
            break
        if content[position : position + 4] in OTHER_STREAMS:
            break
        found = find_mp3(content, position)
        if found is None or _declared_frames(content, found) is not None:
            break
        skipped += found - position
        runs.append(_run(content, found))
    present = sum(run.frames for run in runs)
    if not present:
        raise DamagedAudio("not readable as audio: no MP3 frame")
    declared = runs[0].declared or present
    end = runs[-1].end
    rest = frame_at(content, end)
    flags = [f"{skipped} bytes between MP3 frames"] if skipped else []
    if declared < present:
        flags.append(f"header claims {declared} MP3 frames, the file holds {present}")
    # The end of a file inside a frame is no garbage behind the last.
    inside = rest is not None and end + rest.length > len(content)
    if inside and declared == present:
        flags.append("the last MP3 frame is cut off")
    following = len(content) if inside else end
    streams = [_stream(content, run, following) for run in runs if run.frames]
    streams[0] = Stream(
        content, streams[0].head, streams[0].start, streams[0].end, following, "last frame",
        max(declared, present), present, "MP3 frames", tuple(flags),
    )  # fmt: skip
    return streams


def _stream(content: Content, run: Run, following: int) -> Stream:
    """A run with a header that says how many frames it has: its own where that is right."""
    if run.declared == run.frames:
        return Stream(content, b"", run.start, run.end, following, "last frame")
    first = frame_at(content, run.start)
    assert first is not None
    start = run.start + (first.length if run.declared is not None else 0)
    return Stream(content, _header(first, run.frames), start, run.end, following, "last frame")


def _run(content: Content, start: int) -> Run:
    declared = _declared_frames(content, start)
    position, frames, kind = start, 0, None
    while frame := frame_at(content, position):
        if kind not in (None, frame.kind) or position + frame.length > len(content):
            break
        kind = frame.kind
        # The header of a file that was joined to this one.
        if position > start and _declared_frames(content, position, frame) is not None:
            break
        position += frame.length
        frames += 1
    return Run(start, position, max(frames - (declared is not None), 0), declared)


def _declared_frames(content: Content, position: int, frame: Frame | None = None) -> int | None:
    """The count of frames in a frame that holds it, 0 where it does not; None of other frames."""
    frame = frame or frame_at(content, position)
    if frame is None:
        return None
    body = content[position + 4 : position + min(frame.length, 64)]
    if body[32:36] == b"VBRI":
        return int.from_bytes(body[46:50], "big")
    for checksum in (0, 2):
        at = frame.side_information + checksum
        if body[at : at + 4] in (b"Xing", b"Info"):
            has_count = int.from_bytes(body[at + 4 : at + 8], "big") & 1
            return int.from_bytes(body[at + 8 : at + 12], "big") if has_count else 0
    return None


def _header(like: Frame, frames: int) -> bytes:
    """A frame that says how many follow it; nothing for layers I and II, whose rate is constant."""
    if 4 - (like.header >> 17 & 3) != 3:
        return b""
    # No checksum, and a bit rate at which the frame has room for the count.
    header = (like.header | 1 << 16) & ~(0xF << 12 | 1 << 9) | 8 << 12
    frame = frame_at(header.to_bytes(4, "big"), 0)
    assert frame is not None
    body = bytes(frame.side_information) + b"Xing" + (1).to_bytes(4, "big")
    content = header.to_bytes(4, "big") + body + frames.to_bytes(4, "big")
    return content.ljust(frame.length, b"\0")

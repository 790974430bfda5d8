"""Containers of samples that say how many bytes there are: WAV and its kin, AIFF, AU, CAF, NIST.

A header may be wrong: of a file cut short, of one streamed through a pipe, of a recorder that died.
Each function reads the stream that begins at `start` and compares the header with the file.

Sources: Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (RIFF);
EBU Tech 3306 (RF64) and ITU-R BS.2088 (BW64); Sony, "Wave64"; Apple, "Audio Interchange File
Format" and "Core Audio Format Specification"; Sun's audio(5) file format; NIST, "SPHERE".
"""

from __future__ import annotations

import dataclasses
import re
import struct
from dataclasses import dataclass
from typing import Literal

from edge_asr.audio.mp3 import mp3_streams
from edge_asr.audio.stream import Content, DamagedAudio, Stream

# Written where the length was not known, by programs that do not write 0xFFFFFFFF: about 2 GB.
PLACEHOLDER = 0x7FFF0000
MP3_IN_WAV = 0x55  # WAVE_FORMAT_MPEGLAYER3
Order = Literal["big", "little"]
# The last six bytes of the identifiers of Wave64.
W64_FAMILIES = (bytes.fromhex("00c04f8edb8a"), bytes.fromhex("28db04c10000"))
W64_FILE = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
# A file that was joined to another looks like one of its chunks.
FILES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", W64_FILE)


@dataclass(frozen=True)
class ChunkLayout:
    """How a container writes its chunks.

    Attributes:
        header: Identifier and size.
        audio: Identifier of the chunk that holds the samples.
        alignment: Chunks begin at multiples of this many bytes.
        inclusive: Whether the size counts the header.
    """

    header: struct.Struct
    audio: bytes
    alignment: int = 2
    inclusive: bool = False

    @property
    def unknown(self) -> int:
        """The size that means: to the end of the file."""
        return 2 ** (64 if self.header.size > 8 else 32) - 1

    def read(self, content: Content, position: int) -> tuple[bytes, int] | None:
        """Identifier and size of the chunk at `position`, or None where none can begin."""
        head = content[position : position + self.header.size]
        if len(head) < self.header.size:
            return None
        name, size = self.header.unpack(head)
        known = name[-6:] in W64_FAMILIES if len(name) > 4 else _printable(name)
        if self.inclusive and size != self.unknown:
            size -= self.header.size
        return (name, size) if known and size >= 0 else None

    def behind(self, content: Content, end: int, size: int) -> int:
        """Where the next chunk begins; some programs forget the padding."""
        padded = end + -size % self.alignment
        if padded > end and self.read(content, end) and not self.read(content, padded):
            return end
        return min(padded, len(content))


RIFF = ChunkLayout(struct.Struct("<4sI"), b"data")
RIFX = ChunkLayout(struct.Struct(">4sI"), b"data")
AIFF = ChunkLayout(struct.Struct(">4sI"), b"SSND")
W64 = ChunkLayout(struct.Struct("<16sQ"), W64_DATA, alignment=8, inclusive=True)
CAF = ChunkLayout(struct.Struct(">4sQ"), b"data", alignment=1)


@dataclass(frozen=True)
class Chunks:
    """The chunks of a container.

    Attributes:
        bodies: Where the body of each begins.
        audio, size: Where the samples begin, and how many bytes of them the header promises.
        end: Behind the last chunk.
    """

    bodies: dict[bytes, int]
    audio: int
    size: int
    end: int


def wav_streams(content: Content, start: int) -> list[Stream]:
    """WAV, RF64 or BW64, which libsndfile gets as a WAV with a right header."""
    magic = content[start : start + 4]
    layout = RIFX if magic == b"RIFX" else RIFF
    chunks = _chunks(content, start + 12, layout)
    stream = _sized(content, chunks, layout, re.compile(re.escape(magic) + b"....WAVE", re.DOTALL))
    # Where MP3 frames are wrapped, libsndfile would guess the length.
    if _format_tag(content, chunks, layout) == MP3_IN_WAV:
        inner = mp3_streams(content[stream.start : stream.end], 0)
        return [
            *inner[:-1],
            dataclasses.replace(inner[-1], following=stream.following),
        ]
    head = bytearray(content[start : chunks.audio])
    if stream.present <= 0xFFFFFFFF:
        head[:4] = b"RIFX" if magic == b"RIFX" else b"RIFF"
        head[-4:] = stream.present.to_bytes(4, "big" if magic == b"RIFX" else "little")
        if b"ds64" in chunks.bodies:
            at = chunks.bodies[b"ds64"] - layout.header.size - start
            head[at : at + 4] = b"JUNK"
    else:
        head[:4] = b"RF64"
    return [dataclasses.replace(stream, head=bytes(head))]


def w64_streams(content: Content, start: int) -> list[Stream]:
    """Sony Wave64."""
    chunks = _chunks(content, start + 40, W64)
    stream = _sized(content, chunks, W64, re.compile(re.escape(content[start : start + 16])))
    size = (stream.present + W64.header.size).to_bytes(8, "little")
    return [dataclasses.replace(stream, head=content[start : chunks.audio - 8] + size)]


def caf_streams(content: Content, start: int) -> list[Stream]:
    """Apple Core Audio Format. The chunks behind the samples may be needed to decode them."""
    chunks = _chunks(content, start + 8, CAF)
    stream = _sized(content, chunks, CAF, re.compile(b"caff\0\1\0\0"))
    head = content[start : chunks.audio - 8] + stream.present.to_bytes(8, "big")
    return [dataclasses.replace(stream, head=head, end=stream.following)]


def aiff_streams(content: Content, start: int) -> list[Stream]:
    """AIFF and AIFF-C. Their description may follow the samples."""
    chunks = _chunks(content, start + 12, AIFF)
    stream = _sized(content, chunks, AIFF, re.compile(b"FORM....AIF[FC]", re.DOTALL))
    head = content[start : chunks.audio - 4] + stream.present.to_bytes(4, "big")
    return [dataclasses.replace(stream, head=head, end=stream.following)]


def au_streams(content: Content, start: int) -> list[Stream]:
    """Sun and NeXT's AU."""
    order: Order = "big" if content[start : start + 4] == b".snd" else "little"
    offset, size = (int.from_bytes(content[start + at : start + at + 4], order) for at in (4, 8))
    audio = start + offset
    if offset < 24 or audio > len(content):
        raise DamagedAudio("not readable as audio: the header of an AU file is cut off")
    end = min(audio + size, len(content))
    magic = re.compile(re.escape(content[start : start + 4]) + b"\0\0|dns.")
    stream = _sized(content, Chunks({}, audio, size, end), RIFF, magic)
    head = content[start : start + 8] + stream.present.to_bytes(4, order)
    return [dataclasses.replace(stream, head=head + content[start + 12 : audio])]


def nist_streams(content: Content, start: int) -> list[Stream]:
    """NIST SPHERE, as long as it is not compressed."""
    size = re.match(rb"NIST_1A\n *(\d{1,6})\n", content[start : start + 16])
    header = content[start : start + int(size[1])] if size else b""
    counts = [
        re.search(rb"\n%s -i (\d{1,12})\s" % name, header)
        for name in (b"sample_count", b"sample_n_bytes", b"channel_count")
    ]
    if not header or not counts[0]:
        raise DamagedAudio("not readable as audio: the header of a NIST file is cut off")
    claimed = 1
    for count in counts:
        claimed *= int(count[1]) if count else 1
    audio = start + len(header)
    end = min(audio + claimed, len(content))
    stream = _sized(content, Chunks({}, audio, claimed, end), CAF, re.compile(b"NIST_1A\n"))
    return [dataclasses.replace(stream, head=header)]


def _printable(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name)


def _chunks(content: Content, position: int, layout: ChunkLayout) -> Chunks:
    """Raises DamagedAudio where there is no chunk of samples."""
    bodies: dict[bytes, int] = {}
    audio, audio_size = -1, 0
    while found := layout.read(content, position):
        name, size = found
        body = position + layout.header.size
        is_audio = name == layout.audio
        if name in FILES or (not is_audio and body + size > len(content)):
            break
        if is_audio:
            if audio >= 0:
                break  # A second chunk of samples: nobody would read it, so it is left over.
            if size == layout.unknown and b"ds64" in bodies:
                size = int.from_bytes(content[bodies[b"ds64"] + 8 :][:8], "little")
            audio, audio_size = body, size
        bodies[name] = body
        position = layout.behind(content, body + size, size)
    if audio < 0:
        raise DamagedAudio("not readable as audio: no samples behind the header")
    return Chunks(bodies, audio, audio_size, position)


def _sized(
    content: Content, chunks: Chunks, layout: ChunkLayout, beginning: re.Pattern[bytes]
) -> Stream:
    """The stream of samples whose size may be wrong; its head is still to be put right.

    `beginning` is what another stream of the kind begins with.
    """
    available = len(content) - chunks.audio
    flags: tuple[str, ...] = ()
    streamed = chunks.size in (layout.unknown, 2**64 - 1) or (
        chunks.size == 0 and chunks.end == chunks.audio
    )
    if not streamed and chunks.size > available and chunks.size >= PLACEHOLDER:
        streamed = True
        flags = (f"header claims {chunks.size} bytes of audio, the file holds {available}",)
    if streamed:
        joined = beginning.search(content, chunks.audio)
        end = following = joined.start() if joined else len(content)
        declared = present = end - chunks.audio
    else:
        declared, present = chunks.size, min(chunks.size, available)
        end, following = chunks.audio + present, chunks.end
    return Stream(
        content, b"", chunks.audio, end, following, "data chunk", declared, present, flags=flags
    )


def _format_tag(content: Content, chunks: Chunks, layout: ChunkLayout) -> int:
    body = chunks.bodies.get(b"fmt ", len(content))
    return int.from_bytes(content[body : body + 2], "big" if layout is RIFX else "little")

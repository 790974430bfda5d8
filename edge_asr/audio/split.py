"""Take a file apart into the streams of audio that it holds, and what is left over."""

from __future__ import annotations

from collections.abc import Callable

from edge_asr.audio.containers import (
    aiff_streams,
    au_streams,
    caf_streams,
    nist_streams,
    w64_streams,
    wav_streams,
)
from edge_asr.audio.flac import flac_streams
from edge_asr.audio.mp3 import find_mp3, is_mp3, mp3_streams
from edge_asr.audio.ogg import ogg_streams
from edge_asr.audio.stream import Content, DamagedAudio, Stream
from edge_asr.audio.tags import behind_tags

Parser = Callable[[Content, int], list[Stream]]
# What a file begins with, and for the containers of several kinds what follows 8 bytes in.
PARSERS: tuple[tuple[bytes, bytes, Parser], ...] = (
    (b"RIFF", b"WAVE", wav_streams),
    (b"RIFX", b"WAVE", wav_streams),
    (b"RF64", b"WAVE", wav_streams),
    (b"BW64", b"WAVE", wav_streams),
    (b"FORM", b"AIFF", aiff_streams),
    (b"FORM", b"AIFC", aiff_streams),
    (b"riff\x2e\x91\xcf\x11", b"", w64_streams),
    (b"caff", b"", caf_streams),
    (b".snd", b"", au_streams),
    (b"dns.", b"", au_streams),
    (b"NIST_1A\n", b"", nist_streams),
    (b"fLaC", b"", flac_streams),
    (b"OggS", b"", ogg_streams),
)
ACCEPTED = "WAV, FLAC, MP3, Ogg, AIFF, AU, CAF, W64, NIST"


def split(content: Content) -> tuple[list[Stream], tuple[str, ...]]:
    """The streams of a file, at least one, and what is doubtful about the file as a whole.

    The content decides, whatever the file is called.

    Raises:
        DamagedAudio: when it begins with no audio that can be read.
    """
    streams: list[Stream] = []
    flags: list[str] = []
    files = 0
    position = behind_tags(content, 0)
    parser = _parser(content, position)
    if parser is None:
        begin = find_mp3(content, position)
        if begin is None:
            raise DamagedAudio(f"not readable as audio: none of {ACCEPTED}")
        flags.append(f"{begin - position} bytes before the first MP3 frame")
        position, parser = begin, mp3_streams
    while parser is not None:
        try:
            found = parser(content, position)
        except DamagedAudio:
            if not files:
                raise
            break
        files += 1
        streams += found
        position = behind_tags(content, found[-1].following)
        parser = _parser(content, position)
    if files > 1:
        flags.append(f"{files} files joined to one, all of them read")
    left = content[position:] if len(content) - position == 1 else b""
    if position < len(content) and left != b"\0":  # one zero is padding
        flags.append(f"{len(content) - position} bytes behind the {streams[-1].last}")
    return streams, tuple(flags)


def _parser(content: Content, position: int) -> Parser | None:
    head = content[position : position + 12]
    for magic, kind, parser in PARSERS:
        if head.startswith(magic) and (not kind or head[8:] == kind):
            return parser
    return mp3_streams if is_mp3(content, position) else None

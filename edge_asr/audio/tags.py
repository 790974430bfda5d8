"""Tags that tell of title and artist, before or behind the audio of any format.

Sources: id3.org, "ID3v2.4.0 main structure" and "ID3v1"; Monkey's Audio, "APEv2 specification".
"""

from __future__ import annotations

from edge_asr.audio.stream import Content

ID3V1_BYTES = 128


def behind_tags(content: Content, position: int) -> int:
    """Where the file goes on behind the tags that begin at `position`, if any do."""
    while position < len(content):
        head = content[position : position + 32]
        if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:
            size = sum(
                byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
            )
            footer = 10 if head[5] & 0x10 else 0
            behind = position + 10 + size + footer
        elif head[:3] == b"TAG" and position + ID3V1_BYTES == len(content):
            behind = len(content)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            # The size counts the footer, not the header, which this is where its bit 29 says so.
            is_header = head[23] & 0x20
            behind = position + int.from_bytes(head[12:16], "little") + (32 if is_header else 0)
        else:
            return position
        if behind > len(content):
            return position
        position = behind
    return position

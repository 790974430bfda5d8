"""Audio that went wrong: every case of the shared folder, and the rest of its kind.

The shared clips are recordings of a few sentences, so that what is decoded can be compared with
the same sentence in a sound file.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from shared import shared
from tiny import tone

from edge_asr.audio import DamagedAudio, Decoded, decode
from edge_asr.audio.mp3 import frame_at
from edge_asr.data.corpus import DamagedClip, Utterance
from edge_asr.data.manifest import ManifestCorpus

RATE = 16_000
SPEECH = tone(2.0)
GARBAGE = bytes(range(7, 207)) * 20


def written(
    kind: str, subtype: str | None = None, samples: np.ndarray = SPEECH, rate: int = RATE
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def case(name: str) -> list[Utterance | DamagedClip]:
    return list(ManifestCorpus(shared(f"cases/{name}/m.jsonl")))


def flags(clip: Utterance | DamagedClip) -> tuple[str, ...]:
    assert isinstance(clip, Utterance), clip
    return clip.flags


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def data_size(wav: bytes, size: int) -> bytes:
    """A WAV with another size of its data chunk."""
    return patched(wav, wav.index(b"data") + 4, struct.pack("<I", size))


def without_total(flac: bytes) -> bytes:
    """A FLAC that does not say how many samples it holds."""
    return patched(patched(flac, 21, bytes([flac[21] & 0xF0])), 22, bytes(4))


def same(decoded: Decoded, samples: np.ndarray = SPEECH, tolerance: float = 1e-4) -> bool:
    return len(decoded.samples) == len(samples) and bool(
        np.abs(decoded.samples - samples).max() < tolerance
    )


def test_case_flac_unknown_length() -> None:
    clip, _ = case("flac-unknown-length")
    assert flags(clip) == ()
    sound = soundfile.read(shared("cases/audiofolder/a.wav"), dtype="float32")[0]
    assert isinstance(clip, Utterance)
    assert len(clip.samples) == len(sound)
    assert np.abs(clip.samples - sound).max() < 2 / 32_768


def test_case_float_wav_at_integer_scale() -> None:
    (clip,) = case("float-wav-int16-scale")
    assert flags(clip) == ("float samples at integer scale, divided by 32768",)
    assert isinstance(clip, Utterance)
    assert 0.1 < np.abs(clip.samples).max() <= 1


def test_case_stereo_antiphase() -> None:
    (clip,) = case("stereo-antiphase")
    assert flags(clip) == ("channels cancel, channel 1 of 2 used",)
    assert isinstance(clip, Utterance)
    left = soundfile.read(shared("cases/stereo-antiphase/anti.wav"), dtype="float32")[0][:, 0]
    np.testing.assert_array_equal(clip.samples, left)


def test_case_stream_concatenated() -> None:
    for clip in case("stream-concatenated"):
        assert flags(clip) == ("2 files joined to one, all of them read",)
        assert isinstance(clip, Utterance)
        assert clip.seconds > 4.3


def test_case_wav_header_short() -> None:
    (clip,) = case("wav-header-short")
    (flag,) = flags(clip)
    size = shared("cases/wav-header-short/crash.wav").stat().st_size
    assert isinstance(clip, Utterance)
    assert flag == f"{size - 44 - 2 * len(clip.samples)} bytes behind the data chunk"


def test_case_wav_header_zero() -> None:
    stream, _ = case("wav-header-zero")
    assert flags(stream) == ()
    assert isinstance(stream, Utterance)
    assert stream.seconds == pytest.approx(2.1, abs=0.01)


def test_case_raw_extension() -> None:
    clips = case("raw-extension")
    assert [flags(clip) for clip in clips] == [(), ()]


CUT: dict[str, Callable[[], bytes]] = {
    "WAV": lambda: written("WAV"),
    "WAVEX": lambda: written("WAVEX"),
    "RF64": lambda: written("RF64"),
    "AIFF": lambda: written("AIFF"),
    "AU": lambda: written("AU"),
    "W64": lambda: written("W64"),
    "CAF": lambda: written("CAF"),
    "NIST": lambda: written("NIST"),
    "FLAC": lambda: written("FLAC"),
    "MP3": lambda: written("MP3"),
    "Ogg Vorbis": lambda: written("OGG", "VORBIS"),
    "Ogg Opus": lambda: written("OGG", "OPUS"),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_cut_short_is_damaged(kind: str) -> None:
    content = CUT[kind]()
    assert decode(content).flags == ()
    for part in (0.5, 0.8):
        with pytest.raises(DamagedAudio, match="cut off"):
            decode(content[: int(len(content) * part)])


@pytest.mark.parametrize("kind", CUT)
def test_joined_files_are_all_heard_and_told(kind: str) -> None:
    content = CUT[kind]()
    decoded = decode(content + content)
    assert decoded.flags == ("2 files joined to one, all of them read",)
    np.testing.assert_array_equal(decoded.samples, np.tile(decode(content).samples, 2))


def test_joined_files_of_different_kinds_and_rates() -> None:
    parts = [written("WAV"), written("FLAC", rate=8_000), written("OGG"), written("MP3")]
    decoded = decode(b"".join(parts))
    assert decoded.flags == ("4 files joined to one, all of them read",)
    expected = np.concatenate([decode(part).samples for part in parts])
    np.testing.assert_array_equal(decoded.samples, expected)
    some = decode(b"".join(parts), offset=1.5, duration=2.0).samples
    np.testing.assert_array_equal(some, expected[24_000:56_000])


@pytest.mark.parametrize("kind", CUT)
def test_bytes_behind_the_audio_are_told(kind: str) -> None:
    content = CUT[kind]()
    decoded = decode(content + GARBAGE)
    (flag,) = decoded.flags
    assert flag.startswith(f"{len(GARBAGE)} bytes behind the ")
    np.testing.assert_array_equal(decoded.samples, decode(content).samples)


TAGS = {
    "ID3v1": b"TAG" + bytes(125),
    "ID3v2": b"ID3\4\0\0\0\0\0\x14" + bytes(20),
    "APE": b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 1 << 29) + bytes(8) + bytes(32),
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("tag", TAGS)
def test_tags_are_no_leftovers(kind: str, tag: str) -> None:
    content = CUT[kind]()
    before = TAGS[tag] if tag == "ID3v2" else b""
    decoded = decode(before + content + TAGS[tag])
    assert decoded.flags == ()
    np.testing.assert_array_equal(decoded.samples, decode(content).samples)


CHUNKS = {
    "none": b"",
    "LIST": b"LIST" + struct.pack("<I", 4) + b"INFO",
    "two": b"bext" + struct.pack("<I", 6) + b"abcdef" + b"id3 " + struct.pack("<I", 0),
    "odd": b"junk" + struct.pack("<I", 3) + b"abc\0" + b"fact" + struct.pack("<I", 0),
    "odd without padding": b"junk" + struct.pack("<I", 3) + b"abc" + b"fact" + struct.pack("<I", 0),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_behind_the_samples_are_no_leftovers(name: str) -> None:
    assert decode(written("WAV") + CHUNKS[name]).flags == ()


def test_a_second_chunk_of_samples_is_told() -> None:
    chunk = b"data" + struct.pack("<I", 1000) + bytes(1000)
    assert decode(written("WAV") + chunk).flags == ("1008 bytes behind the data chunk",)


@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_an_odd_number_of_bytes(pad: bytes) -> None:
    wav = written("WAV", "PCM_U8", SPEECH[:999])
    assert decode(wav[: wav.index(b"data") + 8 + 999] + pad).flags == ()


def test_sizes_that_nobody_knew() -> None:
    """Of a pipe: to the end of the file; about 2 GB, as some programs have it, is told."""
    wav = written("WAV")
    for size in (0, 0xFFFFFFFF):
        decoded = decode(data_size(wav, size))
        assert decoded.flags == ()
        assert same(decoded)
    for size in (0x7FFF0000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0):
        decoded = decode(data_size(wav, size))
        assert decoded.flags == (f"header claims {size} bytes of audio, the file holds 64000",)
        assert same(decoded)
    joined = data_size(wav, 0xFFFFFFFF) + data_size(wav, 0)
    assert decode(joined).flags == ("2 files joined to one, all of them read",)
    au = written("AU")
    assert same(decode(patched(au, 8, b"\xff" * 4)))
    caf = written("CAF")
    assert same(decode(patched(caf, caf.index(b"data") + 4, b"\xff" * 8)))
    with pytest.raises(DamagedAudio, match="no samples"):
        decode(data_size(wav, 0)[:44])


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_64_bit_sizes(magic: bytes) -> None:
    rf64 = written("RF64")
    assert same(decode(magic + rf64[4:]))
    huge = patched(rf64, rf64.index(b"ds64") + 16, struct.pack("<Q", 2**40))
    (flag,) = decode(magic + huge[4:]).flags
    assert flag.startswith(f"header claims {2**40} bytes")


def test_flac_whose_length_is_unknown_or_too_small() -> None:
    flac = written("FLAC")
    assert same(decode(without_total(flac)))
    np.testing.assert_array_equal(
        decode(without_total(flac), offset=0.5, duration=1.0).samples,
        decode(flac).samples[8_000:24_000],
    )
    half = decode(without_total(flac)[: len(flac) // 2])
    assert "bytes behind the last frame" in half.flags[0]
    short = decode(patched(flac, 22, struct.pack(">I", 1000)))
    assert short.flags == ("header claims 1000 samples, the file holds 32000",)
    assert same(short)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_its_count_of_frames(mode: str) -> None:
    """At a variable bit rate libsndfile would guess; the first frame holds no audio."""
    file = io.BytesIO()
    soundfile.write(file, SPEECH, RATE, format="MP3", bitrate_mode=mode, compression_level=0.5)
    whole = file.getvalue()
    first = frame_at(whole, 0)
    assert first is not None
    bare = whole[first.length :]
    decoded = decode(bare)
    assert decoded.flags == ()
    # Encoder delay and padding stay, less than 0.1 s of silence.
    assert len(SPEECH) < len(decoded.samples) < len(SPEECH) + 1_700
    start = int(np.argmax(np.correlate(decoded.samples, SPEECH[:8_000], "valid")))
    assert np.corrcoef(decoded.samples[start : start + 30_000], SPEECH[:30_000])[0, 1] > 0.99
    assert len(decode(bare + bare).samples) > 1.95 * len(decoded.samples)
    more = decode(whole + bare)
    assert "MP3 frames, the file holds" in more.flags[0]
    assert len(more.samples) > 1.95 * len(SPEECH)
    assert decode(GARBAGE + whole).flags == (f"{len(GARBAGE)} bytes before the first MP3 frame",)


def test_mp3_frames_inside_of_wav() -> None:
    mp3 = written("MP3")
    fmt = struct.pack("<HHIIHH", 0x55, 1, RATE, 4000, 1, 0)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(mp3)) + mp3
    decoded = decode(b"RIFF" + struct.pack("<I", len(body)) + body + CHUNKS["LIST"])
    assert decoded.flags == ()
    np.testing.assert_array_equal(decoded.samples, decode(mp3).samples)


def test_a_damaged_page_of_ogg() -> None:
    ogg = written("OGG")
    middle = len(ogg) // 2
    with pytest.raises(DamagedAudio, match="page of the Ogg file is damaged"):
        decode(patched(ogg, middle, bytes([ogg[middle] ^ 1])))


CODINGS = [
    ("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"), ("WAV", "ALAW"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("WAVEX", "PCM_24"), ("WAVEX", "FLOAT"),
    ("AIFF", "PCM_S8"), ("AIFF", "PCM_24"), ("AIFF", "FLOAT"), ("AU", "ULAW"), ("AU", "PCM_24"),
    ("NIST", "ALAW"), ("NIST", "ULAW"), ("CAF", "ALAC_16"), ("W64", "PCM_24"), ("FLAC", "PCM_24"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "coding"), CODINGS)
@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_codings_and_rates(kind: str, coding: str, rate: int) -> None:
    """The same as libsndfile by itself, and the signal that went in."""
    time = np.arange(2 * rate) / rate
    samples = 0.3 * np.sin(2 * np.pi * 300 * time)
    decoded = decode(written(kind, coding, samples, rate))
    assert decoded.flags == ()
    assert abs(len(decoded.samples) - 2 * RATE) < 0.07 * RATE  # whole blocks of ADPCM and GSM
    expected = 0.3 * np.sin(2 * np.pi * 300 * np.arange(2 * RATE) / RATE)
    middle = slice(RATE // 2, RATE)
    assert np.corrcoef(decoded.samples[middle], expected[middle])[0, 1] > 0.98
    assert np.abs(decoded.samples[middle]).max() == pytest.approx(0.3, rel=0.1)


def test_channels_that_cancel() -> None:
    silence = np.zeros_like(SPEECH)

    def used(*channels: np.ndarray) -> Decoded:
        return decode(written("WAV", "FLOAT", np.stack(channels, axis=1)))

    for channels, best in (
        ((SPEECH, -SPEECH), 1),
        ((-0.9 * SPEECH, SPEECH), 2),
        ((silence, SPEECH, -SPEECH), 2),
    ):
        decoded = used(*channels)
        assert decoded.flags == (f"channels cancel, channel {best} of {len(channels)} used",)
        assert same(decoded, channels[best - 1])
    noise = np.random.default_rng(0).normal(0, 0.1, (32, len(SPEECH))).astype(np.float32)
    assert used(*noise).flags == (), "what has nothing in common does not cancel"
    assert used(SPEECH, -0.5 * SPEECH).flags == ()
    assert used(silence, SPEECH).flags == ()


def test_float_samples_beyond_one() -> None:
    def scaled(by: float) -> Decoded:
        return decode(written("WAV", "FLOAT", SPEECH * by))

    for bits in (15, 23, 31):
        decoded = scaled(2.0**bits)
        assert decoded.flags == (f"float samples at integer scale, divided by {2**bits}",)
        assert same(decoded)
    assert scaled(3).flags == ()
    (flag,) = scaled(20).flags
    assert "beyond [-1, 1]" in flag
    with pytest.raises(DamagedAudio, match=r"as large as \d"):
        scaled(1e30)
    assert scaled(0).flags == ("silent",)


@pytest.mark.parametrize("name", ["a.raw", "a.wav", "a.RAW", "a", "a.mp3", "a.txt", "a.FLAC"])
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_the_content_decides_not_the_name(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(written(kind))
    np.testing.assert_array_equal(decode(tmp_path / name).samples, decode(written(kind)).samples)


NO_AUDIO = {
    "text": b"the fox\n" * 500,
    "page": b"<!DOCTYPE html><html>404</html>" * 50,
    "film": b"\0\0\0\x20ftypisom" + GARBAGE,
    "matroska": b"\x1aE\xdf\xa3" + GARBAGE,
    "AVI": b"RIFF\0\1\0\0AVI LIST" + GARBAGE,
    "zip": b"PK\3\4" + GARBAGE,
    "zeros": bytes(5000),
    "ones": b"\xff" * 5000,
    "pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "a tag": TAGS["ID3v2"],
    "letters": b"fLaC",
    "RIFF": b"RIFF",
    "header only": written("WAV")[:20],
}


@pytest.mark.parametrize("name", NO_AUDIO)
def test_what_is_no_audio(name: str) -> None:
    with pytest.raises(DamagedAudio, match="not readable as audio"):
        decode(NO_AUDIO[name])


@pytest.mark.parametrize("kind", CUT)
def test_a_part(kind: str) -> None:
    content = CUT[kind]()
    whole = decode(content).samples
    part = decode(content, offset=0.25, duration=1.25).samples
    assert np.abs(part - whole[4_000:24_000]).max() < 1e-6
    np.testing.assert_array_equal(decode(content, offset=1.0).samples[-100:], whole[-100:])
    with pytest.raises(DamagedAudio, match="behind the end"):
        decode(content, offset=2.5)
    with pytest.raises(DamagedAudio, match=r"the cut ends at 3\.5 s, the file at 2"):
        decode(content, offset=1.5, duration=2.0)
    assert len(decode(content, offset=1.5, duration=0.55).samples) <= 8_801
    for offset, duration in ((-1.0, None), (np.nan, None), (0.0, -1.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="must be finite"):
            decode(content, offset=offset, duration=duration)


def test_a_part_of_a_file_cut_short_is_told() -> None:
    wav = written("WAV")
    (flag,) = decode(wav[:40_000], offset=0.25, duration=0.5).flags
    assert flag.startswith("cut off: ")


def test_promises_take_no_memory() -> None:
    """A header may promise a million hours."""
    flac = written("FLAC")
    with pytest.raises(DamagedAudio, match=f"cut off: 32000 of {2**36 - 1} samples"):
        decode(patched(patched(flac, 21, bytes([flac[21] | 0x0F])), 22, b"\xff" * 4))
    au = written("AU")
    assert decode(patched(au, 8, struct.pack(">I", 0xFFFFFFF0))).flags
    w64 = written("W64")
    at = w64.index(b"data") + 16
    assert decode(patched(w64, at, struct.pack("<Q", 2**40))).flags

"""Calibration clips among the evaluated ones, found by what is heard."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import ListCorpus, tone

from edge_asr.data.corpus import Utterance
from edge_asr.data.embedded import embedded_calibration, embedded_test
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.data.overlap import audio_digest, overlap
from edge_asr.store.fingerprint import Digests

# As 16 bit integers: libsndfile would round floats to other ones for WAV than for FLAC.
CLIPS = {
    f"{number}": np.round(tone(0.5 + 0.1 * number, 200.0 + 20 * number) * 32767).astype(np.int16)
    for number in range(4)
}


def manifest(folder: Path, kind: str, names: str = "0123") -> ManifestCorpus:
    """Clips as files of `kind`, by their own names."""
    rows = []
    for name in names:
        soundfile.write(folder / f"{name}.{kind}", CLIPS[name], 16_000, subtype="PCM_16")
        rows.append({"audio": f"{name}.{kind}", "text": "x"})
    return listed(folder, *rows)


def listed(folder: Path, *rows: dict[str, object]) -> ManifestCorpus:
    path = folder / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return ManifestCorpus(path)


def clips(corpus: ManifestCorpus) -> list[Utterance]:
    return [clip for clip in corpus if isinstance(clip, Utterance)]


def test_the_digest_is_of_the_samples() -> None:
    samples = tone(0.5)
    assert audio_digest(samples) == hashlib.sha256(samples.tobytes()).hexdigest()
    assert audio_digest(np.repeat(samples, 2)[::2]) == audio_digest(samples)
    assert audio_digest(samples) != audio_digest(samples[:-1])


def test_a_copy_in_another_format_is_found(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    calibration = manifest(tmp_path / "other", "flac", "13")
    evaluated = manifest(tmp_path, "wav")
    assert overlap(clips(calibration), [evaluated]) == 2
    assert overlap(clips(calibration), [ListCorpus([]), evaluated]) == 2
    assert overlap([], [evaluated]) == 0


def test_a_part_of_a_recording_is_found(tmp_path: Path) -> None:
    meeting = np.concatenate([CLIPS["0"][:4800], CLIPS["2"], CLIPS["1"]])
    soundfile.write(tmp_path / "meeting.flac", meeting, 16_000)
    row = {"audio_filepath": "meeting.flac", "offset": 0.3, "duration": 0.7, "text": "x"}
    (tmp_path / "cut").mkdir()
    evaluated = manifest(tmp_path / "cut", "wav")
    assert overlap(clips(listed(tmp_path, row)), [evaluated]) == 1
    assert overlap(clips(evaluated), [listed(tmp_path, row)]) == 1
    assert overlap(clips(evaluated), [listed(tmp_path, row | {"offset": 0.2})]) == 0


def test_a_corpus_without_lengths_is_decoded(tmp_path: Path) -> None:
    evaluated = ListCorpus([(clip.samples, "x") for clip in clips(manifest(tmp_path, "wav"))])
    assert overlap(clips(manifest(tmp_path, "wav", "02")), [evaluated]) == 2


def test_the_embedded_corpora_do_not_overlap() -> None:
    some = clips(embedded_calibration(limit=8))
    assert overlap(some, [embedded_test(limit=100)]) == 0
    assert overlap(some, [embedded_calibration()]) == 8


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_lengths_by_the_headers(tmp_path: Path, kind: str, rate: int) -> None:
    """Within the tolerance of what decoding gives, damaged clips aside."""
    soundfile.write(tmp_path / f"a.{kind}", tone(0.73), rate)
    (tmp_path / "b.wav").write_bytes(b"none")
    whole = {"audio": f"a.{kind}", "text": "x"}
    part = whole | {"id": "part", "offset": 0.2, "duration": 0.1}
    rest = whole | {"id": "rest", "offset": 0.2}
    corpus = listed(tmp_path, whole, part, rest, {"audio": "b.wav", "text": "x"})
    lengths = [len(clip.samples) for clip in clips(corpus)]
    counts = corpus.sample_counts(Digests(tmp_path / "digests"))
    assert counts[3] == 0
    assert np.abs(np.array(counts[:3]) - lengths).max() <= 1
    assert counts == corpus.sample_counts(Digests(tmp_path / "digests"))


def test_only_clips_of_a_fitting_length_are_decoded(tmp_path: Path) -> None:
    evaluated = manifest(tmp_path, "wav")
    calibration = clips(manifest(tmp_path, "wav", "1"))
    for name in "023":  # of the same size and time for all that headers say, but no audio
        content = bytearray((tmp_path / f"{name}.wav").read_bytes())
        content[44:] = bytes(len(content) - 44)
        (tmp_path / f"{name}.wav").write_bytes(content)
    assert overlap(calibration, [evaluated]) == 1

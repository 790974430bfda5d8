"""What is heard through a file that another tool made of ours."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from export.models import for_ggml
from tiny import ListCorpus, tone
from whisper_cpp_quantize import float_export, heard_through

from edge_asr.config import target_named
from edge_asr.errors import UserError
from edge_asr.export.exported import read_export
from edge_asr.export.write import export, export_float
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.base import Transcript
from edge_asr.runtimes.whisper_cpp import WhisperCpp

pytest.importorskip("_pywhispercpp")
pytest.importorskip("gguf")
TARGET = target_named("ggml_q4_0")
CLIPS = [tone(0.7), tone(1.3)]


def tool(path: Path, commands: str) -> Path:
    """A program that is called as whisper.cpp's quantize: INPUT OUTPUT TYPE."""
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def transcripts(own: Checkpoint, folder: Path) -> list[Transcript]:
    runtime = WhisperCpp(own, exported=folder)
    return runtime.transcribe(CLIPS, [runtime.token_limit(len(clip)) for clip in CLIPS])


def test_it_is_the_file_of_the_tool_that_is_heard(tmp_path: Path, wide_whisper: Checkpoint) -> None:
    quantized = for_ggml(wide_whisper, TARGET.name)
    made = export(quantized, TARGET, tmp_path / "quantized")
    floats = export_float(wide_whisper, TARGET, tmp_path / "float")
    writes = tool(tmp_path / "quantize", f'test "$3" = q4_0 && cp "{made}/model.bin" "$2"')
    heard = heard_through(
        float_export(floats), floats, writes, "q4_0", ListCorpus([(clip, "") for clip in CLIPS])
    )
    expected = transcripts(quantized, made)
    assert [one.pred_text for one in heard] == [one.text for one in expected]
    assert [one.text for one in transcripts(wide_whisper, floats)] != [one.text for one in expected]


def test_a_tool_that_fails_or_is_not_there_is_told(
    tmp_path: Path, wide_whisper: Checkpoint
) -> None:
    floats = export_float(wide_whisper, TARGET, tmp_path / "float")
    corpus = ListCorpus([(CLIPS[0], "")])
    fails = tool(tmp_path / "fails", "echo unknown ftype >&2; exit 1")
    with pytest.raises(UserError, match=r"--type=q9: .*fails failed: unknown ftype"):
        heard_through(read_export(floats), floats, fails, "q9", corpus)
    silent = tool(tmp_path / "silent", "exit 0")
    with pytest.raises(UserError, match=r"--type=q4_0: .*silent failed"):
        heard_through(read_export(floats), floats, silent, "q4_0", corpus)
    with pytest.raises(UserError, match=r"--tool=.*none: cannot be started"):
        heard_through(read_export(floats), floats, tmp_path / "none", "q4_0", corpus)


def test_a_quantized_file_is_refused(tmp_path: Path, wide_whisper: Checkpoint) -> None:
    made = export(for_ggml(wide_whisper, TARGET.name), TARGET, tmp_path / "out")
    with pytest.raises(UserError, match="--float"):
        float_export(made)

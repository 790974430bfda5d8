"""ONNX Runtime: whatever is decoded, it writes what the model does, up to the last position."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_whisper, tone

from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding
from edge_asr.models.loading import load_checkpoint
from edge_asr.runtimes.torch_greedy import TorchRuntime

pytest.importorskip("onnxruntime")
from edge_asr.runtimes.onnx_runtime import OnnxRuntime, session

CLIPS = [tone(seconds, 200.0 * seconds) for seconds in (0.7, 1.9)]


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_a_multilingual_prompt_is_followed(tmp_path: Path, language: str, task: str) -> None:
    decoding = Decoding(language=language, task=task, suppression="none")
    own = load_checkpoint(str(tiny_whisper(tmp_path, multilingual=True)), decoding=decoding)
    runtimes = (OnnxRuntime(own), TorchRuntime(own))
    limits = [runtimes[1].token_limit(len(clip)) for clip in CLIPS]
    found, expected = (
        [one.tokens for clip, limit in zip(CLIPS, limits, strict=True)
         for one in runtime.transcribe([clip], [limit])]
        for runtime in runtimes
    )  # fmt: skip
    assert found == expected
    assert max(map(len, found)) > 20


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"encoder\.onnx: ONNX Runtime cannot load it: .+; export"):
        session(path)

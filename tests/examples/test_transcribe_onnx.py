"""The example that needs ONNX Runtime and numpy alone: it hears what the runtime hears."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import wave
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from shared import shared
from tiny import tiny_moonshine, tiny_whisper, tone
from transformers import WhisperFeatureExtractor

from edge_asr.audio import SAMPLE_RATE
from edge_asr.config import target_named
from edge_asr.models.families.whisper import Whisper
from edge_asr.models.files import EMBEDDED
from edge_asr.models.loading import Checkpoint, load_checkpoint

pytest.importorskip("onnxruntime")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "transcribe_onnx.py"
# Run as where nothing else is installed: what must not be imported cannot be.
ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "edge_asr", "onnx"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
script = sys.argv.pop(1)
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transcribe_onnx", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(SCRIPT), *map(str, arguments)],
        capture_output=True, encoding="utf-8", timeout=300, env={"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip


def write_wav(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Samples [count] or [count, channels] as 16 bits; what a reader hears, float32."""
    whole = np.round(samples * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((whole.reshape(len(whole), -1).shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(whole.tobytes())
    return whole.astype(np.float32) / 32768


def heard(checkpoint: Checkpoint, folder: Path, samples: np.ndarray) -> str:
    from edge_asr.runtimes.onnx_runtime import OnnxRuntime

    runtime = OnnxRuntime(checkpoint, exported=folder)
    samples = runtime.window(samples)
    return runtime.transcribe([samples], [runtime.token_limit(len(samples))])[0].text


def exported(checkpoint: Checkpoint, folder: Path) -> Path:
    from edge_asr.export.write import export_float

    return export_float(checkpoint, target_named("onnx_nbits"), folder)


@pytest.mark.parametrize("build", [tiny_whisper, tiny_moonshine])
def test_random_models_hear_the_same(build: Any, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(build(tmp_path / "checkpoint")))
    folder = exported(checkpoint, tmp_path / "exported")
    texts = set()
    # Shorter than a frame, and longer than the window of one.
    for seconds in (0.01, 0.9, 1.7, 2.4):
        samples = write_wav(tmp_path / "clip.wav", tone(seconds, 150 * (1 + seconds)))
        done = run(folder, tmp_path / "clip.wav")
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip("\n") == heard(checkpoint, folder, samples)
        texts.add(done.stdout)
    assert len(texts) > 1
    both = np.stack([tone(0.9, 200.0), tone(0.9, 300.0)], 1)
    mean = write_wav(tmp_path / "clip.wav", both).mean(1)
    done = run(folder, tmp_path / "clip.wav", "--threads", 2)
    assert done.stdout.rstrip("\n") == heard(checkpoint, folder, mean)


@pytest.mark.parametrize("name", ["whisper-tiny.en", "moonshine-tiny"])
def test_published_models_hear_the_same(name: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(shared("checkpoints", name)))
    folder = exported(checkpoint, tmp_path / "exported")
    root = shared("speech")
    rows = [json.loads(line) for line in (root / "manifest.jsonl").open(encoding="utf-8")]
    short = [row for row in rows if row["sampling_rate"] == SAMPLE_RATE and row["duration"] < 4]
    for row in short[:2]:
        samples, _ = soundfile.read(root / row["audio"], dtype="float32")
        samples = write_wav(tmp_path / "clip.wav", samples)
        done = run(folder, tmp_path / "clip.wav")
        assert len(done.stdout.split()) > 3, done.stderr
        assert done.stdout.rstrip("\n") == heard(checkpoint, folder, samples)


@pytest.mark.parametrize(("mels", "seconds"), [(80, 30), (128, 30), (80, 2)])
def test_mel_features_are_the_librarys(script: ModuleType, mels: int, seconds: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds)
    architecture = Whisper()
    settings = architecture.feature_settings(extractor)
    noise = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    for samples in (tone(1.3), noise, np.zeros(0, np.float32), tone(seconds + 0.5)):
        found = script.log_mel(samples, settings, settings["mel_filters"])
        expected = architecture.model_inputs(extractor, [samples[: seconds * SAMPLE_RATE]])
        np.testing.assert_allclose(found, expected["input_features"].numpy(), atol=1e-4)


def test_samples_are_normalized_as_the_library_does(script: ModuleType) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    samples = tone(0.3) + 0.1
    for normalize in (False, True):
        library = Wav2Vec2FeatureExtractor(do_normalize=normalize)
        expected = library(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_values"]
        found = script.raw_samples(samples, {"normalize": normalize, "minimum_samples": 1})
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", [*EMBEDDED, "whisper-tiny.en", "moonshine-tiny"])
def test_texts_are_the_tokenizers(script: ModuleType, name: str) -> None:
    source = name if name in EMBEDDED else str(shared("checkpoints", name))
    tokenizer = load_checkpoint(source).tokenizer
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, len(tokenizer), 20).tolist() for _ in range(200)]
    # The library takes what follows `<|startofprev|>`, which is never written, for a prompt.
    rows = [row for row in rows if row[0] not in tokenizer.all_special_ids]
    assert len(rows) > 100
    # Bytes, whole characters of them and parts.
    rows += [tokenizer.encode(text) for text in ("naïve café 東京 🙂", "₿ İ  two  spaces", "")]
    rows += [row[:cut] for row in rows[-3:] for cut in range(len(row))]
    for row in rows:
        expected = tokenizer.decode(row, skip_special_tokens=True).strip()
        assert script.text_of(row, plain) == expected


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(tiny_moonshine(tmp_path / "checkpoint")))
    folder, clip = exported(checkpoint, tmp_path / "exported"), tmp_path / "clip.wav"
    clip.write_bytes(b"no audio")

    def told(message: str) -> None:
        done = run(folder, clip)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1

    told("cannot be read as WAV")
    write_wav(clip, tone(0.2), rate=8000)
    told("is 8000 Hz, 1 channels, 16 bits; convert it to 16000 Hz")
    soundfile.write(clip, tone(0.2), SAMPLE_RATE, subtype="PCM_24")
    told("24 bits")
    write_wav(clip, tone(0.2))
    graph = folder / "decoder.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"token", b"tokem", 1))
    told("decoder.onnx: is not what was exported; export the model again")
    graph.unlink()
    told("has no decoder.onnx; give a folder exported for ONNX Runtime")
    (folder / "export.json").write_text("[]")
    told("has no export.json that can be read; give an exported folder")

"""Transcribe a WAV file with an exported model: ONNX Runtime, numpy and nothing else.

    python -m edge_asr.export RUN --target onnx_nbits --out FOLDER   # makes the folder
    python transcribe_onnx.py FOLDER CLIP.wav                        # prints the text

The folder holds all that is needed: `encoder.onnx` and `decoder.onnx`, `decoding.json` (which
features, tokens and limits), `mel_filters.npy` where features are log-mel, `tokenizer.json`, and
`export.json`, by whose hashes damage is found.
The WAV file must be 16-bit PCM at the model's rate, 16 kHz, mono or stereo, which is averaged.
Copy this file into your own program; it is meant to be read.
"""

import argparse
import hashlib
import json
import re
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

EXPORT, SETTINGS, TOKENIZER = "export.json", "decoding.json", "tokenizer.json"
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
TIME_STAMP = re.compile(r"<\|\d+\.\d+\|>")  # tokens of Whisper that are no text
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def read_wav(path: Path, sample_rate: int) -> np.ndarray:
    """float32 samples from -1 to 1, shape [samples]."""
    try:
        with wave.open(str(path)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            content = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        sys.exit(f"{path}: cannot be read as WAV ({error}); give 16-bit PCM")
    if rate != sample_rate or channels > 2 or width != 2:
        sys.exit(
            f"{path}: is {rate} Hz, {channels} channels, {8 * width} bits; convert it to "
            f"{sample_rate} Hz, mono or stereo, 16-bit PCM"
        )
    whole = np.frombuffer(content[: len(content) // (2 * channels) * (2 * channels)], "<i2")
    samples: np.ndarray = whole.reshape(-1, channels).astype(np.float32).mean(1) / 32768
    return samples


def log_mel(samples: np.ndarray, settings: dict[str, Any], filters: np.ndarray) -> np.ndarray:
    """Whisper's features [1, mels, frames]: the log of mel bands, over a window of fixed length."""
    size, hop, window = settings["n_fft"], settings["hop_length"], settings["window_samples"]
    samples = np.pad(samples[:window], (0, max(0, window - len(samples))))
    padded = np.pad(samples, size // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop][:-1]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)  # periodic
    power = np.abs(np.fft.rfft(frames * hann)) ** 2  # [frames, size // 2 + 1]
    logs = np.log10(np.maximum(filters.T @ power.T, 1e-10))
    logs = np.maximum(logs, logs.max() - 8)
    features: np.ndarray = ((logs + 4) / 4)[None].astype(np.float32)
    return features


def raw_samples(samples: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """The samples themselves [1, samples], filled up where they are too few for one frame."""
    samples = np.pad(samples, (0, max(0, settings["minimum_samples"] - len(samples))))
    if settings["normalize"]:
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    return samples[None].astype(np.float32)


def features_of(samples: np.ndarray, settings: dict[str, Any], folder: Path) -> np.ndarray:
    """What the encoder reads."""
    if settings["kind"] == "log_mel":
        return log_mel(samples, settings, np.load(folder / settings["mel_filters"]))
    return raw_samples(samples, settings)


def greedy(
    decoder: Any, memory: list[np.ndarray], settings: dict[str, Any], limit: int
) -> list[int]:
    """The most likely token at every step, until one that ends the text, at most `limit`.

    `memory` are the encoder's outputs, keys and values [layers, 1, heads, frames, head_dim]. The
    decoder takes one token at a time and what it kept of those before it, at first nothing.
    """
    layers, _, heads, _, head_dim = memory[0].shape
    cache = [np.zeros((layers, 1, heads, 0, head_dim), np.float32)] * 2
    given = dict(zip(("cross_keys", "cross_values"), memory, strict=True))
    tokens, prompt = list(settings["prompt"]), len(settings["prompt"])
    suppressed = settings["suppressed"] + settings["suppressed_first"]
    for position in range(prompt - 1 + limit):
        token = np.array([[tokens[position]]], np.int64)
        logits, *cache = decoder.run(
            None, {"token": token, "keys": cache[0], "values": cache[1], **given}
        )
        if position < prompt - 1:  # the next one is known
            continue
        logits[0, suppressed] = -np.inf
        suppressed = settings["suppressed"]
        best = int(logits[0].argmax())
        if best in settings["ends"]:
            break
        tokens.append(best)
    return tokens[prompt:]


def byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones are themselves, others follow from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


def text_of(tokens: list[int], tokenizer: dict[str, Any]) -> str:
    """Tokens as text, special ones and time stamps left out."""
    pieces = {number: piece for piece, number in tokenizer["model"]["vocab"].items()}
    for one in tokenizer["added_tokens"]:
        silent = one["special"] or TIME_STAMP.fullmatch(one["content"])
        pieces[one["id"]] = "" if silent else one["content"]
    found = [pieces.get(token, "") for token in tokens]
    if tokenizer["decoder"]["type"] == "ByteLevel":
        spelled = byte_of_character()
        return bytes(spelled[one] for one in "".join(found)).decode(errors="replace").strip()
    return joined_sentencepiece(found).strip()


def joined_sentencepiece(pieces: list[str]) -> str:
    """Pieces with `▁` for a space, where `<0xNN>` is a byte of a character that has no piece."""
    text, run = "", b""
    for piece in [*pieces, ""]:
        if byte := BYTE.fullmatch(piece):
            run += bytes.fromhex(byte[1])
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:  # as the tokenizers library does
            text += "\ufffd" * len(run)
        text, run = text + piece.replace("▁", " "), b""
    return text


def session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def refuse_damage(folder: Path) -> None:
    """End where a file is missing or not what was exported: a damaged graph may well run."""
    try:
        files = json.loads((folder / EXPORT).read_text(encoding="utf-8"))["files"]
        hashes = {name: file["sha256"] for name, file in files.items() if not file["copied"]}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        sys.exit(f"{folder}: has no {EXPORT} that can be read; give an exported folder")
    for name in sorted({SETTINGS, TOKENIZER, ENCODER, DECODER, *hashes}):
        path = folder / name
        if name not in hashes or not path.is_file():
            sys.exit(f"{folder}: has no {name}; give a folder exported for ONNX Runtime")
        if hashlib.sha256(path.read_bytes()).hexdigest() != hashes[name]:
            sys.exit(f"{path}: is not what was exported; export the model again")


def transcribe(folder: Path, clip: Path, threads: int) -> str:
    """The text of a WAV file."""
    refuse_damage(folder)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    samples = read_wav(clip, settings["sample_rate"])[: settings["features"].get("window_samples")]
    limit, rate = settings["room"], settings["tokens_per_second"]
    if rate is not None:  # what a second of speech takes at most, and two tokens more
        limit = min(limit, int(len(samples) * rate / settings["sample_rate"] + 2))
    features = features_of(samples, settings["features"], folder)
    memory = session(folder / ENCODER, threads).run(None, {"features": features})
    tokens = greedy(session(folder / DECODER, threads), memory, settings, limit)
    return text_of(tokens, json.loads((folder / TOKENIZER).read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the exported model")
    parser.add_argument("clip", type=Path, help="a WAV file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(transcribe(options.folder, options.clip, options.threads))


if __name__ == "__main__":
    main()

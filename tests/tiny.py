"""Tiny random Whisper and Moonshine checkpoints, saved as real Hugging Face folders.

Every parameter is random, biases and norms too, so that a transform which forgets one of them
changes the outputs; the weights are large enough for the transcript to depend on the audio.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import soundfile
import torch
from transformers import (
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from edge_asr.audio import SAMPLE_RATE
from edge_asr.data.corpus import ClipEntry, DamagedClip, Utterance
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.store.fingerprint import Digests
from speech.micro import WHISPER_SPECIALS, train_byte_bpe

Family = Literal["whisper", "moonshine"]
WINDOW_S = 2
MAX_TOKENS = 48
# Standard deviation of each embedding; of a layer's weight, times the root of its inputs.
GAINS = {"embed_positions": 0.1, "embed_tokens": 0.3, "v_proj": 4.0, "q_proj": 2.0}
TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "she sells sea shells by the sea shore",
    "how much wood would a woodchuck chuck",
    "Pack my box with five dozen liquor jugs, please.",
)


def tiny_whisper(
    folder: Path, seed: int = 0, *, multilingual: bool = False, width: int = 48, inner: int = 96,
    heads: int = 6,
) -> Path:  # fmt: skip
    """Save a Whisper of 2 + 2 blocks and a window of 2 seconds.

    A multilingual one knows English and German.
    """
    bpe = train_byte_bpe(TEXTS)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    tokenizer = WhisperTokenizer(vocab=bpe.get_vocab(), merges=[tuple(pair) for pair in merges])
    specials = [*WHISPER_SPECIALS, *(["<|de|>"] if multilingual else [])]
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in specials}
    end, start, silent = (
        ids[token] for token in ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
    )
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=width, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=inner, decoder_ffn_dim=inner, max_source_positions=WINDOW_S * 50,
        max_target_positions=MAX_TOKENS, dropout=0.0, activation_dropout=0.0,
        attention_dropout=0.0, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = _randomised(lambda: WhisperForConditionalGeneration(config), seed)
    languages = {
        "is_multilingual": True,
        "forced_decoder_ids": [[1, None], [2, ids["<|transcribe|>"]]],
        "lang_to_id": {token: ids.get(token) for token in ("<|en|>", "<|de|>")},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
    }
    english = {"is_multilingual": False, "forced_decoder_ids": [[1, silent]]}
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        no_timestamps_token_id=silent, return_timestamps=False, max_length=MAX_TOKENS,
        begin_suppress_tokens=[end], **(languages if multilingual else english),
    )  # fmt: skip
    model.save_pretrained(folder)
    features = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S)
    WhisperProcessor(features, tokenizer).save_pretrained(folder)
    return folder


def tiny_moonshine(folder: Path, seed: int = 0) -> Path:
    """Save a Moonshine of 2 + 2 blocks, width 40 and 4 heads of 10."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_byte_bpe(TEXTS, specials=("<unk>", "<s>", "</s>")),
        unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    config = MoonshineConfig(
        vocab_size=len(tokenizer), hidden_size=40, intermediate_size=80,
        encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4, decoder_num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS, pad_token_id=2,
    )  # fmt: skip
    model = _randomised(lambda: MoonshineForConditionalGeneration(config), seed)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        max_length=MAX_TOKENS,
    )  # fmt: skip
    model.save_pretrained(folder)
    features = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    Wav2Vec2Processor(features, tokenizer).save_pretrained(folder)
    return folder


def tiny_checkpoint(family: Family, seed: int = 0) -> Checkpoint:
    """A tiny checkpoint, saved to a temporary folder and loaded from it."""
    with TemporaryDirectory() as folder:
        build = {"whisper": tiny_whisper, "moonshine": tiny_moonshine}[family]
        return load_checkpoint(str(build(Path(folder), seed)), name=f"{family}-tiny")


def tone(seconds: float, pitch: float = 220.0) -> np.ndarray:
    """A gliding, pulsed tone: float32 mono 16 kHz samples."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    glide = np.sin(2 * np.pi * pitch * time * (1 + 0.2 * time))
    return (0.3 * glide * (1 + np.sin(12 * time)) / 2).astype(np.float32)


def write_tones(folder: Path, count: int, longer_s: float, text: str) -> Path:
    """A list of `count` clips, the first half a second long and each `longer_s` longer."""
    rows = []
    for index in range(count):
        soundfile.write(folder / f"{index}.wav", tone(0.5 + index * longer_s), SAMPLE_RATE)
        rows.append({"audio": f"{index}.wav", "text": text})
    clips = folder / "clips.jsonl"
    clips.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return clips


def _randomised(build: Callable[[], PreTrainedModel], seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
                else:
                    fan_in = parameter[0].numel()
                    gain = GAINS.get(name.split(".")[-2], 1.5)
                    parameter.normal_(0.0, gain if "embed" in name else gain * fan_in**-0.5)
    return model


class ListCorpus:
    """A corpus of clips in memory; a clip is samples and text, or the reason of its damage."""

    def __init__(self, clips: Sequence[tuple[np.ndarray, str] | str], name: str = "list") -> None:
        self._clips = clips
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def origin(self) -> dict[str, str]:
        return {}

    @property
    def conditions(self) -> tuple[str, ...]:
        return ()

    @property
    def entries(self) -> tuple[ClipEntry, ...]:
        return tuple(
            ClipEntry(f"clip-{index}", f"{index}.wav", "" if isinstance(clip, str) else clip[1])
            for index, clip in enumerate(self._clips)
        )

    def audio_digests(self, digests: Digests, indices: Sequence[int] | None = None) -> list[str]:
        del digests
        chosen = range(len(self)) if indices is None else indices
        contents = [self._clips[index] for index in chosen]
        return [
            "unreadable" if isinstance(clip, str) else hashlib.sha256(clip[0].tobytes()).hexdigest()
            for clip in contents
        ]

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[Utterance | DamagedClip]:
        for index, clip in enumerate(self._clips):
            if isinstance(clip, str):
                yield DamagedClip(f"clip-{index}", f"{index}.wav", clip)
            else:
                samples, text = clip
                seconds = len(samples) / SAMPLE_RATE
                yield Utterance(f"clip-{index}", samples, text, seconds, f"{index}.wav")

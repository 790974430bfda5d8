"""Write a random-weight checkpoint of a published model's real shape, to time and test with.

    python scripts/make_random_checkpoint.py whisper-tiny.en --tokenizer FOLDER --out FOLDER

Its transcripts are noise, but its stages take the time and memory of the real model's. The
tokenizer is the published one (a Whisper processor folder, or Moonshine's tokenizer.json).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)


@dataclass(frozen=True)
class Shape:
    """Width, blocks a stack and heads of a published model."""

    family: str
    width: int
    blocks: int
    heads: int


SHAPES = {
    "whisper-tiny.en": Shape("whisper", 384, 4, 6),
    "whisper-base.en": Shape("whisper", 512, 6, 8),
    "whisper-small.en": Shape("whisper", 768, 12, 12),
    "moonshine-tiny": Shape("moonshine", 288, 6, 8),
    "moonshine-base": Shape("moonshine", 416, 8, 8),
}


def write_whisper(shape: Shape, tokenizer: Path, out: Path) -> int:
    """An English-only Whisper; returns its number of parameters."""
    processor = WhisperProcessor.from_pretrained(tokenizer)
    ids: Any = processor.tokenizer.convert_tokens_to_ids
    start, end = ids("<|startoftranscript|>"), ids("<|endoftext|>")
    silent = ids("<|notimestamps|>")
    model: Any = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=51_864,
            d_model=shape.width,
            encoder_layers=shape.blocks,
            decoder_layers=shape.blocks,
            encoder_attention_heads=shape.heads,
            decoder_attention_heads=shape.heads,
            encoder_ffn_dim=4 * shape.width,
            decoder_ffn_dim=4 * shape.width,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=start,
        )
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        is_multilingual=False,
        no_timestamps_token_id=silent,
        max_length=448,
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return int(model.num_parameters())


def write_moonshine(shape: Shape, tokenizer: Path, out: Path) -> int:
    """A Moonshine; returns its number of parameters."""
    model: Any = MoonshineForConditionalGeneration(
        MoonshineConfig(
            hidden_size=shape.width,
            intermediate_size=4 * shape.width,
            encoder_num_hidden_layers=shape.blocks,
            decoder_num_hidden_layers=shape.blocks,
            encoder_num_attention_heads=shape.heads,
            decoder_num_attention_heads=shape.heads,
        )
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=2, max_length=194
    )
    model.save_pretrained(out)
    Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True),
        PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ),
    ).save_pretrained(out)
    return int(model.num_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.tokenizer.exists():
        parser.error(f"--tokenizer {arguments.tokenizer}: no such file or folder")
    torch.manual_seed(arguments.seed)
    shape = SHAPES[arguments.shape]
    write = {"whisper": write_whisper, "moonshine": write_moonshine}[shape.family]
    parameters = write(shape, arguments.tokenizer, arguments.out)
    print(f"{arguments.shape}: {parameters:,} random parameters in {arguments.out}")


if __name__ == "__main__":
    main()

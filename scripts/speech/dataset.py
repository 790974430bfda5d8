"""The synthetic shards as one indexed corpus, and length-sorted batches drawn from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Clip:
    """Where one utterance lies: its shard's file, first sample, number of samples, and text."""

    shard: int
    offset: int
    samples: int
    text: str


class ShardCorpus:
    """All utterances of the `shard-NNN.npy` files of a folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        index_paths = sorted(folder.glob("shard-*.jsonl"))
        if not index_paths:
            raise FileNotFoundError(f"no shards in {folder}: run scripts/make_speech_corpus.py")
        self._shards = [np.load(path.with_suffix(".npy"), mmap_mode="r") for path in index_paths]
        self.clips: list[Clip] = []
        for shard, path in enumerate(index_paths):
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.clips.append(Clip(shard, row["offset"], row["samples"], row["text"]))

    def waveforms(self, clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 samples [batch, longest] in [-1, 1], zero-padded, and lengths [batch]."""
        lengths = torch.tensor([clip.samples for clip in clips])
        batch = torch.zeros(len(clips), int(lengths.max()))
        for row, clip in enumerate(clips):
            raw = self._shards[clip.shard][clip.offset : clip.offset + clip.samples]
            batch[row, : clip.samples] = torch.from_numpy(raw.astype(np.float32) / 32768)
        return batch, lengths

    def batches(self, epoch: int, seed: int, seconds: float) -> list[list[Clip]]:
        """The corpus cut into batches of about `seconds` of audio and similar lengths, shuffled."""
        rng = np.random.default_rng([seed, epoch])
        lengths = np.array([clip.samples for clip in self.clips])
        order = np.argsort(lengths * rng.uniform(0.95, 1.05, len(lengths)))
        batches: list[list[Clip]] = [[]]
        total = 0
        for index in order:
            clip = self.clips[index]
            if total + clip.samples > seconds * 16_000 and batches[-1]:
                batches.append([])
                total = 0
            batches[-1].append(clip)
            total += clip.samples
        return [batches[index] for index in rng.permutation(len(batches))]

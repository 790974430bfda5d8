"""Train an embedded model: `python scripts/train_micro.py whisper-micro` (or moonshine-micro).

Needs the shards of scripts/make_speech_corpus.py. The encoder first learns characters with
CTC alone, then attention joins (cross-attention does not align from a cold start). Each step
draws from its own seed, so a run that is cut and resumed repeats the uncut one. A finished
model is trained further with `--start-from PATH --ctc-steps 0 --work NEW_FOLDER`, where PATH
is its folder or, better since it keeps the CTC head, its last training checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from speech.augment import augment_waveforms
from speech.dataset import Clip, ShardCorpus
from speech.micro import MODELS, CharacterHead
from speech.muon import Muon


@dataclass(frozen=True)
class Schedule:
    """Steps and rates of one training run."""

    steps: int
    ctc_steps: int = 1_400
    warmup_steps: int = 300
    full_window_steps: int = 400
    full_window_share: float = 0.06
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    ctc_weight: float = 0.3
    batch_seconds: float = 44.0
    seed: int = 2026

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to 1 % of the peak."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """One model, its optimizer and its place in the schedule."""

    def __init__(self, name: str, corpus: ShardCorpus, schedule: Schedule, work: Path) -> None:
        torch.manual_seed(schedule.seed)
        self.corpus, self.schedule, self.work = corpus, schedule, work
        self.micro = MODELS[name](clip.text for clip in corpus.clips[:20_000])
        # On a CPU the fused attention's backward pass is slower than plain matrix products.
        self.micro.model.set_attn_implementation("eager")
        width = self.micro.model.config.hidden_size
        self.head = CharacterHead(width)
        self.parameters = [*self.micro.model.parameters(), *self.head.parameters()]
        self.optimizers = self._optimizers()
        self.step = 0
        self._epoch = -1
        self._per_epoch = 0
        self._batches: list[list[Clip]] = []

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside the blocks, AdamW for everything else."""
        matrices = [
            parameter
            for name, parameter in self.micro.model.named_parameters()
            if ".layers." in name and parameter.ndim == 2
        ]
        inside = {id(parameter) for parameter in matrices}
        others = [p for p in self.parameters if p.requires_grad and id(p) not in inside]
        rate, decay = self.schedule.learning_rate, self.schedule.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
        ]
        return [
            Muon(matrices, lr=rate, weight_decay=decay),
            torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True),
        ]

    @property
    def checkpoint(self) -> Path:
        return self.work / f"{self.micro.name}.pt"

    def save(self) -> None:
        state = {
            "step": self.step, "model": self.micro.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.micro.model.load_state_dict(state["model"])
            self.head.load_state_dict(state["head"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]

    def start_from(self, path: Path) -> None:
        """Begin a further round with the weights of a finished folder or of a checkpoint."""
        if path.is_dir():
            finished = type(self.micro.model).from_pretrained(path, use_safetensors=True)
            self.micro.model.load_state_dict(finished.state_dict())
        else:
            state = torch.load(path, weights_only=True)
            self.micro.model.load_state_dict(state["model"])
            self.head.load_state_dict(state["head"])

    def next_batch(self) -> list[Clip]:
        """The batch of this step; epochs differ by a batch or two and are clipped to the first."""
        seed, seconds = self.schedule.seed, self.schedule.batch_seconds
        if not self._per_epoch:
            self._per_epoch = len(self.corpus.batches(0, seed, seconds))
        epoch, position = divmod(self.step, self._per_epoch)
        if epoch != self._epoch:
            self._batches = self.corpus.batches(epoch, seed, seconds)
            self._epoch = epoch
        return self._batches[min(position, len(self._batches) - 1)]

    def losses(self, clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """CTC loss, and the attention loss once the CTC-only phase is over."""
        generator = torch.Generator().manual_seed(self.schedule.seed * 1_000_003 + self.step)
        waves, lengths = self.corpus.waveforms(clips)
        waves, lengths = augment_waveforms(waves, lengths, generator)
        last = self.step >= self.schedule.steps - self.schedule.full_window_steps
        draw = float(torch.rand(1, generator=generator))
        full = last or draw < self.schedule.full_window_share
        inputs, frames = self.micro.prepare(waves, lengths, full)
        states = self.micro.encode(inputs, frames, generator)
        frames = frames.clamp(max=states.shape[1])
        ctc = self.head.loss(states, frames, [clip.text for clip in clips])
        if self.step < self.schedule.ctc_steps:
            return ctc, None
        tokens, targets = self._tokens(clips)
        logits = self.micro.decode(states, frames, tokens)
        attention = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100, label_smoothing=0.02
        )
        return ctc, attention

    def _tokens(self, clips: list[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoder inputs and next-token targets; the prompt itself is no target."""
        start, end = self.micro.start_tokens, self.micro.end_token
        rows = [self.micro.token_ids(clip.text) for clip in clips]
        longest = max(len(row) for row in rows) + len(start)
        tokens = torch.full((len(rows), longest), end)
        targets = torch.full((len(rows), longest), -100)
        for index, row in enumerate(rows):
            sequence = [*start, *row]
            tokens[index, : len(sequence)] = torch.tensor(sequence)
            first = len(start) - 1
            targets[index, first : first + len(row) + 1] = torch.tensor([*row, end])
        return tokens, targets

    def update(self) -> dict[str, float]:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
        ctc, attention = self.losses(self.next_batch())
        total = ctc if attention is None else attention + self.schedule.ctc_weight * ctc
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if torch.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
        self.step += 1
        report = {"ctc": ctc.item(), "norm": float(norm)}
        return report if attention is None else report | {"attention": attention.item()}


def train(trainer: Trainer, checkpoint_s: float, log_every: int = 50) -> None:
    """Run to the end of the schedule, with a checkpoint every `checkpoint_s` seconds."""
    log = (trainer.work / f"{trainer.micro.name}.jsonl").open("a")
    saved, began, sums = time.monotonic(), time.monotonic(), dict[str, float]()
    trainer.micro.model.train()
    while trainer.step < trainer.schedule.steps:
        for key, value in trainer.update().items():
            sums[key] = sums.get(key, 0.0) + value / log_every
        if trainer.step % log_every == 0:
            rate = (time.monotonic() - began) / log_every
            line = {"step": trainer.step, "seconds_a_step": rate} | sums
            print(json.dumps({key: round(value, 4) for key, value in line.items()}), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
            began, sums = time.monotonic(), {}
        if time.monotonic() - saved > checkpoint_s:
            trainer.save()
            saved = time.monotonic()
    trainer.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--corpus", type=Path, default=Path("build/speech"))
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="checkpoints")
    parser.add_argument("--out", type=Path, help="write the finished Hugging Face folder here")
    parser.add_argument("--steps", type=int, default=9_000)
    parser.add_argument("--ctc-steps", type=int, default=Schedule.ctc_steps, help="CTC alone")
    parser.add_argument("--start-from", type=Path, help="finished folder or checkpoint")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--checkpoint-seconds", type=float, default=180)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    corpus = ShardCorpus(arguments.corpus)
    schedule = Schedule(arguments.steps, ctc_steps=arguments.ctc_steps)
    trainer = Trainer(arguments.model, corpus, schedule, arguments.work)
    if arguments.start_from:
        trainer.start_from(arguments.start_from)
    trainer.resume()
    count = sum(parameter.numel() for parameter in trainer.micro.model.parameters())
    print(f"{arguments.model}: {count:,} parameters, {len(corpus.clips):,} clips")
    train(trainer, arguments.checkpoint_seconds)
    if arguments.out:
        trainer.micro.save(arguments.out)


if __name__ == "__main__":
    main()

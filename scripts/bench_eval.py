"""Transcription against a plain loop over transformers' `generate`, on the same clips in turns.

    python scripts/bench_eval.py --model FOLDER --manifest speech.jsonl --where set=NAME --clips 100

The plain loop sorts clips by length and makes features, `generate` and `batch_decode` of a batch
after the other. Both loops get decoded audio in memory and the same batches; each is warmed up, and
they take turns. Measured are the float model, the same with its encoder in bfloat16 against the
plain loop in float32, and a quantized model. Texts must be the same in float32, but for steps at
which two tokens are almost equally likely; of bfloat16 the difference in WER is told.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_common import (
    Subject,
    add_clip_arguments,
    processor,
    run,
    subject_of,
    write_measurements,
)
from rich.console import Console
from rich.table import Table

from edge_asr import api
from edge_asr.audio import SAMPLE_RATE
from edge_asr.config import ProtocolSettings
from edge_asr.data.corpus import ClipEntry, Corpus, Utterance
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.data.overlap import audio_digest
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import ClipOutput, Transcription, joined
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.scoring import results_of, score_data_set
from edge_asr.evaluation.transcribe import DecodeSettings, transcribe
from edge_asr.models.decoding import StackDtypes
from edge_asr.models.files import find_files
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.torch_greedy import TorchRuntime, clip_to_window, token_limit
from edge_asr.store.fingerprint import Digests
from edge_asr.store.phases import PhaseSeconds
from edge_asr.store.record import Interval

WIDTH = 140  # of the table
FLOAT32, BFLOAT16_ENCODER = StackDtypes(), StackDtypes(encoder="bfloat16")


@dataclass(frozen=True)
class Comparison:
    """Our loop and the plain one on one model.

    Attributes:
        plain_s, own_s: Wall seconds of each turn.
        ratio: Median seconds of the plain loop over ours.
        different: Clips of which the texts are not the same; `explained` of them have a near tie.
        near_ties: Steps with two almost equally likely tokens, all clips together.
        plain_wer, own_wer: In percent.
        difference: Ours less the plain loop's, paired.
        seconds: Ours by phase, of the last turn.
    """

    plain_s: tuple[float, ...]
    own_s: tuple[float, ...]
    ratio: float
    different: int
    explained: int
    near_ties: int
    plain_wer: float
    own_wer: float
    difference: Interval
    seconds: PhaseSeconds


@dataclass(frozen=True)
class Bench(Subject):
    """Comparisons of one checkpoint in one environment, by what was compared."""

    processor: str
    clips: int
    audio_seconds: float
    comparisons: dict[str, Comparison]


class Decoded:
    """The clips of a corpus that can be read, decoded once and for all: a corpus itself."""

    conditions: tuple[str, ...] = ()

    def __init__(self, source: Corpus) -> None:
        self.name, self.origin = source.name, source.origin
        self.clips = [one for one in source if isinstance(one, Utterance)]
        self.entries = [ClipEntry(one.id, one.source, one.text, one.metadata) for one in self.clips]

    def audio_digests(self, digests: Digests, indices: Sequence[int] | None = None) -> list[str]:
        del digests
        chosen = self.clips if indices is None else [self.clips[index] for index in indices]
        return [audio_digest(one.samples) for one in chosen]

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self.clips)


class Warm(TorchRuntime):
    """Warmed up when it is made, and not again."""

    def __init__(self, checkpoint: Checkpoint, dtypes: StackDtypes) -> None:
        super().__init__(checkpoint, dtypes)
        super().warm_up()

    def warm_up(self) -> None:
        pass


def plain_loop(checkpoint: Checkpoint, clips: Sequence[Utterance], batch_size: int) -> list[str]:
    """Texts of clips by the library alone, in their order; where a model has a cap for every clip,
    cut to it, for a batch runs to its largest."""
    model: Any = checkpoint.model
    generation = model.generation_config
    options: dict[str, Any] = {}
    if checkpoint.architecture.family == "whisper" and generation.is_multilingual:
        options = {"language": generation.language, "task": generation.task}
    prompt = len(checkpoint.architecture.prompt(model))
    order = sorted(range(len(clips)), key=lambda index: -len(clips[index].samples))
    texts = [""] * len(clips)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        waves = [clip_to_window(checkpoint, clips[index].samples) for index in batch]
        inputs = checkpoint.architecture.model_inputs(checkpoint.feature_extractor, waves)
        limits = [token_limit(checkpoint, len(wave)) for wave in waves]
        with torch.inference_mode():
            tokens = model.generate(
                **inputs, **options, do_sample=False, max_new_tokens=max(limits)
            ).tolist()
        if checkpoint.tokens_per_second is not None:
            tokens = [row[: prompt + limit] for row, limit in zip(tokens, limits, strict=True)]
        found = checkpoint.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for index, text in zip(batch, found, strict=True):
            texts[index] = text.strip()
    return texts


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of some work, and what it gives."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def compare(
    checkpoint: Checkpoint,
    corpus: Decoded,
    dtypes: Sequence[StackDtypes],
    arguments: argparse.Namespace,
) -> list[Comparison]:
    """Both loops in turns, ours once for each of `dtypes`."""
    settings = DecodeSettings(arguments.batch_size)
    runtimes = [Warm(checkpoint, one) for one in dtypes]
    silence = np.zeros(SAMPLE_RATE, np.float32)
    plain_loop(checkpoint, [Utterance("warm-up", silence, "", 1.0, "")], 1)
    plain_s: list[float] = []
    own_s: list[list[float]] = [[] for _ in dtypes]
    rows: list[list[ClipOutput]] = [[] for _ in dtypes]
    texts: list[str] = []
    for _ in range(arguments.repeats):
        seconds, texts = timed(lambda: plain_loop(checkpoint, corpus.clips, arguments.batch_size))
        plain_s.append(seconds)
        for index, runtime in enumerate(runtimes):
            seconds, rows[index] = timed(partial(transcribe, runtime, corpus, settings))
            own_s[index].append(seconds)
    return [
        comparison(corpus, texts, plain_s, found, seconds)
        for found, seconds in zip(rows, own_s, strict=True)
    ]


def comparison(
    corpus: Decoded,
    texts: Sequence[str],
    plain_s: Sequence[float],
    rows: Sequence[ClipOutput],
    own_s: Sequence[float],
) -> Comparison:
    """What the texts of both loops and their seconds say."""
    own = joined(corpus.entries, rows)
    plain = Transcription(
        tuple(replace(one, pred_text=text) for one, text in zip(own.hypotheses, texts, strict=True))
    )
    protocol = ProtocolSettings("open_asr_2024")
    scored = score_data_set(protocol_named(protocol.name), corpus.name, own, plain.hypotheses)
    result = results_of(protocol, scored)[0]
    assert result.wer is not None
    assert result.float_wer is not None
    assert result.difference is not None
    pairs = zip(rows, texts, strict=True)
    different = [row for row, text in pairs if row.pred_text != text]
    return Comparison(
        plain_s=tuple(plain_s),
        own_s=tuple(own_s),
        ratio=statistics.median(plain_s) / statistics.median(own_s),
        different=len(different),
        explained=sum(row.near_ties > 0 for row in different),
        near_ties=sum(row.near_ties for row in rows),
        plain_wer=result.float_wer,
        own_wer=result.wer,
        difference=result.difference,
        seconds=sum((row.seconds for row in rows), start=PhaseSeconds()),
    )


def quantized(checkpoint: Checkpoint, named: str) -> Checkpoint:
    """The model in a folder that `edge_asr.api.save` wrote, or one made by a recipe at 4 bits."""
    if Path(named).is_dir():
        return api.load_quantized(named)
    return api.quantize(checkpoint, named, bits=4)


def bench(arguments: argparse.Namespace) -> Bench:
    """Compare the loops on the float model in both dtypes and on the quantized one."""
    torch.set_num_threads(arguments.threads)
    checkpoint = api.load(str(arguments.model))
    where = dict(pair.split("=", 1) for pair in arguments.where)
    source = ManifestCorpus(arguments.manifest, where=where, limit=arguments.clips)
    corpus = Decoded(source)
    if not corpus.clips:
        raise UserError(f"--manifest={arguments.manifest}: none of its clips can be read")
    made = Bench(
        **vars(subject_of(arguments, find_files(str(arguments.model)))),
        processor=processor(),
        clips=len(corpus),
        audio_seconds=sum(one.seconds for one in corpus.clips),
        comparisons={},
    )
    name = f"{arguments.quantized} W4"
    if Path(arguments.quantized).is_dir():
        name = Path(arguments.quantized).name
    plan: list[tuple[tuple[str, ...], Callable[[], Checkpoint], tuple[StackDtypes, ...]]] = [
        (
            ("float", "float, bfloat16 encoder"),
            lambda: checkpoint,
            (FLOAT32, BFLOAT16_ENCODER),
        ),
        ((name,), lambda: quantized(checkpoint, arguments.quantized), (FLOAT32,)),
    ]
    for names, model, dtypes in plan:
        found = compare(model(), corpus, dtypes, arguments)
        made.comparisons.update(zip(names, found, strict=True))
        if arguments.out:
            write_measurements(arguments.out, made)
    return made


def show(made: Bench) -> None:
    """Print the table, and where our time goes."""
    table = Table(
        "model", "plain s", "ours s", "ratio", "other texts", "unexplained", "near ties",
        "WER plain", "ours", "difference", box=None,
    )  # fmt: skip
    for name, one in made.comparisons.items():
        gap = one.difference
        table.add_row(
            name,
            f"{statistics.median(one.plain_s):.1f}",
            f"{statistics.median(one.own_s):.1f}",
            f"{one.ratio:.2f}",
            str(one.different),
            str(one.different - one.explained),
            str(one.near_ties),
            f"{one.plain_wer:.2f}",
            f"{one.own_wer:.2f}",
            f"{gap.estimate:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]",
        )
    console = Console(highlight=False, soft_wrap=True, width=WIDTH)
    console.print(table)
    for name, one in made.comparisons.items():
        phases = ", ".join(
            f"{phase} {seconds:.1f} s"
            for phase, seconds in vars(one.seconds).items()
            if phase != "audio"
        )
        console.print(f"{name}: {phases}")
    console.print(
        f"{made.model}: {made.clips} clips, {made.audio_seconds:.0f} s, batches of "
        f"{made.batch_size}, {made.environment.threads} threads, {made.processor}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_clip_arguments(parser, clips=100)
    parser.set_defaults(batch_size=16)
    parser.add_argument(
        "--quantized", default="rtn", help="recipe, at 4 bits, or folder of a quantized model"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of each loop")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    arguments = parser.parse_args()
    run(parser, lambda: show(bench(arguments)))


if __name__ == "__main__":
    main()

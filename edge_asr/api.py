"""What a notebook calls: load, quantize, save, load back, evaluate, run.

    from edge_asr import api

    model = api.load("whisper_micro")
    small = api.quantize(model, "gptq", bits=3)
    print(api.evaluate(small, limit=100, against=api.evaluate(model, limit=100)))
    api.save(small, "whisper-micro-3bit")
    record = api.run("method=gptq", "bits=3")

`run` is what the command line does: it keeps every step in a store and leaves a record. The other
functions work in memory and keep nothing. All raise `edge_asr.errors.UserError`, one line, for what
the caller can mend.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from edge_asr.calibration.batches import calibration_batches
from edge_asr.cli.compose import Composer, compose_settings
from edge_asr.config import ModelSettings
from edge_asr.cost.model import Cost, cost_of
from edge_asr.data.corpus import Corpus
from edge_asr.data.sources import Embedded, Manifest
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, Transcription, joined
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.scoring import results_of, score_data_set, worst_utterances
from edge_asr.evaluation.transcribe import DecodeSettings, transcribe
from edge_asr.experiments.ptq import run_experiment
from edge_asr.experiments.sections import quantized_summary, workloads_of
from edge_asr.models.decoding import Decoding
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.layers import quantized_layers
from edge_asr.quant.model_folder import load_model, save_model
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.sequential import quantize_model
from edge_asr.runtimes.torch_greedy import TorchRuntime
from edge_asr.settings import build
from edge_asr.store.record import Interval, Record, Result, WorstUtterance

Clips = str | Path | Corpus
MB = 1e6


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What a model made of some clips.

    Attributes:
        results: A row for all clips, and one for each condition and range of lengths they have.
        transcription: Hypotheses, and the clips that could not be used.
        cost: Arithmetic, memory traffic and size on these clips, of the model as stored.
        worst: The utterances with the most errors.
    """

    results: tuple[Result, ...]
    transcription: Transcription
    cost: Cost
    worst: tuple[WorstUtterance, ...] = ()

    @property
    def wer(self) -> Interval:
        """Word error rate in percent, with its 95 % bootstrap interval."""
        interval = self.results[0].interval
        assert interval is not None, "of all clips there always is one"
        return interval

    @property
    def difference(self) -> Interval | None:
        """WER less that of the other evaluation, clip by clip; None without one."""
        return self.results[0].difference

    @property
    def hypotheses(self) -> pd.DataFrame:
        """A row a clip: id, reference `text`, hypothesis `pred_text`, tokens and seconds."""
        return pd.DataFrame([dataclasses.asdict(one) for one in self.transcription.hypotheses])

    @property
    def frame(self) -> pd.DataFrame:
        """A row for all clips and one a part of them: WER with interval, difference, cost.

        WER in percent, size in MB, memory I/O in MB and GBOPs an utterance.
        """
        return pd.DataFrame(
            {
                "condition": row.condition,
                "utterances": row.utterances,
                "cer": row.cer,
                "rare_wer": row.rare_wer,
                **_interval("wer", row.interval),
                **_interval("delta_wer", row.difference),
                "size_mb": self.cost.size.bytes / MB,
                "bits_per_parameter": self.cost.size.bits_per_parameter,
                "memory_io_mb": self.cost.memory_io.total / MB,
                "gbops": self.cost.bit_operations.total / 1e9,
            }
            for row in self.results
        )

    def __repr__(self) -> str:
        return self.frame.to_string(index=False, float_format="%.2f")


def _interval(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def load(
    model: str, *, device: str = "cpu", language: str | None = None, task: str | None = None
) -> Checkpoint:
    """A float checkpoint.

    Args:
        model: A name of conf/model (`whisper_tiny_en`), an embedded name, a folder or a hub id.
        device: Where to put it.
        language, task: What a multilingual one is told to write; None: as the checkpoint says.
    """
    decoding = build(Decoding, {"language": language, "task": task}, "decode")
    with Composer() as composer:
        known = composer.options("model")
        settings = ModelSettings(path=model)
        if model in known:
            settings = composer.settings([f"model={model}"]).model
    return load_checkpoint(
        settings.path,
        name=settings.name,
        device=device,
        tokens_per_second=settings.tokens_per_second,
        decoding=decoding,
    )


def quantize(
    model: Checkpoint,
    method: str,
    *words: str,
    calibration: Clips | None = None,
    **options: Any,
) -> Checkpoint:
    """A quantized copy of a float checkpoint, on its device.

    Args:
        model: The float model; it stays as it is.
        method: A recipe's name, such as `gptq`.
        words: Further options as on the command line: `"method.rounding.damping=0.05"`.
        calibration: Clips for methods that look at some: a manifest's path or a corpus; None for
            the embedded ones, whose speech is synthetic.
        options: The same by name: `bits=3`, `group_size=64`, `act_bits=8`, `scheme="w4a8"`.
    """
    if quantized_layers(model.model):
        raise UserError(f"model={model.name}: is quantized already; give the float checkpoint")
    given = [f"{name}={'null' if value is None else value}" for name, value in options.items()]
    settings = compose_settings(f"method={method}", *given, *words)
    recipe, scheme = Recipe.build(settings.method.stages), settings.rules()
    if not recipe.quantizes:
        raise UserError(f"method={method}: quantizes nothing; choose another")
    recipe.check(scheme, settings.target)
    network = copy.deepcopy(model.model)
    formats, _ = recipe.formats(
        scheme, settings.target, model.architecture, network.config,
        lambda name: network.get_parameter(f"{name}.weight")[0].numel(),
    )  # fmt: skip
    said: list[str] = []
    batches = []
    if recipe.needs_calibration(formats.values()):
        chosen = settings.calibration
        batches = calibration_batches(
            model,
            _calibration_clips(calibration),
            chosen.clips,
            chosen.batch_size,
            chosen.seed,
            said.append,
            padding_weight=chosen.padding_weight,
            pack=chosen.pack,
        )
    result = quantize_model(
        network,
        model.architecture,
        batches,
        recipe,
        formats,
        stored_dtype=model.stored_dtype,
        layer_errors=bool(batches),
        dtype=getattr(torch, settings.calibration.dtype),
    )
    warnings = (*model.warnings, *said, *result.warnings)
    return dataclasses.replace(model, model=network, warnings=warnings)


def save(model: Checkpoint, folder: str | Path) -> Path:
    """Write a quantized model, its processor with it, to a folder; `load_quantized` reads it back
    bit for bit."""
    if not quantized_layers(model.model):
        raise UserError(f"model={model.name}: is not quantized; quantize it first")
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    save_model(place, model)
    return place


def load_quantized(folder: str | Path, *, device: str = "cpu") -> Checkpoint:
    """A quantized model that `save` wrote, or the quantize step of a store."""
    return load_model(Path(folder).expanduser(), device)


def evaluate(
    model: Checkpoint,
    data: Clips | None = None,
    *,
    limit: int | None = None,
    protocol: str = "open_asr_2024",
    batch_size: int = 32,
    against: Evaluation | None = None,
) -> Evaluation:
    """Transcribe clips with a float or quantized model and score what it heard.

    Args:
        model: Which one.
        data: A manifest's path or a corpus; None for the embedded test clips.
        limit: Only this many clips.
        protocol: How to score.
        batch_size: Clips decoded together; 1 is Moonshine's exact mode.
        against: Another model's evaluation on the same clips, such as the float model's: the
            difference to it is added, paired clip by clip.
    """
    settings = compose_settings(f"protocol={protocol}", f"batch_size={batch_size}")
    corpus = _test_clips(data, limit)
    decoding = DecodeSettings(
        settings.batch_size, settings.max_new_tokens, too_long=model.decoding.too_long
    )
    transcription = joined(corpus.entries, transcribe(TorchRuntime(model), corpus, decoding))
    baseline = None if against is None else against.transcription.hypotheses
    if baseline and {one.id for one in baseline} != {one.id for one in transcription.hypotheses}:
        raise UserError("against: is of other clips; evaluate both with the same data and limit")
    scored = score_data_set(
        protocol_named(settings.protocol.name), corpus.name, transcription, baseline
    )
    results = results_of(settings.protocol, scored)
    worst = worst_utterances([scored])
    return Evaluation(results, transcription, _cost(model, transcription.hypotheses), worst)


def run(*words: str) -> Record:
    """One run, as `python -m edge_asr.run` makes it: `run("method=gptq", "bits=3")`.

    Its steps are kept in a store, its record in `runs/`.
    """
    return run_experiment(compose_settings(*words)).record


def _test_clips(data: Clips | None, limit: int | None) -> Corpus:
    if data is None:
        return Embedded().clips(limit)
    if isinstance(data, str | Path):
        return Manifest(path=str(data)).clips(limit)
    if limit is not None:
        raise UserError(f"limit={limit}: a corpus has its own length; give one of that many clips")
    return data


def _calibration_clips(calibration: Clips | None) -> Corpus:
    if calibration is None:
        return Embedded().calibration_clips()
    if isinstance(calibration, str | Path):
        return Manifest(path=str(calibration)).calibration_clips()
    return calibration


def _cost(model: Checkpoint, hypotheses: tuple[Hypothesis, ...]) -> Cost:
    network, architecture = model.model, model.architecture
    summary = quantized_summary(network, architecture, model.float_bits)
    prompt = len(architecture.prompt(network))
    return cost_of(summary, workloads_of(architecture, network.config, prompt, hypotheses))

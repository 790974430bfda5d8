"""One run from start to record: load, calibrate, quantize, transcribe, score, cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from edge_asr.calibration.batches import calibration_batches
from edge_asr.config import DataSettings, Settings
from edge_asr.cost.summary import take_inventory
from edge_asr.data.corpus import Corpus
from edge_asr.data.embedded import embedded_calibration, embedded_test
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.errors import UserError
from edge_asr.evaluation.scoring import score_run
from edge_asr.evaluation.transcribe import (
    DecodeSettings,
    Hypothesis,
    read_hypotheses,
    transcribe,
)
from edge_asr.experiments import identity
from edge_asr.experiments.sections import cost_section, method_section, model_section
from edge_asr.memory import peak_memory_bytes, reset_peak_memory
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.walker import Quantization, quantize_model
from edge_asr.store.record import (
    RECORD_NAME,
    Record,
    Stage,
    current_environment,
    now,
    read_record,
    write_record,
)

HYPOTHESES_NAME = "hypotheses.jsonl"
LOCK_NAME = ".lock"

# Called with (stage, done, total) as a run goes on.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """The record of a run, where it lies, and whether it had been made before."""

    record: Record
    folder: Path
    stored: bool
    baseline: Outcome | None = None


@dataclass
class _Journal:
    """What a run notes on its way to the record."""

    progress: Progress
    stages: list[Stage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name, 0, 0)
        reset_peak_memory()
        began = time.perf_counter()
        yield
        self.stages.append(Stage(name, time.perf_counter() - began, peak_memory_bytes()))


def run_experiment(
    settings: Settings,
    progress: Progress = lambda *_: None,
    *,
    with_hypotheses: bool = False,
) -> Outcome:
    """Make one run, or read its record when it was made before.

    A quantized run first makes (or reads) the float run on the same clips, to be compared
    with pair by pair.

    Args:
        settings: Of the run.
        progress: Hears how it goes.
        with_hypotheses: A record alone will not do: records are small and travel with a
            repository, hypotheses may have stayed behind.

    Raises:
        UserError: for whatever the user can mend; no record is written then.
    """
    recipe = Recipe.build(settings.method.stages) if settings.method.quantizes else None
    if recipe is not None:
        recipe.check_grids(settings.grid, settings.activation_grid)
    corpus = open_corpus(settings)
    run = identity.run_identity(settings)
    folder = settings.results_folder / identity.folder_name(settings, run)
    done = _stored(settings, folder, with_hypotheses)
    if done is not None:
        return done
    _make_writable(settings.results_folder, folder)
    with _alone(settings.results_folder, folder, progress):
        # Another run may have made it while this one waited.
        done = _stored(settings, folder, with_hypotheses)
        return done or _run(settings, recipe, corpus, run, folder, progress)


def _run(
    settings: Settings,
    recipe: Recipe | None,
    corpus: Corpus,
    run: str,
    folder: Path,
    progress: Progress,
) -> Outcome:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    baseline = None
    if settings.method.quantizes:
        plain = identity.float_settings(settings)
        baseline = run_experiment(plain, progress, with_hypotheses=True)
    record = _make_record(settings, recipe, corpus, run, folder, baseline, progress)
    write_record(folder, record)
    return Outcome(record, folder, False, baseline)


def _stored(settings: Settings, folder: Path, with_hypotheses: bool = False) -> Outcome | None:
    """The finished run in `folder`, unless it is to be made again."""
    needed = [RECORD_NAME, HYPOTHESES_NAME] if with_hypotheses else [RECORD_NAME]
    if settings.rerun or not all((folder / name).exists() for name in needed):
        return None
    return Outcome(read_record(folder / RECORD_NAME), folder, True, _stored_float(settings))


def _stored_float(settings: Settings) -> Outcome | None:
    """The finished float run on the same clips, if this is a quantized run and it exists."""
    if not settings.method.quantizes:
        return None
    plain = identity.float_settings(settings)
    name = identity.folder_name(plain, identity.run_identity(plain))
    return _stored(plain, settings.results_folder / name)


@contextmanager
def _alone(results: Path, folder: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other run works on the record in `folder`, and keep others waiting.

    Runs that start side by side ask for the same float run.
    """
    lock = FileLock(folder / LOCK_NAME)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(f"wait for another run that is making {folder.name}", 0, 0)
            lock.acquire()
    except OSError as error:
        raise _not_writable(results, error) from error
    try:
        yield
    finally:
        lock.release()


def open_corpus(settings: Settings) -> Corpus:
    """The clips to transcribe. Raises UserError for a missing or unusable manifest."""
    data = settings.data
    if data.path is None:
        return embedded_test(data.condition, data.limit, data.where)
    return ManifestCorpus(data.path, limit=data.limit, where=data.where, name=_corpus_name(data))


def _corpus_name(data: DataSettings) -> str:
    """The manifest's name with its folder and selection, so that parts are told apart."""
    manifest = Path(str(data.path)).expanduser().resolve()
    selection = "".join(f"-{value}" for _, value in sorted(data.where.items()))
    limit = f"-first{data.limit}" if data.limit else ""
    return f"{manifest.parent.name}-{manifest.stem}{selection}{limit}"


def _open_calibration(settings: Settings) -> Corpus:
    calibration = settings.calibration
    if calibration.path is None:
        return embedded_calibration(where=calibration.where)
    return ManifestCorpus(calibration.path, where=calibration.where, require_text=False)


def _make_writable(results: Path, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another run may have been as far
    except OSError as error:
        raise _not_writable(results, error) from error


def _not_writable(results: Path, error: OSError) -> UserError:
    return UserError(
        f"results={results}: cannot write there ({error.strerror}); "
        "give a folder you may write to, results=FOLDER"
    )


def _make_record(
    settings: Settings,
    recipe: Recipe | None,
    corpus: Corpus,
    run: str,
    folder: Path,
    baseline: Outcome | None,
    progress: Progress,
) -> Record:
    journal = _Journal(progress)
    with journal.stage("load"):
        model = settings.model
        checkpoint = load_checkpoint(
            model.path,
            name=model.name,
            device=settings.device,
            tokens_per_second=model.tokens_per_second,
        )
        # A method may untie or add parameters, so the float model is described before.
        section = model_section(settings, checkpoint)
        plain = take_inventory(
            checkpoint.model, checkpoint.architecture, float_bits=settings.float_bits
        )
    quantization = Quantization()
    if recipe is not None:
        quantization = _quantize(settings, recipe, checkpoint, journal)
    with journal.stage("transcribe"):
        transcription = transcribe(
            checkpoint,
            corpus,
            DecodeSettings(settings.batch_size, settings.max_new_tokens),
            folder / HYPOTHESES_NAME,
            on_batch=lambda done, total: progress("transcribe", done, total),
            resume_key=run,
        )
    with journal.stage("score"):
        results, averages = score_run(
            settings.protocol,
            corpus.name,
            transcription,
            _float_hypotheses(baseline),
        )
        cost = cost_section(plain, checkpoint, quantization, transcription.hypotheses)
    journal.warnings += [f"{clip.source}: {clip.reason}" for clip in transcription.damaged]
    truncated = sum(hypothesis.truncated for hypothesis in transcription.hypotheses)
    if truncated:
        journal.warnings.append(
            f"{truncated} clips are longer than the model's window; only its length was heard"
        )
    return Record(
        run_id=run,
        created=now(),
        config=settings.identity(),
        environment=current_environment(settings.device, torch.get_num_threads()),
        model=section,
        method=method_section(settings, checkpoint, quantization),
        results=results,
        averages=averages,
        batch_size=settings.batch_size,
        cost=cost,
        stages=tuple(journal.stages),
        seeds={"calibration": settings.calibration.seed, "bootstrap": settings.protocol.seed},
        warnings=tuple(journal.warnings),
        hypotheses_file=HYPOTHESES_NAME,
    )


def _quantize(
    settings: Settings, recipe: Recipe, checkpoint: Checkpoint, journal: _Journal
) -> Quantization:
    with journal.stage("calibrate"):
        batches = calibration_batches(
            checkpoint,
            _open_calibration(settings),
            settings.calibration.clips,
            settings.calibration.batch_size,
            settings.calibration.seed,
            on_warning=journal.warnings.append,
        )
    with journal.stage("quantize"):
        return quantize_model(
            checkpoint.model,
            checkpoint.architecture,
            batches,
            recipe,
            settings.grid,
            activation=settings.activation_grid,
            progress=lambda block, done, total: journal.progress(f"quantize {block}", done, total),
        )


def _float_hypotheses(baseline: Outcome | None) -> Sequence[Hypothesis] | None:
    return None if baseline is None else read_hypotheses(baseline.folder / HYPOTHESES_NAME)

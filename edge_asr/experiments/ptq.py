"""One post-training quantization run: calibrate, quantize, transcribe, score, cost, record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edge_asr.config import Settings
from edge_asr.cost.model import cost_of
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Transcription, joined, write_hypotheses
from edge_asr.evaluation.scoring import score_run
from edge_asr.experiments.plan import Plan, float_plan, make_plan
from edge_asr.experiments.sections import (
    float_summary,
    method_section,
    model_section,
    quantized_summary,
    workloads_of,
)
from edge_asr.experiments.steps import (
    QUANTIZE,
    Progress,
    Steps,
    output_rows,
    quantize_result,
    silent,
)
from edge_asr.models.loading import check_device
from edge_asr.quant.result import Quantization
from edge_asr.store.artefacts import Artefact, Store
from edge_asr.store.failure import failure_noted
from edge_asr.store.record import (
    RECORD_NAME,
    CostSection,
    DataSection,
    LayerSection,
    Record,
    Stage,
    current_environment,
    now,
    read_record,
    write_record,
)

HYPOTHESES_NAME = "hypotheses.jsonl"
LONGEST_SOURCE = 120  # of a damaged clip, in a warning


@dataclass(frozen=True)
class Outcome:
    """The record of a run, where it lies, whether it had been made before, and the float run's.

    `baseline` is None for a float run, and where another process was still making it.
    """

    record: Record
    folder: Path
    stored: bool
    baseline: Record | None = None


def run_experiment(settings: Settings, progress: Progress = silent) -> Outcome:
    """Make one run, or read its record when it was made before.

    A quantized run also makes the float run on the same clips, unless another process is at it, to
    be compared with pair by pair. Whatever is in the store already is not made again.

    Raises:
        UserError: for whatever the user can mend; no record is written then.
    """
    check_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    store = Store(settings.store_folder)
    progress("read the checkpoint and the clips")
    plan = make_plan(settings, store)
    with failure_noted(plan.folder, settings.provenance()):
        return _run(plan, store, progress)


def _run(plan: Plan, store: Store, progress: Progress) -> Outcome:
    settings, plain = plan.settings, float_plan(plan)
    done, baseline = _stored(plan), _stored(plain)
    if done is not None and not settings.rerun and (plan.quantize is None or _compared(done)):
        return Outcome(done, plan.folder, True, baseline if plan.quantize else None)
    _make_writable(plan)
    store.check_writable()
    steps = Steps(plan, store, progress)
    floats = None
    if plan.quantize is not None:
        # First, while the model that is loaded is the float one.
        floats = steps.transcribe_float_if_free()
        if floats is None and done is not None and not settings.rerun:
            return Outcome(done, plan.folder, True)
    heard = steps.transcribe()
    if plan.quantize is not None and floats is None:
        floats = steps.transcribe_float_if_free()
    if floats is not None and baseline is None:
        baseline = _write(plain, Steps(plain, store), floats, None)
    record = _write(plan, steps, heard, floats)
    store.prune(settings.store_cap_bytes, QUANTIZE)
    return Outcome(record, plan.folder, False, baseline)


def _write(plan: Plan, steps: Steps, transcribed: Artefact, floats: Artefact | None) -> Record:
    """Score, count, and write the record and the hypotheses beside it."""
    transcription = joined(plan.corpus.entries, output_rows(transcribed))
    record = _record(plan, steps, transcribed, transcription, floats)
    write_hypotheses(plan.folder / HYPOTHESES_NAME, transcription.hypotheses)
    write_record(plan.folder, record)
    return record


def _record(
    plan: Plan,
    steps: Steps,
    transcribed: Artefact,
    transcription: Transcription,
    floats: Artefact | None,
) -> Record:
    settings = plan.settings
    began = time.perf_counter()
    baseline = None
    if plan.quantize is not None and floats is not None:
        baseline = joined(plan.corpus.entries, output_rows(floats)).hypotheses
    results, averages = score_run(settings.protocol, plan.corpus.name, transcription, baseline)
    width = settings.float_bits or plan.files.float_bits
    plain = quantized = float_summary(plan, width)
    quantization = Quantization()
    layers: tuple[LayerSection, ...] = ()
    if plan.quantize is not None:
        said = quantize_result(transcribed)
        quantization, layers, quantized = said.quantization, said.layers, said.summary
        if width != plan.files.float_bits:
            model = steps.quantized_checkpoint().model
            quantized = quantized_summary(model, plan.architecture, width)
    prompt_tokens = int(transcribed.notes["prompt_tokens"])
    workloads = workloads_of(
        plan.architecture, plan.config, prompt_tokens, transcription.hypotheses
    )
    stages = {stage.name: stage for stage in steps.stages}
    stages.setdefault("transcribe", _stage(transcribed))
    stages["score"] = Stage("score", time.perf_counter() - began)
    keys = {"transcribe": plan.transcribe.key}
    keys |= {} if plan.quantize is None else {"quantize": plan.quantize.key}
    keys |= {} if plan.calibrate is None else {"calibrate": plan.calibrate.key}
    return Record(
        run_id=plan.run_id,
        created=now(),
        config=settings.provenance(),
        environment=current_environment(settings.device, torch.get_num_threads()),
        model=model_section(plan, width),
        method=method_section(plan, layers, quantization, width),
        results=results,
        averages=averages,
        batch_size=settings.batch_size,
        cost=CostSection(cost_of(quantized, workloads), cost_of(plain, workloads)),
        stages=tuple(stages.values()),
        seeds={"calibration": settings.calibration.seed, "bootstrap": settings.protocol.seed},
        warnings=_warnings(plan, transcribed.warnings, transcription, floats),
        hypotheses_file=HYPOTHESES_NAME,
        keys=keys,
        data=(DataSection(plan.corpus.name, len(plan.corpus), plan.audio_digest),),
    )


def _stage(artefact: Artefact) -> Stage:
    return Stage(artefact.step, artefact.seconds, artefact.peak_memory_bytes, stored=True)


def _warnings(
    plan: Plan, made: Sequence[str], transcription: Transcription, floats: Artefact | None
) -> tuple[str, ...]:
    damaged = (f"{clip.source:.{LONGEST_SOURCE}}: {clip.reason}" for clip in transcription.damaged)
    warnings = [*made, *damaged]
    truncated = sum(hypothesis.truncated for hypothesis in transcription.hypotheses)
    if truncated:
        warnings.append(
            f"{truncated} clips are longer than the model's window; only its length was heard"
        )
    empty = sum(not hypothesis.pred_text for hypothesis in transcription.hypotheses)
    if 2 * empty > len(transcription.hypotheses):
        warnings.append(f"{empty} of {len(transcription.hypotheses)} outputs are empty")
    cut = sum(hypothesis.hit_limit for hypothesis in transcription.hypotheses)
    if 10 * cut > len(transcription.hypotheses):
        warnings.append(
            f"{cut} of {len(transcription.hypotheses)} outputs were cut at their limit of tokens: "
            "loops, or a max_new_tokens or model.tokens_per_second that is too small"
        )
    if plan.quantize is not None and floats is None:
        warnings.append(
            "no difference to the float model: another process was still making its hypotheses; "
            "the same command again adds it"
        )
    return tuple(dict.fromkeys(warnings))


def _stored(plan: Plan) -> Record | None:
    """The finished record of a plan; one that cannot be read counts as missing."""
    needed = [plan.folder / RECORD_NAME, plan.folder / HYPOTHESES_NAME]
    if not all(path.exists() for path in needed):
        return None
    try:
        return read_record(plan.folder / RECORD_NAME)
    except UserError:
        return None


def _compared(record: Record) -> bool:
    """Whether it has its difference to the float model, whose hypotheses another process may have
    been making."""
    return any(result.difference is not None for result in record.results)


def _make_writable(plan: Plan) -> None:
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        probe = plan.folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another run may have been as far
    except OSError as error:
        raise UserError(
            f"results={plan.settings.results}: cannot write there ({error.strerror}); "
            "give a folder you may write to, results=FOLDER"
        ) from error

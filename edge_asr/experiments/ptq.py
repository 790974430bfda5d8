"""One post-training quantization run: calibrate, quantize, transcribe, score, cost, record."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from edge_asr.config import Settings
from edge_asr.cost.model import cost_of
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Transcription, differing_texts, joined, same_clips
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.scoring import (
    DataSetScore,
    average_of,
    results_of,
    score_data_set,
    worst_utterances,
)
from edge_asr.evaluation.transcribe import BatchTooLarge
from edge_asr.experiments.clips import overlap_warnings
from edge_asr.experiments.files import (
    TOO_LITTLE_MEMORY,
    is_complete,
    stored_record,
    write_alignments,
    write_manifest,
)
from edge_asr.experiments.plan import (
    DataSet,
    Plan,
    float_plan,
    make_plan,
    with_batch_size,
)
from edge_asr.experiments.sections import (
    data_section,
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
    stage_name,
)
from edge_asr.experiments.sweeps import unresolved_folder
from edge_asr.experiments.transcription import check_languages
from edge_asr.models.loading import check_device
from edge_asr.processes import Processes
from edge_asr.quant.result import Quantization
from edge_asr.store.artefacts import Artefact, Store
from edge_asr.store.environment import current_environment
from edge_asr.store.failure import failure_noted
from edge_asr.store.file_texts import DifferingText, FileTexts
from edge_asr.store.record import CostSection, LayerSection, Record, Stage, now, write_record

log = logging.getLogger(__name__)
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
    return run_plan(resolve(settings, progress), progress)


def run_plan(plan: Plan, progress: Progress = silent) -> Outcome:
    """The same of a run that is resolved; what ends it is noted in its folder."""
    with failure_noted(plan.folder, plan.settings.provenance()):
        return _run(plan, Store(plan.settings.store_folder), progress)


def run_noted(settings: Settings, progress: Progress = silent) -> Outcome:
    """The same of settings; what keeps them from being resolved is noted too."""
    with failure_noted(unresolved_folder(settings), settings.provenance()):
        plan = resolve(settings, progress)
    return run_plan(plan, progress)


def resolve(settings: Settings, progress: Progress = silent) -> Plan:
    """What the run will do on this machine. Raises UserError for what the user can mend."""
    check_device(Processes.of_environment().device(settings.device))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    progress("read the checkpoint and the clips")
    return make_plan(settings, Store(settings.store_folder))


def _run(plan: Plan, store: Store, progress: Progress) -> Outcome:
    """The run, or with half of the batch size, whole, as often as memory is not enough."""
    steps = Steps(plan, store, progress)
    while True:
        asked = steps.plan.settings.batch_size
        try:
            return _complete(steps)
        except BatchTooLarge as error:
            if asked == 1:
                raise
            said = f"batch_size={asked // 2}: {TOO_LITTLE_MEMORY} {error}"
        with suppress(OSError):
            steps.plan.folder.rmdir()  # there if it was made for this
        log.warning(said)
        smaller = with_batch_size(steps.plan, asked // 2)
        steps = dataclasses.replace(steps, plan=smaller, warnings=[said])


def _complete(steps: Steps) -> Outcome:
    plan, store = steps.plan, steps.store
    settings, plain, processes = plan.settings, float_plan(plan), steps.processes
    found = _finished(plan, store), stored_record(plain.folder)
    done, baseline = processes.from_main(found)
    if done is not None and not settings.rerun and is_complete(done):
        return Outcome(done, plan.folder, True, baseline if plan.quantize else None)
    _make_writable(plan)
    store.check_writable()
    floats: list[Artefact | None] = [None] * len(plan.data_sets)
    if plan.quantize is not None:
        # First, while the model that is loaded is the float one.
        floats = [steps.transcribe_float_if_free(one) for one in plan.data_sets]
        if None in floats and done is not None and not settings.rerun:
            return Outcome(done, plan.folder, True)
    heard = [steps.transcribe(one) for one in plan.data_sets]
    if plan.quantize is not None:
        # Another process may have made those that it was at.
        floats = [
            found or steps.transcribe_float_if_free(one)
            for found, one in zip(floats, plan.data_sets, strict=True)
        ]
    known = [found for found in floats if found is not None]
    complete = len(known) == len(floats)
    record = None
    if processes.is_main:
        if complete and baseline is None:
            baseline = _write(plain, Steps(plain, store, warnings=steps.warnings), known, None)
        record = _write(plan, steps, heard, known if complete else None)
        store.prune(settings.store_cap_bytes, QUANTIZE)
    record, baseline = processes.from_main((record, baseline))
    assert record is not None, "the main process has written it"
    return Outcome(record, plan.folder, False, baseline)


def _finished(plan: Plan, store: Store) -> Record | None:
    """The record that is there, unless the simulation has been made since and can be added."""
    record = stored_record(plan.folder)
    if record is None or record.file_texts is not None:
        return record
    steps = [
        step
        for one in plan.data_sets
        for step in (one.transcribe, one.transcribe_float, one.simulate)
    ]
    # Nothing may have to be made for it.
    return None if all(step and store.holds(step) for step in steps) else record


def _write(
    plan: Plan, steps: Steps, heard: Sequence[Artefact], floats: Sequence[Artefact] | None
) -> Record:
    """Score, count, and write the record, the hypotheses and their alignments beside it."""
    began = time.perf_counter()
    scored = [
        _scored(plan, data, artefact, None if floats is None else floats[index])
        for index, (data, artefact) in enumerate(zip(plan.data_sets, heard, strict=True))
    ]
    record = _record(plan, steps, heard, scored, time.perf_counter() - began)
    for one, name in zip(scored, record.hypotheses_files.values(), strict=True):
        write_manifest(plan.folder / name, one)
    write_alignments(plan.folder, scored)
    write_record(plan.folder, record)
    return record


def _scored(plan: Plan, data: DataSet, heard: Artefact, floats: Artefact | None) -> DataSetScore:
    """One data set, scored. Raises UserError for clips that calibration must not have seen."""
    rows = output_rows(heard)
    check_languages(data.corpus, heard.notes["language"])
    _ = _overlap(plan, heard)
    entries, baseline = data.corpus.entries, None
    if floats is not None:
        baseline = joined(entries, output_rows(floats)).hypotheses
    protocol = protocol_named(plan.settings.protocol.name)
    return score_data_set(protocol, data.name, joined(entries, rows), baseline)


def _overlap(plan: Plan, heard: Artefact) -> list[str]:
    """What to say of calibration clips in a data set; of some corpora only those who transcribe
    know the audio. Raises UserError where there must be none."""
    shared = plan.calibration_digests & {row.audio_digest for row in output_rows(heard)}
    return overlap_warnings(plan.settings, len(shared))


def _record(
    plan: Plan,
    steps: Steps,
    heard: Sequence[Artefact],
    scored: Sequence[DataSetScore],
    seconds: float,
) -> Record:
    settings, first = plan.settings, heard[0]
    width = settings.float_bits or plan.files.float_bits
    plain = quantized = float_summary(plan, width)
    quantization = Quantization()
    layers: tuple[LayerSection, ...] = ()
    if plan.quantize is not None:
        said = quantize_result(first)
        quantization, layers, quantized = said.quantization, said.layers, said.summary
        if width != plan.files.float_bits:
            model = steps.quantized_checkpoint().model
            quantized = quantized_summary(model, plan.architecture, width)
    workloads = workloads_of(
        plan.architecture,
        plan.config,
        int(first.notes["prompt_tokens"]),
        [clip for one in scored for clip in one.transcription.hypotheses],
    )
    stages = {stage.name: stage for stage in steps.stages}
    for data, artefact in zip(plan.data_sets, heard, strict=True):
        stages.setdefault(stage_name(plan, data), _stage(artefact, stage_name(plan, data)))
    stages["score"] = Stage("score", seconds)
    keys = {stage_name(plan, data): data.transcribe.key for data in plan.data_sets}
    keys |= {} if plan.quantize is None else {"quantize": plan.quantize.key}
    keys |= {} if plan.calibrate is None else {"calibrate": plan.calibrate.key}
    return Record(
        run_id=plan.run_id,
        created=now(),
        config=settings.provenance(),
        environment=current_environment(settings.device, torch.get_num_threads()),
        model=model_section(plan, width),
        method=method_section(plan, layers, quantization, width),
        results=tuple(row for one in scored for row in results_of(settings.protocol, one)),
        averages=(average_of(settings.protocol, scored),),
        batch_size=settings.batch_size,
        cost=CostSection(cost_of(quantized, workloads), cost_of(plain, workloads)),
        stages=tuple(stages.values()),
        seeds={"calibration": settings.calibration.seed, "bootstrap": settings.protocol.seed},
        warnings=(*steps.warnings, *_warnings(plan, heard, scored)),
        keys=keys,
        data=tuple(
            data_section(plan, data, output_rows(artefact))
            for data, artefact in zip(plan.data_sets, heard, strict=True)
        ),
        decoding={
            "language": first.notes["language"],
            "task": first.notes["task"],
            "suppression": settings.decode.suppression,
            "encoder_dtype": plan.dtypes.encoder,
            "decoder_dtype": plan.dtypes.decoder,
        },
        worst=worst_utterances(scored),
        file_texts=_file_texts(plan, steps.store, scored),
    )


def _file_texts(plan: Plan, store: Store, scored: Sequence[DataSetScore]) -> FileTexts | None:
    """The texts of the file beside those of the simulation, where that was made."""
    differing: list[DifferingText] = []
    compared = 0
    for data, one in zip(plan.data_sets, scored, strict=True):
        simulated = store.find(data.simulate) if data.simulate else None
        if simulated is None:
            return None
        theirs = joined(data.corpus.entries, output_rows(simulated)).hypotheses
        both = same_clips(one.transcription.hypotheses, theirs)
        differing += differing_texts(data.name, both)
        compared += len(both)
    return FileTexts(compared, tuple(differing))


def _stage(artefact: Artefact, name: str) -> Stage:
    return Stage(name, artefact.seconds, artefact.peak_memory_bytes, stored=True)


def _warnings(
    plan: Plan, heard: Sequence[Artefact], scored: Sequence[DataSetScore]
) -> tuple[str, ...]:
    """What was said on the way, and what the outputs say."""
    warnings = [text for artefact in heard for text in artefact.warnings]
    # Not of the calibration step, which runs on other data sets share.
    warnings += [text for artefact in heard for text in _overlap(plan, artefact)]
    warnings += protocol_warnings(plan.settings, heard[0].notes["language"])
    for one in scored:
        named = f"{one.name}: " if len(scored) > 1 else ""
        warnings += [f"{named}{text}" for text in output_warnings(one.transcription)]
    if plan.quantize is not None and scored[0].plain is None:
        warnings.append(
            "no difference to the float model: another process was still making its hypotheses; "
            "the same command again adds it"
        )
    return tuple(dict.fromkeys(warnings))


def protocol_warnings(settings: Settings, language: str | None) -> list[str]:
    """Where a run decodes otherwise than its protocol expects."""
    protocol, decode, warnings = protocol_named(settings.protocol.name), settings.decode, []
    if protocol.language and language and language != protocol.language:
        warnings.append(
            f"protocol {protocol.name} normalizes {protocol.language!r}, but {language!r} is "
            "decoded; protocol=multilingual is for any language"
        )
    if protocol.suppression and decode.suppression != protocol.suppression:
        warnings.append(
            f"protocol {protocol.name} is of models that decode with "
            f"decode.suppression={protocol.suppression}; this run has {decode.suppression}"
        )
    return warnings


def output_warnings(transcription: Transcription) -> list[str]:
    """What the clips and outputs of a data set say."""
    clips = transcription.hypotheses
    warnings = [f"{one.source:.{LONGEST_SOURCE}}: {one.reason}" for one in transcription.damaged]
    flags = Counter(flag for clip in clips for flag in set(clip.flags))
    for flag, count in flags.most_common():
        first = next(clip.audio_filepath for clip in clips if flag in clip.flags)
        more = f" and {count - 1} more" if count > 1 else ""
        warnings.append(f"{first:.{LONGEST_SOURCE}}{more}: {flag}")
    truncated = sum(clip.truncated for clip in clips)
    if truncated:
        warnings.append(
            f"{truncated} clips are longer than the model's window; only its length was heard"
        )
    empty = sum(not clip.pred_text for clip in clips)
    if 2 * empty > len(clips):
        warnings.append(f"{empty} of {len(clips)} outputs are empty")
    cut = sum(clip.hit_limit for clip in clips)
    if 10 * cut > len(clips):
        warnings.append(
            f"{cut} of {len(clips)} outputs were cut at their limit of tokens: loops, or a "
            "max_new_tokens or model.tokens_per_second that is too small"
        )
    return warnings


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

"""The runs of a sweep: where each will lie, what work it is, and how far it is.

How far is read from the results folder and the store alone, so that whoever asks, on whatever
machine, gets the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_asr.config import Settings
from edge_asr.errors import UserError
from edge_asr.experiments.clips import Clips
from edge_asr.experiments.estimate import Work
from edge_asr.experiments.files import is_complete, is_for_memory, stored_record
from edge_asr.experiments.labels import folder_name
from edge_asr.experiments.plan import (
    RUN_DIGITS,
    Plan,
    float_plan,
    make_plan,
    with_batch_size,
)
from edge_asr.store.artefacts import Step, Store
from edge_asr.store.failure import failure_in, note_failure
from edge_asr.store.fingerprint import fingerprint
from edge_asr.store.record import FLOAT_METHOD, Record

DONE, FAILED, BEGUN, TO_DO = "done", "failed", "begun", "to do"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        words: The overrides that ask for it.
        model, method, label: What tables call it; the label is method and scheme.
        folders: Where its record lies or will: its folder, then those of the same run with less
            clips decoded together, made where memory is not enough.
        baselines: The same of the float run that it is compared with.
        unresolved: Where it is noted that it could not even be resolved.
        work: The steps that it is made of.
        begun: Whether a step that is not finished has left something to go on from.
        rerun: Whether it is made although it is there.
        problem: Why it cannot be made, None where it can.
    """

    words: tuple[str, ...]
    model: str
    method: str
    label: str
    folders: tuple[Path, ...]
    baselines: tuple[Path, ...]
    unresolved: Path
    work: tuple[Work, ...] = ()
    begun: bool = False
    rerun: bool = False
    problem: str | None = None

    @property
    def name(self) -> str:
        return f"{self.model} {self.label}"

    @property
    def record(self) -> Record | None:
        """Its record, None where it has none that is complete."""
        found = first_record(self.folders)
        return found if found is not None and is_complete(found) else None

    @property
    def failure(self) -> str | None:
        """What ended it the last time, None where nothing did."""
        noted = (failure_in(folder) for folder in (self.folders[0], self.unresolved))
        return self.problem or next(filter(None, noted), None)

    @property
    def state(self) -> str:
        """How far it is: done, failed, begun or to do."""
        if self.record is not None:
            return DONE
        if self.failure is not None:
            return FAILED
        return BEGUN if self.begun else TO_DO


def first_record(folders: Sequence[Path]) -> Record | None:
    """The record of a run in the first of its folders, or in another, if it was made there because
    memory was not enough."""
    for place, folder in enumerate(folders):
        record = stored_record(folder)
        if record is not None and (place == 0 or is_for_memory(record)):
            return record
    return None


def unresolved_folder(settings: Settings) -> Path:
    """Where it is noted that a run could not be resolved, so that its own folder is not known."""
    digest = fingerprint(settings.provenance())[:RUN_DIGITS]
    model = settings.model.name or Path(settings.model.path).name
    return settings.results_folder / folder_name(model, settings.method.name, digest)


def sweep_runs(
    members: Sequence[tuple[tuple[str, ...], Settings]], *, note: bool = False
) -> list[SweepRun]:
    """The runs that `members`, overrides and settings, ask for; equal ones are one.

    Args:
        members: In the order in which they are to be made.
        note: Whether to leave in the results which of them cannot be resolved.

    Raises:
        UserError: if none of them can be resolved: the reason of the first.
    """
    runs: dict[Path, SweepRun] = {}
    problems: list[tuple[Settings, UserError]] = []
    clips: dict[Path, Clips] = {}
    for words, settings in members:
        store = Store(settings.store_folder)
        opened = clips.setdefault(settings.store_folder, Clips(store.digests))
        try:
            run = _sweep_run(words, make_plan(settings, store, opened), store)
        except UserError as error:
            problems.append((settings, error))
            run = _unresolved(words, settings, str(error))
        runs.setdefault(run.folders[0], run)
    if len(problems) == len(members):
        raise problems[0][1]
    for settings, problem in problems if note else ():
        note_failure(unresolved_folder(settings), settings.provenance(), problem)
    return list(runs.values())


def _unresolved(words: tuple[str, ...], settings: Settings, problem: str) -> SweepRun:
    folder = unresolved_folder(settings)
    model = settings.model.name or Path(settings.model.path).name
    method = settings.method.name
    return SweepRun(words, model, method, method, (folder,), (), folder, problem=problem)


def _sweep_run(words: tuple[str, ...], plan: Plan, store: Store) -> SweepRun:
    steps = _steps(plan)
    plain = float_plan(plan)
    return SweepRun(
        words=words,
        model=plan.model_name,
        method=plan.method_label,
        label=plan.label,
        folders=_folders(plan),
        baselines=_folders(plain) if plan.quantize is not None else (),
        unresolved=unresolved_folder(plan.settings),
        work=(*(_work(plan, store, *one) for one in steps), _scoring(plan)),
        begun=any(store.has_begun(step) for step, _, _ in steps),
        rerun=plan.settings.rerun,
    )


def _folders(plan: Plan) -> tuple[Path, ...]:
    """Its folder, and those of the same run with half the batch size, a quarter, ..."""
    folders = [plan.folder]
    batch_size = plan.settings.batch_size // 2
    while batch_size:
        folders.append(with_batch_size(plan, batch_size).folder)
        batch_size //= 2
    return tuple(folders)


def _steps(plan: Plan) -> list[tuple[Step, int, str]]:
    """The steps of a run, with the clips that each looks at and the method that makes it."""
    calibration = len(plan.drawn)
    steps = [
        (step, clips, method)
        for step, clips, method in (
            (plan.calibrate, calibration, FLOAT_METHOD),
            (plan.quantize, max(calibration, 1), plan.method_label),
        )
        if step is not None
    ]
    for data in plan.data_sets:
        for step in dict.fromkeys((data.transcribe_float.key, data.transcribe.key)):
            own = data.transcribe if step == data.transcribe.key else data.transcribe_float
            steps.append((own, len(data.corpus), FLOAT_METHOD))
    return steps


def _scoring(plan: Plan) -> Work:
    """What is made anew for every run."""
    files, clips = plan.files, sum(len(data.corpus) for data in plan.data_sets)
    return Work(
        "score", plan.run_id, files.weights_fingerprint, files.parameters, FLOAT_METHOD, clips
    )


def _work(plan: Plan, store: Store, step: Step, clips: int, method: str) -> Work:
    return Work(
        step.name,
        step.key,
        plan.files.weights_fingerprint,
        plan.files.parameters,
        method,
        clips,
        done=store.holds(step) and not plan.settings.rerun,
    )

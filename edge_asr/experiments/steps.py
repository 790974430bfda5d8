"""The steps of a run, each made once and kept in the store; see `edge_asr.store.artefacts`."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from edge_asr.calibration.batches import CalibrationBatch, batches_of, decoder_tokens
from edge_asr.cost.records import ModelSummary
from edge_asr.evaluation.hypotheses import ClipOutput, read_outputs, to_lines
from edge_asr.experiments.plan import DataSet, Plan
from edge_asr.experiments.sections import layer_sections, quantized_summary
from edge_asr.experiments.transcription import OUTPUTS, check_languages, heard_together
from edge_asr.memory import peak_memory_bytes, reset_peak_memory
from edge_asr.models.decoding import IN_FLOAT32, StackDtypes
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.processes import Processes
from edge_asr.quant.model_folder import load_model, save_model
from edge_asr.quant.result import Quantization
from edge_asr.quant.sequential import quantize_model
from edge_asr.runtimes.base import Runtime, runtimes
from edge_asr.store.artefacts import Artefact, Build, Step, Store
from edge_asr.store.files import write_text_atomically
from edge_asr.store.plain_json import finite, parse
from edge_asr.store.record import FLOAT_METHOD, LayerSection, Stage

log = logging.getLogger(__name__)

TOKENS = "tokens.json"
RESULT = "result.json"
QUANTIZE = "quantize"


class Progress(Protocol):
    """Hears how far a run is."""

    def __call__(self, stage: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        """`done` of `total` (0: not known) of a stage, such as blocks or clips."""


def silent(stage: str, done: int = 0, total: int = 0, detail: str = "") -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class QuantizeResult:
    """What the quantize step says beside the model.

    Attributes:
        layers: Rows of the record.
        result: Errors, losses, warnings and seconds.
        summary: For the cost model, floats at the checkpoint's own width.
    """

    layers: tuple[LayerSection, ...]
    result: dict[str, Any]
    summary: ModelSummary

    @property
    def quantization(self) -> Quantization:
        return Quantization.from_plain(self.result)


@dataclass
class Steps:
    """Makes the steps of one plan, or takes them from the store; a model is loaded at most once.

    Attributes:
        plan, store, progress: See there.
        stages: Seconds of what has been made or taken.
        warnings: What the record is to say of the run.
        processes: Those that make them together.
    """

    plan: Plan
    store: Store
    progress: Progress = silent
    stages: list[Stage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    processes: Processes = field(default_factory=Processes.of_environment)
    _float: Checkpoint | None = None
    _quantized: Checkpoint | None = None
    _quantized_anew: bool = False

    def float_checkpoint(self) -> Checkpoint:
        """The float model as it is in its files."""
        if self._float is None:
            self.progress("load the float model")
            reset_peak_memory()
            began = time.perf_counter()
            settings = self.plan.settings
            self._float = load_checkpoint(
                self.plan.files,
                name=self.plan.model_name,
                device=self.processes.device(settings.device),
                tokens_per_second=settings.model.tokens_per_second,
                decoding=settings.decode,
            )
            self._note("load", time.perf_counter() - began, peak_memory_bytes())
        return self._float

    def quantized_checkpoint(self) -> Checkpoint:
        """The quantized model, made or taken from the store."""
        artefact = self.quantize()
        if self._quantized is None:
            self.progress("load the quantized model")
            settings = self.plan.settings
            device = self.processes.device(settings.device)
            loaded = load_model(artefact.folder, device, settings.decode)
            # Names and caps are of this run, not of the one that quantized.
            self._quantized = dataclasses.replace(
                loaded,
                name=self.plan.model_name,
                tokens_per_second=self.plan.tokens_per_second,
            )
        return self._quantized

    def quantize(self) -> Artefact:
        """The quantize step. Raises UserError for what the user can mend."""
        step = self.plan.quantize
        assert step is not None, "a float run quantizes nothing"
        again = self.plan.settings.rerun and not self._quantized_anew
        if not again and (found := self._find(step)):
            return self._taken(found)
        # Before the step itself, whose seconds and memory are its own.
        said: list[str] = []
        batches = self._calibration(said)
        checkpoint = self.float_checkpoint()
        self._float = None  # what follows changes it
        self._quantized_anew = True

        def build(folder: Path, working: Path) -> Mapping[str, Any]:
            return self._build_quantized(checkpoint, batches, said, folder, working)

        return self._make(step, build, again=again)

    def transcribe(self, data: DataSet) -> Artefact:
        """The transcribe step of this plan's model on one data set."""
        step, again = data.transcribe, self.plan.settings.rerun
        if not again and (found := self._find(step)):
            # It tells of the steps before it, whose artefacts need not be there any more.
            known = {stage.name for stage in self.stages}
            earlier = [Stage(**{**one, "stored": True}) for one in found.notes["stages"]]
            self.stages += [stage for stage in earlier if stage.name not in known]
            return self._taken(found, stage_name(self.plan, data))
        if self.plan.quantize is None:
            build = self._transcriber(data, self.float_checkpoint())
        else:
            checkpoint = self.quantized_checkpoint()
            build = self._transcriber(data, checkpoint, self.quantize())
        name = stage_name(self.plan, data)
        return self._make(step, build, again=again, name=name, together=True)

    def transcribe_float_if_free(self, data: DataSet) -> Artefact | None:
        """The float model's hypotheses; None while another process is making them, for no
        quantized run waits for a float run."""
        step = data.transcribe_float
        if found := self._find(step):
            return found
        artefact = self._by_main(
            lambda build: self.store.make_if_free(step, build),
            self._transcriber(data, self.float_checkpoint()),
            together=True,
        )
        if artefact is None:
            log.info("another process is making the float hypotheses; going on without")
        else:
            stage = stage_name(self.plan, data)
            log.info("%s %s: %.1f s", stage, FLOAT_METHOD, artefact.seconds)
        return artefact

    def _make(
        self,
        step: Step,
        build: Callable[[Path, Path], Mapping[str, Any]],
        *,
        again: bool,
        name: str | None = None,
        together: bool = False,
    ) -> Artefact:
        """Make a step or take it from the store, and note it as the stage `name`, or its own."""
        made, stage = False, name or step.name

        def noting(folder: Path, working: Path) -> Mapping[str, Any]:
            nonlocal made
            made = True
            return build(folder, working)

        artefact = self._by_main(
            lambda build: self.store.make(step, build, again=again, on_wait=self.progress),
            noting,
            together=together,
        )
        assert artefact is not None, "it is waited for"
        self._note(stage, artefact.seconds, artefact.peak_memory_bytes, stored=not made)
        what = f"{artefact.seconds:.1f} s" if made else "taken from the store"
        log.info("%s %s: %s", stage, self.plan.label, what)
        return artefact

    def _by_main(
        self, make: Callable[[Build], Artefact | None], build: Build, *, together: bool
    ) -> Artefact | None:
        """What the main process gets by `make`; with `together` all processes build it."""
        artefact: Artefact | None = None
        working: Path | None = None

        def asking(folder: Path, place: Path) -> Mapping[str, Any]:
            nonlocal working
            working = self.processes.from_main(place)
            return build(folder, place)

        if self.processes.is_main:
            artefact = make(asking if together else build)
            if together and working is None:
                self.processes.from_main(None)
        elif together:
            working = self.processes.from_main(working)
            if working is not None:
                with TemporaryDirectory() as folder:
                    build(Path(folder), working)
        return self.processes.from_main(artefact)

    def _find(self, step: Step) -> Artefact | None:
        return self.processes.from_main(self.store.find(step) if self.processes.is_main else None)

    def _taken(self, artefact: Artefact, name: str | None = None) -> Artefact:
        """Note a step that the store had, as the stage `name` or its own."""
        stage = name or artefact.step
        if stage not in {one.name for one in self.stages}:
            self._note(stage, artefact.seconds, artefact.peak_memory_bytes, stored=True)
            log.info("%s %s: taken from the store", stage, self.plan.label)
        return artefact

    def _note(self, name: str, seconds: float, peak: int | None, *, stored: bool = False) -> None:
        self.stages.append(Stage(name, seconds, peak, stored))

    def _calibration(self, said: list[str]) -> list[CalibrationBatch]:
        """The calibration batches, their tokens from the store; warnings go to `said`."""
        step = self.plan.calibrate
        if step is None:
            return []
        artefact = self._make(step, self._build_tokens, again=False)
        said += artefact.warnings
        plain = json.loads((artefact.folder / TOKENS).read_text(encoding="utf-8"))
        settings = self.plan.settings.calibration
        return batches_of(
            self.float_checkpoint(),
            self.plan.drawn,
            plain["tokens"],
            settings.batch_size,
            padding_weight=settings.padding_weight,
            pack=settings.pack,
        )

    def _build_tokens(self, folder: Path, working: Path) -> Mapping[str, Any]:
        del working
        checkpoint, warnings = self.float_checkpoint(), list(self.plan.draw_warnings)
        self.progress(f"calibrate {self.plan.model_name}: {len(self.plan.drawn)} clips")
        tokens = decoder_tokens(
            checkpoint,
            self._runtime(checkpoint),
            self.plan.drawn,
            self.plan.settings.calibration.batch_size,
            warnings.append,
        )
        order = [clip.index for clip in self.plan.drawn]
        content = json.dumps({"clips": order, "tokens": tokens})
        write_text_atomically(folder / TOKENS, content + "\n")
        return {"warnings": warnings, "label": f"{len(order)} clips"}

    def _build_quantized(
        self,
        checkpoint: Checkpoint,
        batches: Sequence[CalibrationBatch],
        said: Sequence[str],
        folder: Path,
        working: Path,
    ) -> Mapping[str, Any]:
        plan = self.plan
        stage = f"quantize {plan.model_name} {plan.label}"
        self.progress(stage)
        result = quantize_model(
            checkpoint.model,
            checkpoint.architecture,
            batches,
            plan.recipe,
            plan.formats,
            stored_dtype=checkpoint.stored_dtype,
            layer_errors=plan.layer_errors,
            dtype=getattr(torch, plan.settings.calibration.dtype),
            finished=working,
            progress=lambda text, done, total: self.progress(stage, done, total, text),
        )
        save_model(folder, checkpoint)
        summary = quantized_summary(checkpoint.model, plan.architecture, plan.files.float_bits)
        whole = QuantizeResult(
            layer_sections(checkpoint, plan.served, result), result.to_plain(), summary
        )
        content = json.dumps(finite(asdict(whole)))
        write_text_atomically(folder / RESULT, content + "\n")
        self._quantized = checkpoint
        return {"label": f"{plan.model_name} {plan.label}", "warnings": list(said)}

    def _transcriber(
        self, data: DataSet, checkpoint: Checkpoint, quantized: Artefact | None = None
    ) -> Callable[[Path, Path], Mapping[str, Any]]:
        """What transcribes a data set with a model, that of the artefact `quantized` if it is no
        float one."""
        check_languages(data.corpus, checkpoint.language)

        def build(folder: Path, working: Path) -> Mapping[str, Any]:
            plan = self.plan
            which = "float" if quantized is None else "quantized"
            stage = f"transcribe {data.name} ({which} model)"
            self.progress(stage, 0, len(data.corpus))
            rows = heard_together(
                plan.settings,
                self._runtime(checkpoint, plan.dtypes),
                data.corpus,
                working,
                lambda done, total: self.progress(stage, done, total),
                self.processes,
            )
            write_text_atomically(folder / OUTPUTS, to_lines(rows))
            warnings, stages, label = list(checkpoint.warnings), [], FLOAT_METHOD
            if quantized is not None:
                shutil.copyfile(quantized.folder / RESULT, folder / RESULT)
                warnings = [*quantized.warnings, *warnings]
                stages = [asdict(one) for one in self.stages if one.name in ("calibrate", QUANTIZE)]
                label = plan.label
            return {
                "warnings": warnings,
                "stages": stages,
                "label": f"{plan.model_name} {label}, {data.name}",
                "prompt_tokens": len(plan.architecture.prompt(checkpoint.model)),
                "language": checkpoint.language,
                "task": checkpoint.task,
            }

        return build

    def _runtime(self, checkpoint: Checkpoint, dtypes: StackDtypes = IN_FLOAT32) -> Runtime:
        runtime: Any = runtimes[self.plan.settings.runtime]
        return runtime(checkpoint, dtypes)


def stage_name(plan: Plan, data: DataSet) -> str:
    """`transcribe`, and of which data set where there are several."""
    step = data.transcribe.name
    return step if len(plan.data_sets) == 1 else f"{step} {data.name}"


def quantize_result(transcribed: Artefact) -> QuantizeResult:
    """What the quantize step says, as the transcribe step of its model keeps it."""
    path = transcribed.folder / RESULT
    return parse(QuantizeResult, path.read_bytes(), path)


def output_rows(artefact: Artefact) -> list[ClipOutput]:
    """What a transcribe step heard."""
    return read_outputs(artefact.folder / OUTPUTS)

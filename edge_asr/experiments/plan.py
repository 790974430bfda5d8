"""What a run will do, before it does anything: its parts, formats, clips, steps and their keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.calibration.batches import DrawnClip
from edge_asr.config import Settings
from edge_asr.data.corpus import Corpus
from edge_asr.data.overlap import audio_digest
from edge_asr.errors import UserError
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.experiments.clips import Clips, DrawnClips, calibration_source, data_source
from edge_asr.experiments.labels import folder_name, method_label
from edge_asr.experiments.step_keys import (
    calibrate_step,
    dtypes_of,
    quantize_step,
    tokens_per_second_of,
    transcribe_step,
)
from edge_asr.models.decoding import StackDtypes
from edge_asr.models.families.base import Architecture
from edge_asr.models.files import CheckpointFiles, find_files
from edge_asr.models.loading import read_config
from edge_asr.models.tensors import Slot
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.scheme import scheme_label
from edge_asr.runtimes.base import runtimes
from edge_asr.runtimes.ctranslate2_runtime import CTranslate2Runtime as CTranslate2Runtime
from edge_asr.runtimes.onnx_runtime import OnnxRuntime as OnnxRuntime
from edge_asr.runtimes.torch_greedy import TorchRuntime as TorchRuntime
from edge_asr.runtimes.whisper_cpp import WhisperCpp as WhisperCpp
from edge_asr.store.artefacts import Step, Store
from edge_asr.store.fingerprint import fingerprint
from edge_asr.store.record import FLOAT_METHOD

SIMULATION = "torch"  # the runtime that computes quantized models in floats
SCORE_VERSION = 2  # raised when scoring makes something else of the same inputs
RUN_DIGITS = 12


@dataclass(frozen=True)
class DataSet:
    """One data set of a run.

    Attributes:
        corpus: Its clips.
        audio_digest: Of their audio.
        transcribe, transcribe_float: Steps of this model and of the float one, the same for the
            latter.
        simulate: Where the model runs as a file, the step of its simulation; otherwise None.
    """

    corpus: Corpus
    audio_digest: str
    transcribe: Step
    transcribe_float: Step
    simulate: Step | None = None

    @property
    def name(self) -> str:
        return self.corpus.name


@dataclass(frozen=True)
class Plan:
    """A run, resolved.

    Attributes:
        settings: As given.
        files: The checkpoint.
        architecture: Its family's map.
        config: Its configuration.
        recipe: The method; one without a rounding part is the float model.
        formats: What the scheme asks for, for every Linear inside a block and what else it
            quantizes.
        served: The same as the recipe's parts serve it.
        data_sets: The clips to transcribe; no two have one name.
        drawn: The calibration clips, empty where nothing looks at any.
        draw_warnings: What drawing them has to say.
        calibrate, quantize: Their steps, or None where there is nothing to do.
        references: Fingerprint of what was said in the clips, and of their fields.
        run_id: Identity of the record.
    """

    settings: Settings
    files: CheckpointFiles
    architecture: Architecture
    config: Any
    recipe: Recipe
    formats: dict[str, TensorFormat]
    served: dict[str, TensorFormat]
    data_sets: tuple[DataSet, ...]
    drawn: tuple[DrawnClip, ...]
    draw_warnings: tuple[str, ...]
    calibrate: Step | None
    quantize: Step | None
    references: str
    run_id: str

    @property
    def slots(self) -> dict[str, Slot]:
        """The Linear layers of blocks, and what else the scheme quantizes, by name."""
        slots = self.architecture.slots(self.config)
        return {
            slot.name: slot for slot in slots if slot.kind == "linear" or slot.name in self.formats
        }

    @property
    def calibration_digests(self) -> frozenset[str]:
        """Of the decoded audio of every calibration clip."""
        return frozenset(audio_digest(clip.utterance.samples) for clip in self.drawn)

    @property
    def layer_errors(self) -> bool:
        """Whether output errors of layers are measured."""
        wanted = self.settings.layer_errors
        return self.calibrate is not None if wanted is None else wanted

    @property
    def tokens_per_second(self) -> float | None:
        """Cap on generated tokens a second of audio, or None."""
        return tokens_per_second_of(self.settings, self.architecture)

    @property
    def dtypes(self) -> StackDtypes:
        """What the stacks transcribe in."""
        return dtypes_of(self.settings, self.files)

    @property
    def model_name(self) -> str:
        return self.settings.model.name or Path(self.settings.model.path).name

    @property
    def method_label(self) -> str:
        return method_label(self.recipe)

    @property
    def scheme_label(self) -> str:
        return scheme_label(self.slots.values(), self.formats)

    @property
    def label(self) -> str:
        """Method and scheme in words: `gptq W3 g32`."""
        if self.quantize is None:
            return FLOAT_METHOD
        return f"{self.method_label} {self.scheme_label}"

    @property
    def folder(self) -> Path:
        """Where the record and hypotheses go."""
        name = folder_name(self.model_name, self.label, self.run_id)
        return self.settings.results_folder / name


def check_settings(settings: Settings) -> Recipe:
    """The parts that `settings` name, and whether sources of clips can be named so; nothing is
    opened.

    Raises:
        UserError: for a setting out of its range, or parts that cannot work together or serve the
            scheme.
    """
    runtime, _ = runtimes[settings.runtime], protocol_named(settings.protocol.name)
    recipe = Recipe.build(settings.method.stages)
    if recipe.quantizes and runtime.targets and settings.target.name not in runtime.targets:
        raise UserError(
            f"runtime={settings.runtime} with target={settings.target.name}: say which of its "
            f"files it shall run, target={', '.join(runtime.targets)}"
        )
    if recipe.quantizes:
        recipe.check(settings.rules(), settings.target)
    calibration_source(settings.calibration)
    data_source(settings)
    return recipe


def make_plan(settings: Settings, store: Store, clips: Clips | None = None) -> Plan:
    """Resolve `settings`: read what decides about keys, load nothing.

    Args:
        settings: Of the run.
        store: Remembers digests.
        clips: What opens clips; to be given where several runs are planned.

    Raises:
        UserError: for whatever the user can mend before work begins.
    """
    recipe = check_settings(settings)
    clips = clips or Clips(store.digests)
    files = find_files(settings.model.path, store.digests)
    config, architecture = read_config(files)
    runtime = runtimes[settings.runtime]
    runtime.check(dtypes_of(settings, files), settings.device)
    if runtime.families and architecture.family not in runtime.families:
        raise UserError(
            f"runtime={settings.runtime}: runs {', '.join(runtime.families)} alone, and "
            f"model.path={settings.model.path} is of the family {architecture.family}; leave out "
            "runtime=, or take another"
        )
    corpora = clips.data_sets(settings)
    formats: dict[str, TensorFormat] = {}
    served = formats
    if recipe.quantizes:
        formats, served = recipe.formats(
            settings.rules(), settings.target, architecture, config, files.columns
        )
        if not any(one.weights or one.inputs for one in formats.values()):
            raise UserError(
                "scheme: leaves every weight and input floating point, so nothing would be "
                "quantized; give some of them bits, or use method=float"
            )
        _refuse_ranges_of_batches(settings, formats.values())
    wants_clips = recipe.quantizes and (
        recipe.needs_calibration(served.values()) or settings.layer_errors is True
    )
    drawn, calibrate, quantize = DrawnClips(), None, None
    if wants_clips:
        drawn = clips.drawn(settings)
        calibrate = calibrate_step(settings, files, architecture, drawn)
    if recipe.quantizes:
        quantize = quantize_step(settings, files, architecture, recipe, formats, served, calibrate)
    data_sets = []
    for corpus in corpora:
        audio = fingerprint(corpus.audio_digests(store.digests))
        float_step = transcribe_step(
            settings, files, architecture, audio, files.weights_fingerprint
        )
        own_step, simulate = float_step, None
        if quantize is not None:
            own_step = transcribe_step(settings, files, architecture, audio, quantize.key)
            if runtime.targets:
                simulated = dataclasses.replace(settings, runtime=SIMULATION)
                simulate = transcribe_step(simulated, files, architecture, audio, quantize.key)
        data_sets.append(DataSet(corpus, audio, own_step, float_step, simulate))
    references = fingerprint(
        [[[entry.text, dict(entry.metadata)] for entry in one.entries] for one in corpora]
    )
    return Plan(
        settings=settings,
        files=files,
        architecture=architecture,
        config=config,
        recipe=recipe,
        formats=formats,
        served=served,
        data_sets=tuple(data_sets),
        drawn=drawn.clips,
        draw_warnings=drawn.warnings,
        calibrate=calibrate,
        quantize=quantize,
        references=references,
        run_id=_run_id(settings, data_sets, references, quantize),
    )


def _refuse_ranges_of_batches(settings: Settings, formats: Iterable[TensorFormat]) -> None:
    of_calls = any(one.inputs is not None and one.inputs.of_call for one in formats)
    if of_calls and settings.batch_size > 1:
        raise UserError(
            f"batch_size={settings.batch_size} with act_range=dynamic: a range of all that passes "
            "in one call would depend on the other clips of a batch and their padding; set "
            "batch_size=1"
        )


def float_plan(plan: Plan) -> Plan:
    """The float model on the same clips."""
    settings = dataclasses.replace(plan.settings, rerun=False)
    data_sets = tuple(
        dataclasses.replace(one, transcribe=one.transcribe_float, simulate=None)
        for one in plan.data_sets
    )
    return dataclasses.replace(
        plan,
        settings=settings,
        recipe=Recipe.build({}),
        formats={},
        served={},
        drawn=(),
        draw_warnings=(),
        calibrate=None,
        quantize=None,
        data_sets=data_sets,
        run_id=_run_id(settings, data_sets, plan.references, None),
    )


def with_batch_size(plan: Plan, batch_size: int) -> Plan:
    """The same with another number of clips decoded together, so another run."""
    settings = dataclasses.replace(plan.settings, batch_size=batch_size)

    def step(one: Step | None) -> Any:
        return one and dataclasses.replace(one, inputs={**one.inputs, "batch_size": batch_size})

    data_sets = tuple(
        dataclasses.replace(
            one,
            transcribe=step(one.transcribe),
            transcribe_float=step(one.transcribe_float),
            simulate=step(one.simulate),
        )
        for one in plan.data_sets
    )
    run_id = _run_id(settings, data_sets, plan.references, plan.quantize)
    return dataclasses.replace(plan, settings=settings, data_sets=data_sets, run_id=run_id)


def _run_id(
    settings: Settings, data_sets: Sequence[DataSet], references: str, quantize: Step | None
) -> str:
    """Identity of a record: what was heard, against which references, scored how."""
    identity = {
        "version": SCORE_VERSION,
        "transcribe": [one.transcribe.key for one in data_sets],
        "quantize": None if quantize is None else quantize.key,
        "references": references,
        "protocol": dataclasses.asdict(settings.protocol),
        "protocol_version": protocol_named(settings.protocol.name).version,
        "float_bits": settings.float_bits,
    }
    return fingerprint(identity)[:RUN_DIGITS]

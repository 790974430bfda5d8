"""The record of one run: plain JSON with a schema version, written whole or not at all.

Reports are a function of records alone. Lengths are in seconds, rates in percent, memory in
bytes; a number that does not exist (not a number, infinite) is null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import from_json

from edge_asr.errors import UserError
from edge_asr.store.cost_types import Cost
from edge_asr.store.environment import Environment
from edge_asr.store.file_texts import FileTexts
from edge_asr.store.files import write_text_atomically
from edge_asr.store.phases import PhaseSeconds
from edge_asr.store.plain_json import STRICT, finite, parse

SCHEMA_VERSION = 5
# 1 lacks what has a default here, up to 2 MACs of runtime ops go by another name, up to 3 the
# hypotheses are of one data set, and up to 4 nobody timed phases.
READABLE_VERSIONS = (1, 2, 3, 4, 5)
RECORD_NAME = "record.json"
FLOAT_METHOD = "float"
ALL = "all"
RESAMPLES = 2000
LEVEL = 0.95


@checked_dataclass(frozen=True, config=STRICT)
class Interval:
    """A rate or difference in percent with its percentile interval.

    Attributes:
        estimate: The value on the data itself.
        low, high: Ends of the interval.
        level: Its coverage, a fraction.
        resamples: Bootstrap draws behind it.

    Raises:
        ValueError: A value is not finite, the ends are swapped or the level is no fraction.
    """

    estimate: float
    low: float
    high: float
    level: Annotated[float, Field(gt=0, lt=1)] = LEVEL
    resamples: Annotated[int, Field(ge=1)] = RESAMPLES

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


@dataclass(frozen=True)
class ModelSection:
    """Which checkpoint: `source` is an embedded model's name, a hub id or a folder; parameters of
    the float model."""

    name: str
    source: str
    family: str
    parameters: int
    float_bits: int
    weights_sha256: str


@dataclass(frozen=True)
class LayerSection:
    """One quantized layer.

    `effective_bits` is stored bits per weight, scales and outliers included. The errors are what
    its weights alone change in its output, mean square in units of the output's variance, on the
    inputs of the quantized prefix: by rounding to nearest (`before`) and by the method (`after`);
    null where they were not measured. `format` is what its weight is stored as and its input read
    as, in words.
    """

    name: str
    stack: str
    role: str
    weights: int
    bits: float
    effective_bits: float
    output_error_before: float | None = None
    output_error_after: float | None = None
    format: str | None = None


@dataclass(frozen=True)
class BlockSection:
    """What quantizing one block took, or what one part that learned did to its loss.

    The loss is the squared distance of the block's output to the float model's, summed over
    channels, mean over valid rows, with the weights as stored; of a part that trains on the whole
    model (block `model`) it is the cross-entropy a token. Seconds, those of phases too, are
    no part of what is compared: the same run takes others every time.
    """

    name: str
    seconds: float | None = field(default=None, compare=False)
    loss_before: float | None = None
    loss_after: float | None = None
    phases: dict[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class MethodSection:
    """How it was quantized; method `float` (32 bits, no layers) is the baseline.

    `name` is the nearest recipe and what differs from it. `scheme` says in words what every layer
    is stored as. `bits` is the mean width of a weight; `group_size`, `symmetric` and `activation`
    (the quantizer of layer inputs; null: float) are null where layers differ. `parts` are the
    names, versions and settings of its parts by stage. Records of schema 1 have no scheme or parts.
    """

    name: str
    bits: float
    group_size: int | None
    symmetric: bool | None
    layers: tuple[LayerSection, ...] = ()
    warnings: tuple[str, ...] = ()
    activation: dict[str, Any] | None = None
    blocks: tuple[BlockSection, ...] = ()
    scheme: str | None = None
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def effective_bits(self) -> float:
        """Stored bits per weight over all quantized layers; of a float run, its bits."""
        weights = sum(layer.weights for layer in self.layers)
        stored = sum(layer.effective_bits * layer.weights for layer in self.layers)
        return stored / weights if weights else self.bits

    @property
    def output_error(self) -> float | None:
        """Output error summed over all layers, or None where one was not measured."""
        return _sum_of_all([layer.output_error_after for layer in self.layers])

    @property
    def output_error_ratio(self) -> float | None:
        """Summed output error of all layers over that of rounding to nearest, or None."""
        nearest = _sum_of_all([layer.output_error_before for layer in self.layers])
        error = self.output_error
        return error / nearest if error is not None and nearest else None


def _sum_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class Result:
    """One data set under one protocol, or a part of it.

    Rates in percent; `difference` is WER minus float WER on the same utterances. Counts of words
    are over scored utterances. A part none of whose references is scored has no rates.

    Attributes:
        utterances: Clips transcribed; `scored` of them count (joined chunks as one).
        condition: Which part: `all`, one of the corpus's conditions, or a range of seconds.
        by: What the part is of: `condition` or `duration`.
        clusters: Speakers whose clips were resampled together behind the intervals; null: each
            clip on its own.
        p_value: That a difference to the float model so large were chance (MAPSSWE, two-sided).
        rare_words, rare_wer, float_rare_wer: Reference words outside the most frequent of English,
            and how many of them were not recognised.
        empty, looping, over_long: Outputs without a word, that repeat themselves, far too long.
        dropped: References that are empty after normalization or mark a clip as not to be scored;
            `invented_clips` of them got words, `invented_words` in all.
        hit_limit, truncated, flagged: Clips that hit the token cap, were longer than the model's
            window, or whose audio is doubtful.
        damaged: Clips that could not be read.
    """

    dataset: str
    protocol: str
    utterances: int
    seconds: float
    condition: str = ALL
    by: str = "condition"
    scored: int | None = None
    clusters: int | None = None
    wer: float | None = None
    interval: Interval | None = None
    cer: float | None = None
    float_wer: float | None = None
    float_cer: float | None = None
    difference: Interval | None = None
    p_value: float | None = None
    rare_words: int = 0
    rare_wer: float | None = None
    float_rare_wer: float | None = None
    reference_words: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    empty: int = 0
    looping: int = 0
    over_long: int = 0
    dropped: int = 0
    invented_clips: int = 0
    invented_words: int = 0
    hit_limit: int = 0
    truncated: int = 0
    flagged: int = 0
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Average:
    """Unweighted mean WER over the run's data sets (condition `all`), under one protocol.

    `rounded` is the mean as the protocol rounds it, rates before and mean after; null where it
    does not round. `complete` says whether these are the data sets of the protocol, all and whole;
    null where it names none. `p_value` is that of `Result`, over all of them.
    """

    protocol: str
    interval: Interval
    difference: Interval | None = None
    rounded: float | None = None
    complete: bool | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class WorstUtterance:
    """One of the utterances with the most word errors, as compared."""

    dataset: str
    id: str
    errors: int
    words: int
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class CostSection:
    """The same workloads on the quantized model and on the float one."""

    quantized: Cost
    baseline: Cost


@dataclass(frozen=True)
class DataSection:
    """One transcribed data set.

    `name` is that of its results, `origin` where it was published (path, config, split, resolved
    revision), `hypotheses_file` its manifest beside the record. `seconds` is what transcribing it
    took; `rtfx`, unless integers were simulated, the seconds of audio over those that the Open ASR
    Leaderboard times. Neither is a part of what is compared.
    """

    name: str
    clips: int
    audio_digest: str
    origin: dict[str, str] = field(default_factory=dict)
    hypotheses_file: str | None = None
    seconds: PhaseSeconds | None = field(default=None, compare=False)
    rtfx: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Stage:
    """Wall time of one stage, and the process's peak resident memory during it.

    The peak includes what earlier stages left in memory. Where the system cannot measure it
    anew (other than Linux) it is that of the process so far; null where it was not measured. A
    stage that was `stored` had been made by an earlier run, in that time.
    """

    name: str
    seconds: float
    peak_memory_bytes: int | None = None
    stored: bool = False


@dataclass(frozen=True)
class Record:
    """Everything one run found and everything needed to repeat it.

    `keys` are those of its steps in a store. `decoding` is what was decoded and how (language,
    task, suppression, dtypes). `file_texts` compares the file that a runtime ran with the
    simulation, where that has been run on the same clips. Up to schema 3 `hypotheses_file` names
    the hypotheses of the only data set.
    """

    run_id: str
    created: str
    config: dict[str, Any]
    environment: Environment
    model: ModelSection
    method: MethodSection
    results: tuple[Result, ...]
    batch_size: Annotated[int, Field(ge=1)]
    averages: tuple[Average, ...] = ()
    cost: CostSection | None = None
    stages: tuple[Stage, ...] = ()
    seeds: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    hypotheses_file: str | None = None
    keys: dict[str, str] = field(default_factory=dict)
    data: tuple[DataSection, ...] = ()
    decoding: dict[str, str | None] = field(default_factory=dict)
    worst: tuple[WorstUtterance, ...] = ()
    file_texts: FileTexts | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def hypotheses_files(self) -> dict[str, str]:
        """The manifest of every data set, by its name."""
        if self.hypotheses_file is not None:
            return {result.dataset: self.hypotheses_file for result in self.results}
        return {one.name: one.hypotheses_file for one in self.data if one.hypotheses_file}

    @property
    def rtfx(self) -> float | None:
        """Seconds of audio a second of transcribing over all data sets; None where nobody timed
        one: up to schema 4, and of quantized runs, which are simulated."""
        audio = {one.dataset: one.seconds for one in self.results if one.condition == ALL}
        taken = [audio.get(one.name, 0.0) / one.rtfx for one in self.data if one.rtfx]
        if not sum(taken) or len(taken) < len(self.data):
            return None
        return sum(audio.get(one.name, 0.0) for one in self.data) / sum(taken)

    def __post_init__(self) -> None:
        if self.schema_version not in READABLE_VERSIONS:
            raise ValueError(f"schema_version: {self.schema_version} is unknown")
        if datetime.fromisoformat(self.created).tzinfo is None:
            raise ValueError(f"created: {self.created!r} has no time zone; write UTC")


def now() -> str:
    """The present in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_record(folder: Path, record: Record) -> Path:
    """Write `folder/record.json` and return its path.

    Raises:
        UserError: The record would not read back (a required number is not finite).
    """
    path = folder / RECORD_NAME
    text = json.dumps(finite(dataclasses.asdict(record)), indent=2, allow_nan=False) + "\n"
    parse(Record, text, path)
    write_text_atomically(path, text)
    return path


def read_record(path: Path) -> Record:
    """Read and validate one record.

    Raises:
        UserError: The file is missing, not JSON, of another schema version or lacks a field;
            the message names file and field.
    """
    try:
        content = path.read_bytes()
        plain = from_json(content)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as a run record ({error}); remove it or make the run again"
        ) from error
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if version not in READABLE_VERSIONS:
        raise UserError(
            f"{path}: schema_version: {version!r:.60} is none of {READABLE_VERSIONS}; "
            "read it with the edge_asr version that wrote it, or make the run again"
        )
    return parse(Record, content, path)


def find_records(results: Path) -> tuple[Path, ...]:
    """Paths of all records below a folder, sorted; `read_record` judges each.

    Raises:
        UserError: The folder does not exist.
    """
    if not results.is_dir():
        raise UserError(f"results: {results} is not a folder; give the folder that holds the runs")
    return tuple(sorted(results.rglob(RECORD_NAME)))

"""What was measured, raw, as `times.json` has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_asr.models.decoding import Dtype
from edge_asr.store.environment import Environment
from edge_asr.store.phases import PhaseSeconds
from edge_asr.timing.machine import Machine

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """A model as a runtime loads it.

    Attributes:
        name: What its row is called.
        runtime: A registered one, or `faster_whisper`.
        formats: What its layers are stored as, in words.
        exported: The exported folder, which also has what makes features and texts.
        bytes: On disk, all that its format needs.
        sha256: Of its files, by their names.
        weights: Folder of what is loaded, where that is not the exported one.
        dtype: What PyTorch computes in.
    """

    name: str
    runtime: str
    formats: str
    exported: str
    bytes: int
    sha256: dict[str, str]
    weights: str | None = None
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class Job:
    """What one process measures: a candidate, with how many threads, on which clips (an `.npz`)."""

    candidate: Candidate
    threads: int
    clips: str


@dataclass(frozen=True)
class ClipTimes:
    """One clip: its length, the seconds of its phases, tokens generated (the end included)."""

    audio_seconds: float
    seconds: PhaseSeconds
    steps: int
    text: str


@dataclass(frozen=True)
class Measured:
    """What one process measured.

    Attributes:
        load_seconds: From files that the system has in memory to a model that is ready; tokenizer
            and imports are no part.
        peak_memory_bytes: Largest resident memory of the process from then on, all in all; null
            where the system does not tell.
        memory_before_bytes: Resident before it loaded: Python and its packages.
        clips: Each heard once before.
    """

    load_seconds: float
    peak_memory_bytes: int | None
    memory_before_bytes: int | None
    clips: tuple[ClipTimes, ...]


@dataclass(frozen=True)
class Measurement:
    """One process of one candidate; `repeat` counts from 1."""

    candidate: str
    threads: int
    repeat: int
    measured: Measured


@dataclass(frozen=True)
class AudioSource:
    """Where the clips come from: repeated or cut to each of the lengths."""

    name: str
    sha256: str
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Times:
    """All that was measured, in the order in which it was, and where.

    Attributes:
        schema_version: Of this file.
        command: What was typed.
        date: UTC, when it began.
        machine, environment: Where.
        audio: What was heard.
        candidates: What was measured.
        measurements: Every repeat.
        left_out: What was not compared with, and why.
    """

    schema_version: int
    command: str
    date: str
    machine: Machine
    environment: Environment
    audio: AudioSource
    candidates: tuple[Candidate, ...]
    measurements: tuple[Measurement, ...]
    left_out: tuple[str, ...]


def folder_of(candidate: Candidate) -> Path:
    """What is loaded."""
    return Path(candidate.weights or candidate.exported)

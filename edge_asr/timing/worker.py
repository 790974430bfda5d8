"""One measurement, in a process of its own: `python -m edge_asr.timing.worker JOB OUT`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSpeechSeq2Seq

from edge_asr.audio import SAMPLE_RATE
from edge_asr.cli.main import exit_code
from edge_asr.errors import UserError
from edge_asr.export.exported import checkpoint_of, read_export
from edge_asr.memory import peak_memory_bytes, release_freed_memory, reset_peak_memory
from edge_asr.models.decoding import StackDtypes
from edge_asr.models.files import quiet
from edge_asr.models.loading import ATTENTION, Checkpoint
from edge_asr.runtimes.base import Runtime
from edge_asr.runtimes.torch_greedy import TorchRuntime
from edge_asr.store.files import write_text_atomically
from edge_asr.store.plain_json import finite, parse
from edge_asr.timing.candidates import TORCH, file_runtime
from edge_asr.timing.results import Candidate, ClipTimes, Job, Measured, folder_of


def loaded(candidate: Candidate, checkpoint: Checkpoint) -> Runtime:
    """The candidate, ready to transcribe."""
    if candidate.runtime == TORCH:
        return _torch(candidate, checkpoint)
    return file_runtime(candidate.runtime)(checkpoint, exported=folder_of(candidate))


def _torch(candidate: Candidate, checkpoint: Checkpoint) -> Runtime:
    with quiet():
        model = AutoModelForSpeechSeq2Seq.from_pretrained(
            folder_of(candidate), dtype=getattr(torch, candidate.dtype), use_safetensors=True,
            trust_remote_code=False, attn_implementation=ATTENTION,
        )  # fmt: skip
    model.generation_config = checkpoint.model.generation_config
    own = replace(checkpoint, model=model.eval().requires_grad_(False))
    return TorchRuntime(own, StackDtypes(candidate.dtype, candidate.dtype))


def measure(job: Job) -> Measured:
    """Load the candidate and let it hear every clip, twice, of which the second time counts.

    Raises UserError for a clip that is longer than the model hears at once.
    """
    torch.set_num_threads(job.threads)
    folder = Path(job.candidate.exported)
    checkpoint = checkpoint_of(read_export(folder), folder)
    with np.load(job.clips) as file:
        clips = [file[name] for name in file.files]
    if job.candidate.runtime != TORCH:  # is imported already
        import_module(file_runtime(job.candidate.runtime).packages[0])
    release_freed_memory()
    reset_peak_memory()
    before = peak_memory_bytes()
    began = time.perf_counter()
    runtime = loaded(job.candidate, checkpoint)
    load = time.perf_counter() - began
    runtime.warm_up()
    for clip in clips:
        window = len(runtime.window(clip)) / SAMPLE_RATE
        if window * SAMPLE_RATE < len(clip):
            raise UserError(
                f"--seconds={len(clip) / SAMPLE_RATE:g}: {job.candidate.name} hears "
                f"{window:g} s at once; give at most that"
            )
    for clip in clips:
        heard(runtime, clip)
    times = tuple(heard(runtime, clip) for clip in clips)
    return Measured(load, peak_memory_bytes(), before, times)


def heard(runtime: Runtime, clip: np.ndarray) -> ClipTimes:
    """One clip, transcribed."""
    began = time.perf_counter()
    prepared = runtime.prepare([clip])
    features = time.perf_counter() - began
    batch = runtime.decode(prepared, [runtime.token_limit(len(clip))])
    (transcript,) = batch.transcripts
    seconds = replace(batch.seconds, features=features)
    return ClipTimes(len(clip) / SAMPLE_RATE, seconds, transcript.steps, transcript.text)


def command(arguments: Sequence[str]) -> None:
    """Measure what the file of a job asks for."""
    job, out = map(Path, arguments)
    found = measure(parse(Job, job.read_bytes(), job))
    write_text_atomically(out, json.dumps(finite(asdict(found))))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: command(sys.argv[1:])))

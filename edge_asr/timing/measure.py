"""Every candidate in turn, again and again, each time in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np

from edge_asr.audio import SAMPLE_RATE, AudioFile, DamagedAudio
from edge_asr.data.corpus import Utterance
from edge_asr.data.embedded import embedded_test
from edge_asr.errors import FailedRuns, UserError
from edge_asr.store.fingerprint import Digests, file_sha256, fingerprint
from edge_asr.store.plain_json import parse
from edge_asr.timing.results import AudioSource, Candidate, Job, Measured, Measurement

# Each library of threads asks another one.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
USAGE_ERROR = 2


def turns(
    names: Sequence[str], threads: Sequence[int], repeats: int
) -> Iterator[tuple[int, int, str]]:
    """Repeat, threads and candidate in the order of measuring: every candidate once before any
    comes again, so that whatever drifts on the machine hits all alike."""
    yield from product(range(1, repeats + 1), threads, names)


def measure_all(
    candidates: Sequence[Candidate],
    order: Sequence[tuple[int, int, str]],
    clips: Path,
    tell: Callable[[str], None],
) -> Iterator[Measurement]:
    """Measure turn by turn; what fails once is told, and not tried again with as many threads.

    Args:
        candidates: Of different names.
        order: Some `turns` of theirs.
        clips: File of what they hear, see `write_clips`.
        tell: Hears of how many turns how many are done and what comes next, and what failed.

    Raises:
        UserError: as a candidate tells it.
        FailedRuns: at the end, where a process ended otherwise.
    """
    known = {one.name: one for one in candidates}
    failed: dict[tuple[int, str], None] = {}
    for done, (repeat, threads, name) in enumerate(order):
        if (threads, name) in failed:
            continue
        tell(f"{done + 1} of {len(order)}: {name}, threads {threads}, repeat {repeat}")
        try:
            measured = measure_alone(Job(known[name], threads, str(clips)), clips.parent)
        except FailedRuns as error:
            tell(str(error))
            failed[threads, name] = None
        else:
            yield Measurement(name, threads, repeat, measured)
    if failed:
        raise FailedRuns(f"{len(failed)} of what was to be measured failed, told above")


def measure_alone(job: Job, working: Path) -> Measured:
    """One measurement in a process of its own; raises as `measure_all`."""
    given, out = working / "job.json", working / "measured.json"
    given.write_text(json.dumps(asdict(job)), encoding="utf-8")
    out.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "edge_asr.timing.worker", str(given), str(out)],
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(job.threads))},
        capture_output=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    if done.returncode == 0:
        return parse(Measured, out.read_bytes(), out)
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if done.returncode == USAGE_ERROR:
        raise UserError(last.removeprefix("error: "))
    raise FailedRuns(
        f"{job.candidate.name}: the process that measured it ended with {done.returncode}: {last}"
    )


def write_clips(audio: Path | None, seconds: Sequence[float], path: Path) -> AudioSource:
    """Write clips of so many seconds to `path`, of a file's audio or of embedded test clips, one
    behind the other, from the beginning again where they are too short.

    Raises UserError for a file that cannot be heard.
    """
    samples, name, digest = _of_file(audio) if audio else _embedded(max(seconds))
    lengths = [round(one * SAMPLE_RATE) for one in seconds]
    np.savez(path, *(np.resize(samples, length) for length in lengths))
    return AudioSource(name, digest, tuple(seconds))


def _of_file(path: Path) -> tuple[np.ndarray, str, str]:
    try:
        samples = AudioFile(path).decode().samples
    except (OSError, DamagedAudio) as error:
        reason = error.reason if isinstance(error, DamagedAudio) else error.strerror
        raise UserError(f"--audio={path}: cannot be heard ({reason}); give a WAV file") from error
    if not len(samples):
        raise UserError(f"--audio={path}: holds no samples; give another file")
    return samples, str(path), file_sha256(path)


def _embedded(seconds: float) -> tuple[np.ndarray, str, str]:
    corpus, clips = embedded_test("clean", where={"kind": "sentence"}), []
    for clip in corpus:
        assert isinstance(clip, Utterance), "embedded clips can be heard"
        clips.append(clip.samples)
        if sum(map(len, clips)) >= seconds * SAMPLE_RATE:
            break
    digests = corpus.audio_digests(Digests(), range(len(clips)))
    return np.concatenate(clips), f"{corpus.name}, {len(clips)} clips", fingerprint(digests)

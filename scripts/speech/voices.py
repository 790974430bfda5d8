"""The synthetic speakers: Debian's espeak-ng, flite and festival, and how to make them speak."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000

ESPEAK_ACCENTS = (
    "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp",
    "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc",
)  # fmt: skip
# Whispered, robotic and heavily distorted variants are left out: people cannot transcribe them.
ESPEAK_TRAINING_VARIANTS = (
    "Alex", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo",
    "Jacky", "Lee", "Marco", "Mario", "Mike", "Nguyen", "RicishayMax", "RicishayMax2",
    "RicishayMax3", "antonio", "aunty", "benjamin", "caleb", "david", "ed", "edward", "edward2",
    "f1", "f2", "f3", "f4", "grandma", "grandpa", "gustave", "iven", "iven2", "iven3", "iven4",
    "john", "kaukovalta", "klatt", "klatt2", "klatt3", "klatt4", "linda", "m1", "m2", "m3", "m4",
    "m5", "m6", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "rob",
    "robert", "sandro", "steph", "steph2", "steph3", "travis", "zac",
)  # fmt: skip
# None is a numbered sibling of a training variant except f5, m7 and m8, whose formants differ.
ESPEAK_TEST_VARIANTS = (
    "f5", "m7", "m8", "Alicia", "Michael", "adam", "anika", "belinda", "boris", "marcelo",
    "quincy", "shelby", "victor",
)  # fmt: skip
FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")
FESTIVAL_VOICES = ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")


@dataclass(frozen=True)
class Speaker:
    """One voice with its prosody: synthesizer, voice name, rate in words a minute, pitch 0..99."""

    synthesizer: str
    voice: str
    rate: int = 170
    pitch: int = 50

    @property
    def name(self) -> str:
        return f"{self.synthesizer}/{self.voice}"


def training_speaker(rng: np.random.Generator) -> Speaker:
    """A random training voice: four fifths espeak-ng, the rest flite and a little festival."""
    share = rng.random()
    if share < 0.80:
        voice = f"{rng.choice(ESPEAK_ACCENTS)}+{rng.choice(ESPEAK_TRAINING_VARIANTS)}"
        return _with_prosody("espeak", voice, rng)
    if share < 0.95:
        return _with_prosody("flite", str(rng.choice(FLITE_VOICES)), rng)
    return _with_prosody("festival", str(rng.choice(FESTIVAL_VOICES)), rng)


def test_speaker(index: int, rng: np.random.Generator) -> Speaker:
    """Held-out voice number `index`, cycling evenly over accents and held-out variants."""
    variant = ESPEAK_TEST_VARIANTS[index % len(ESPEAK_TEST_VARIANTS)]
    accent = ESPEAK_ACCENTS[index % len(ESPEAK_ACCENTS)]
    return _with_prosody("espeak", f"{accent}+{variant}", rng)


def _with_prosody(synthesizer: str, voice: str, rng: np.random.Generator) -> Speaker:
    return Speaker(synthesizer, voice, int(rng.integers(145, 216)), int(rng.integers(25, 76)))


def speak(requests: Sequence[tuple[Speaker, str]]) -> list[np.ndarray]:
    """Synthesize each text: float32 mono at 16 kHz in [-1, 1], silence at both ends trimmed.

    Raises subprocess.CalledProcessError when a synthesizer is missing or fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{index}.wav" for index in range(len(requests))]
        festival = []
        for (speaker, text), path in zip(requests, paths, strict=True):
            if speaker.synthesizer == "espeak":
                _run(["espeak-ng", "-v", speaker.voice, "-s", str(speaker.rate),
                      "-p", str(speaker.pitch), "-w", str(path), text])  # fmt: skip
            elif speaker.synthesizer == "flite":
                stretch = 170 / speaker.rate
                _run(["flite", "-voice", speaker.voice, "--setf", f"duration_stretch={stretch:.3f}",
                      "-t", text, "-o", str(path)])  # fmt: skip
            else:
                festival.append((speaker, text, path))
        if festival:
            _run_festival(festival, folder / "batch.scm")
        return [_read_trimmed(path) for path in paths]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _run_festival(jobs: Sequence[tuple[Speaker, str, Path]], script: Path) -> None:
    """Festival takes two seconds to start, so all its texts go through one process."""
    lines = []
    for speaker, text, path in jobs:
        stretch = 170 / speaker.rate
        lines += [
            f"(voice_{speaker.voice})",
            f"(Parameter.set 'Duration_Stretch {stretch:.3f})",
            f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{path}" \'riff)',
        ]
    script.write_text("\n".join(lines))
    _run(["festival", "-b", str(script)])


def _read_trimmed(path: Path, threshold: float = 0.01, margin_s: float = 0.06) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)
    loud = np.flatnonzero(np.abs(samples) > threshold * max(np.abs(samples).max(initial=0), 1e-6))
    if loud.size == 0:
        return samples[:0]
    margin = int(margin_s * SAMPLE_RATE)
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin]

"""Make the synthetic speech corpus: `python scripts/make_speech_corpus.py --help`.

Writes training shards (never shipped) under `--out`, and with `--assets` the 800 test and
128 calibration clips that the package ships. The same seed gives the same audio. Needs
Debian's espeak-ng, flite, festival, festvox-kallpc16k, festvox-kdlpc16k, festvox-us-slt-hts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from rich.progress import track

from speech import acoustics
from speech.text import DIGITS, LETTERS, TextSource, read_words
from speech.voices import SAMPLE_RATE, Speaker, speak, test_speaker, training_speaker

SHARD_DRAWS = 1_000
SECONDS = (1.0, 4.0)
SPLIT_IDS = {"train": 0, "test": 1}
TEST_PER_CONDITION = 400
CALIBRATION_CLIPS = 128
OPUS_QUALITY = 0.9  # libsndfile's compression level: 0 is the highest bit rate, 1 the lowest


@dataclass(frozen=True)
class Draw:
    """One utterance before it is spoken."""

    kind: str
    text: str
    speaker: Speaker


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLIT_IDS[split], index])


def test_draws(seed: int) -> list[Draw]:
    """More test utterances than are shipped, evenly over the held-out voices.

    The kinds come round and round, so that any prefix holds them in equal shares.
    """
    source = TextSource()
    draws: list[Draw] = []
    for index in range(2 * TEST_PER_CONDITION + 400):
        rng = generator(seed, "test", index)
        kind, text = source.draw(rng)
        draws.append(Draw(kind, text, test_speaker(index, rng)))
    return draws


def training_draws(seed: int, shard: int, forbidden: frozenset[str]) -> list[Draw]:
    """The draws of one shard; a sentence that is in the test set is left out."""
    source = TextSource()
    draws = []
    for index in range(shard * SHARD_DRAWS, (shard + 1) * SHARD_DRAWS):
        rng = generator(seed, "train", index)
        kind, text = source.draw(rng)
        if text not in forbidden:
            draws.append(Draw(kind, text, training_speaker(rng)))
    return draws


def write_shard(job: tuple[Path, int, int, frozenset[str]]) -> int:
    """Synthesize one shard as `shard-NNN.npy` (int16) + `.jsonl`; done shards are kept."""
    folder, seed, shard, forbidden = job
    index_path = folder / f"shard-{shard:03d}.jsonl"
    if index_path.exists():
        return sum(1 for _ in index_path.open())
    draws = training_draws(seed, shard, forbidden)
    rows, clips, offset = [], [], 0
    for draw, samples in zip(draws, speak([(d.speaker, d.text) for d in draws]), strict=True):
        if not SECONDS[0] <= len(samples) / SAMPLE_RATE <= SECONDS[1]:
            continue
        clips.append((acoustics.normalise(samples, 0.5) * 32767).astype(np.int16))
        rows.append({"offset": offset, "samples": len(samples), "text": draw.text,
                     "kind": draw.kind, "speaker": draw.speaker.name})  # fmt: skip
        offset += len(samples)
    np.save(folder / f"shard-{shard:03d}.npy", np.concatenate(clips))
    partial = index_path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(index_path)
    return len(rows)


def make_noisy(samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, str]:
    """A test clip in a room with noise at 5 to 15 dB: (samples, SNR in dB, colour)."""
    colour = str(rng.choice(list(acoustics.NOISE_EXPONENTS)))
    snr_db = float(rng.uniform(5, 15))
    if rng.random() < 0.5:
        samples = acoustics.reverberate(
            samples, acoustics.room_response(float(rng.uniform(0.15, 0.4)), rng)
        )
    noise = acoustics.coloured_noise(len(samples), acoustics.NOISE_EXPONENTS[colour], rng)
    return acoustics.add_noise(samples, noise, snr_db), round(snr_db, 1), colour


def write_test(seed: int, assets: Path) -> None:
    """400 clean and 400 noisy clips by held-out voices, with their manifest."""
    draws = test_draws(seed)
    spoken = speak([(draw.speaker, draw.text) for draw in draws])
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    for index, (draw, samples) in enumerate(zip(draws, spoken, strict=True)):
        fits = SECONDS[0] <= len(samples) / SAMPLE_RATE <= SECONDS[1]
        if not fits or draw.text in seen or len(rows) == 2 * TEST_PER_CONDITION:
            continue
        seen.add(draw.text)
        condition = "clean" if len(rows) % 2 == 0 else "noisy"
        row: dict[str, object] = {"condition": condition, "kind": draw.kind}
        if condition == "noisy":
            samples, snr_db, colour = make_noisy(samples, generator(seed + 1, "test", index))
            row |= {"snr_db": snr_db, "noise": colour}
        name = f"test/{len(rows):04d}.opus"
        rows.append(write_clip(assets, name, samples, draw.text, draw.speaker.name) | row)
    if len(rows) < 2 * TEST_PER_CONDITION:
        raise SystemExit(f"only {len(rows)} test clips fit {SECONDS} s: draw more")
    write_manifest(assets / "test.jsonl", rows)


def write_calibration(corpus: Path, assets: Path) -> None:
    """128 clips by training voices, the first of the last shard, with their manifest."""
    index_path = sorted(corpus.glob("shard-*.jsonl"))[-1]
    shard = np.load(index_path.with_suffix(".npy"), mmap_mode="r")
    rows = []
    for number, line in enumerate(index_path.read_text().splitlines()[:CALIBRATION_CLIPS]):
        source = json.loads(line)
        clip = shard[source["offset"] : source["offset"] + source["samples"]] / 32768
        name = f"calibration/{number:04d}.opus"
        row = write_clip(assets, name, clip.astype(np.float32), source["text"], source["speaker"])
        rows.append(row | {"condition": "clean", "kind": source["kind"]})
    write_manifest(assets / "calibration.jsonl", rows)


def write_clip(
    assets: Path, name: str, samples: np.ndarray, text: str, speaker: str
) -> dict[str, object]:
    path = assets / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        path, acoustics.normalise(samples, 0.5), SAMPLE_RATE,
        format="OGG", subtype="OPUS", compression_level=OPUS_QUALITY,
    )  # fmt: skip
    seconds = round(len(samples) / SAMPLE_RATE, 3)
    return {"audio": name, "text": text, "duration": seconds, "speaker": speaker}


def write_manifest(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_words() -> None:
    """Exit with a message when two words sound alike in an American or a British voice."""
    words = sorted({word for section in read_words().values() for word in section})
    words += [*LETTERS, *DIGITS]
    for accent in ("en-us", "en-gb"):
        spoken = subprocess.run(
            ["espeak-ng", "-q", "-x", "-v", accent], input="\n\n".join(f"{w}." for w in words),
            text=True, capture_output=True, check=True,
        ).stdout  # fmt: skip
        phonemes = [line.strip(" ,'") for line in spoken.splitlines() if line.strip()]
        by_sound: dict[str, list[str]] = {}
        for word, sound in zip(words, phonemes, strict=True):
            by_sound.setdefault(sound.replace("'", "").replace(",", ""), []).append(word)
        alike = [group for group in by_sound.values() if len(group) > 1]
        if alike:
            sys.exit(f"{accent}: these sound alike: {alike}")
    print(f"{len(words)} words and names of symbols, no homophones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/speech"), help="training shards")
    parser.add_argument("--assets", type=Path, help="also write the shipped clips here")
    parser.add_argument("--shards", type=int, default=70, help=f"of {SHARD_DRAWS} draws each")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--check-words", action="store_true", help="only look for homophones")
    arguments = parser.parse_args()
    if arguments.check_words:
        check_words()
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    forbidden = frozenset(draw.text for draw in test_draws(arguments.seed))
    jobs = [(arguments.out, arguments.seed, shard, forbidden) for shard in range(arguments.shards)]
    with multiprocessing.Pool(arguments.jobs) as pool:
        counts = list(track(pool.imap(write_shard, jobs), "shards", total=len(jobs)))
    print(f"{sum(counts)} training utterances in {arguments.out}")
    if arguments.assets:
        write_test(arguments.seed, arguments.assets)
        write_calibration(arguments.out, arguments.assets)
        print(f"test and calibration clips in {arguments.assets}")


if __name__ == "__main__":
    main()

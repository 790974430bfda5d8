"""Check the statistics of WER on synthetic errors whose true rates are known; prints a table.

    python scripts/check_statistics.py [--repeats 1000] [--seed 0]

Every word of every utterance is right or wrong by a coin whose bias is that of the utterance and
its speaker; the second system shares some of the first one's luck, as two versions of one model do.
Printed are how often 95 % intervals hold the true rate (and, where they do not, on which side it
is), how often tests find a difference that is not there or is, and how often one of twelve
comparisons finds what is not there. A thousand repeats leave a coverage of 95 % known to +-1.4.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_asr.evaluation.paired_tests import Marks, PairedTest, holm, mapsswe, mcnemar
from edge_asr.evaluation.significance import Integers, Sample, difference_of, wer_interval
from edge_asr.store.record import Interval

LEVEL = 0.05
RESAMPLES = 1000
COMPARISONS = 12
INSERTIONS_PER_WORD = 0.015
LOOP_WORDS = (10, 60)
SHORTEST, LONGEST = 3, 40


@dataclass(frozen=True)
class Speech:
    """A data set and two systems that hear it.

    Attributes:
        utterances: How many.
        speakers: Speakers, each as likely for every utterance; 0: no two have one in common.
        log_odds: Of a wrong word, at the mean difficulty, in the first system.
        effect: What the second system adds to them where it does not share its luck.
        shared: Fraction of words on which the second system has the outcome of the first.
        speaker_spread, utterance_spread: Standard deviations of the difficulty, in log odds.
        loops: Fraction of utterances in which a system, each on its own, ends in a loop.
        more_loops: What the second system adds to it.
    """

    utterances: int
    speakers: int = 0
    log_odds: float = -2.0
    effect: float = 0.4
    shared: float = 0.7
    speaker_spread: float = 0.5
    utterance_spread: float = 0.8
    loops: float = 0.0
    more_loops: float = 0.0

    @property
    def true_percent(self) -> tuple[float, float]:
        """WER of both systems on unlimited speech, by quadrature over the difficulty."""
        points, weights = np.polynomial.hermite_e.hermegauss(60)
        spread = np.hypot(self.speaker_spread, self.utterance_spread)
        first, fresh = (
            float(weights @ _chance(odds + spread * points) / weights.sum())
            for odds in (self.log_odds, self.log_odds + self.effect)
        )
        second = self.shared * first + (1 - self.shared) * fresh
        in_loops = sum(LOOP_WORDS) / (SHORTEST + LONGEST)
        return (
            100 * (first + INSERTIONS_PER_WORD + self.loops * in_loops),
            100 * (second + INSERTIONS_PER_WORD + (self.loops + self.more_loops) * in_loops),
        )


def _chance(log_odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1 / (1 + np.exp(-log_odds))


@dataclass(frozen=True, eq=False)
class Heard:
    """What systems made of one draw of utterances: `systems[i]` holds the marks of each."""

    systems: tuple[list[Marks], ...]
    speakers: Integers | None

    def sample(self, system: int) -> Sample:
        """Errors and words of one system."""
        marks = self.systems[system]
        errors = np.array([one.sum() for one in marks])
        return Sample(errors, np.array([len(one) - 1 for one in marks]), self.speakers)

    def correct(self, system: int) -> npt.NDArray[np.bool_]:
        """Which utterances one system has right."""
        return self.sample(system).errors == 0


def hear(speech: Speech, generator: np.random.Generator, systems: int = 2) -> Heard:
    """Draw utterances and let a first system and `systems` - 1 of the second kind hear them."""
    count = speech.utterances
    words = generator.integers(SHORTEST, LONGEST + 1, count)
    speakers = generator.integers(0, speech.speakers or count, count)
    if not speech.speakers:
        speakers = np.arange(count)
    difficulty = generator.normal(0, speech.utterance_spread, count)
    difficulty += generator.normal(0, speech.speaker_spread, speech.speakers or count)[speakers]
    # A row for each word and one for the end of each utterance, where no word can be wrong.
    ends = np.cumsum(words + 1)
    odds = np.repeat(difficulty, words + 1) + speech.log_odds

    def marks(odds: npt.NDArray[np.float64], loops: float) -> Marks:
        drawn = np.stack(
            [
                generator.random(len(odds)) < INSERTIONS_PER_WORD,
                generator.random(len(odds)) < _chance(odds),
            ],
            axis=1,
        ).astype(np.int64)
        lengths = generator.integers(LOOP_WORDS[0], LOOP_WORDS[1] + 1, count)
        drawn[ends - 1, 0] = np.where(generator.random(count) < loops, lengths, 0)
        drawn[ends - 1, 1] = 0
        return drawn

    first = marks(odds, speech.loops)
    heard = [first]
    for _ in range(systems - 1):
        fresh = marks(odds + speech.effect, speech.loops + speech.more_loops)
        shared = generator.random((len(odds), 1)) < speech.shared
        shared[ends - 1] = False
        heard.append(np.where(shared, first, fresh))
    split = tuple(np.split(one, ends[:-1]) for one in heard)
    return Heard(split, speakers if speech.speakers else None)


def _holds(intervals: Sequence[Interval], truth: float) -> str:
    below, above, width = (
        100 * np.mean([truth < interval.low for interval in intervals]),
        100 * np.mean([truth > interval.high for interval in intervals]),
        np.mean([interval.high - interval.low for interval in intervals]),
    )
    return f"{100 - below - above:5.1f} ({below:.1f} below, {above:.1f} above; width {width:.2f})"


def coverage(
    name: str, sets: Sequence[Speech], repeats: int, generator: np.random.Generator
) -> None:
    """Print how often the intervals of WER and of the difference hold the true values."""
    first, second = np.mean([speech.true_percent for speech in sets], axis=0)
    alone: list[Interval] = []
    differences: list[Interval] = []
    for seed in range(repeats):
        drawn = [hear(speech, generator) for speech in sets]
        samples = [[heard.sample(system) for heard in drawn] for system in (1, 0)]
        alone.append(wer_interval(samples[0], resamples=RESAMPLES, seed=seed))
        pairs = [difference_of(*both) for both in zip(*samples, strict=True)]
        differences.append(wer_interval(pairs, resamples=RESAMPLES, seed=seed))
    print(f"{name}\n  WER {second:6.2f}: {_holds(alone, second)}")
    print(f"  diff {second - first:5.2f}: {_holds(differences, second - first)}", flush=True)


def _found(tests: Sequence[PairedTest]) -> str:
    return f"{100 * np.mean([test.p_value < LEVEL for test in tests]):5.1f}"


def rejections(name: str, speech: Speech, repeats: int, generator: np.random.Generator) -> None:
    """Print how often MAPSSWE and McNemar's test find a difference at the 5 % level."""
    drawn = [hear(speech, generator) for _ in range(repeats)]
    segments = [mapsswe(heard.systems[1], heard.systems[0]) for heard in drawn]
    utterances = [mcnemar(heard.correct(1), heard.correct(0)) for heard in drawn]
    print(
        f"{name}: MAPSSWE {_found(segments)}, McNemar {_found(utterances)} "
        f"({np.mean([test.segments for test in segments]):.0f} segments)",
        flush=True,
    )


def family(speech: Speech, repeats: int, generator: np.random.Generator) -> None:
    """Print how often one comparison of twelve with the same baseline finds what is not there."""
    adjusted = plain = 0
    for _ in range(repeats):
        first, *others = hear(speech, generator, COMPARISONS + 1).systems
        p_values = [mapsswe(other, first).p_value for other in others]
        plain += min(p_values) < LEVEL
        adjusted += min(holm(p_values)) < LEVEL
    print(
        f"{COMPARISONS} comparisons: any found {100 * plain / repeats:.1f}, "
        f"after Holm {100 * adjusted / repeats:.1f}",
        flush=True,
    )


def speed() -> float:
    """Seconds of a large interval."""
    heard = hear(Speech(20_000), np.random.default_rng(0)).sample(0)
    started = time.monotonic()
    wer_interval([heard], resamples=10_000)
    return time.monotonic() - started


def main() -> None:
    """Print all figures, in percent of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    repeats, generator = arguments.repeats, np.random.default_rng(arguments.seed)
    started = time.monotonic()

    print(f"{speed():.1f} seconds for 10,000 draws of 20,000 utterances")
    print("95 % intervals that hold the true value")
    for utterances in (100, 200, 500, 2000):
        coverage(f"{utterances} utterances", [Speech(utterances)], repeats, generator)
    for utterances in (200, 500, 2000):
        looping = Speech(utterances, loops=0.02, more_loops=0.02)
        coverage(f"{utterances} utterances, 2 and 4 % loops", [looping], repeats, generator)
    for speakers in (5, 10, 20, 40, 100):
        speech = Speech(20 * speakers, speakers)
        coverage(f"{speech.utterances} of {speakers} speakers", [speech], repeats, generator)
    sets = [Speech(100), Speech(300, log_odds=-1.0), Speech(1000, 30, log_odds=-3.0)]
    coverage("mean of 3 sets: 100, 300, and 1000 of 30 speakers", sets, repeats, generator)

    print("differences found at 5 % where there is none")
    same = Speech(100, effect=0.0)
    for utterances in (100, 500, 2000):
        rejections(f"{utterances}", replace(same, utterances=utterances), repeats, generator)
    rejections("500, 2 % loops", replace(same, utterances=500, loops=0.02), repeats, generator)
    print("differences found at 5 % where there is one of 0.75 points")
    for utterances in (100, 500, 2000):
        rejections(f"{utterances}", Speech(utterances, effect=0.2), repeats, generator)
    family(replace(same, utterances=200), repeats, generator)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes, {repeats} repeats")


if __name__ == "__main__":
    main()

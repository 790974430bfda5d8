"""Which one do I ship? The lowest WER within a budget, and what cannot be told from it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from edge_asr.errors import UserError
from edge_asr.evaluation.scoring import SPEAKER
from edge_asr.evaluation.significance import PairedDraws, Sample, paired_draws
from edge_asr.report.cells import significant, with_interval
from edge_asr.report.read import Run
from edge_asr.report.rows import GIGA, MB
from edge_asr.report.utterances import Aligned, Alignments, read_manifests

# What a budget can be of: the column, and what that counts in.
LIMITS = {"size": ("size_mb", MB), "io": ("memory_io_mb", MB), "bops": ("gbops", GIGA)}
COLUMNS = {"size_mb": "MB", "memory_io_mb": "MB of traffic", "gbops": "GBOPs"}
PAIRED = (
    "Compared clip by clip, over the same draws of the clips; each interval is of one pair, at "
    "95 %, and not corrected for having chosen the lowest."
)
UNPAIRED = (
    "Where it says unpaired, the hypotheses of one are not there, and the two intervals alone were "
    "compared: it takes a larger difference to tell such two apart."
)
PREFIXES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_budget(words: Sequence[str]) -> dict[str, float]:
    """`size=20MB io=200MB bops=1.5T` as limits on columns. Raises UserError for anything else."""
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(B|BOPS?|OPS)?\s*", value.upper())
        if name not in LIMITS or match is None:
            raise UserError(
                f"--budget {word}: give size=20MB (of the file), io=200MB (memory traffic an "
                "utterance) or bops=50G (bit operations an utterance)"
            )
        column, unit = LIMITS[name]
        found[column] = float(match[1]) * PREFIXES[match[2]] / unit
    return found


@dataclass(frozen=True)
class Rival:
    """How a row stands to the lowest one.

    Attributes:
        row: Its place in the table.
        difference: Its WER less that of the lowest, points.
        low, high: Interval of that; None where nothing is known of how sure the two are.
        better: Share of draws of the clips in which the lowest is lower; None without draws.
        paired: Whether both were compared clip by clip, or only their intervals.
    """

    row: int
    difference: float
    low: float | None = None
    high: float | None = None
    better: float | None = None
    paired: bool = False

    @property
    def distinguishable(self) -> bool:
        return self.low is not None and self.low > 0


@dataclass(frozen=True, eq=False)
class Contest:
    """A table's rows, and what their utterances say of their differences.

    Attributes:
        frame: The table.
        draws: WER of the rows that have alignments, in draws of the clips that all share.
        places: Where a row is in `draws`.
    """

    frame: pd.DataFrame
    draws: PairedDraws | None = None
    places: Mapping[int, int] = field(default_factory=dict)

    def lowest(self, budget: Mapping[str, float], model: str | None = None) -> list[int]:
        """The rows within the budget, from the lowest WER on."""
        kept = self.frame[self.frame["wer_average"].notna()]
        if model is not None:
            kept = kept[kept["model"] == model]
        for column, limit in budget.items():
            kept = kept[kept[column] <= limit]
        return [int(row) for row in kept.sort_values("wer_average", kind="stable").index]

    def rivals(self, winner: int, others: Sequence[int]) -> list[Rival]:
        """How every other row stands to `winner`, those that cannot be told from it completely."""
        own = self.places.get(winner)
        if self.draws is None or own is None:
            return [self._unpaired(winner, other) for other in others]
        better, close = self.draws.better(own), self.draws.may_equal(own)
        found = []
        for other in others:
            place = self.places.get(other)
            if place is None:
                found.append(self._unpaired(winner, other))
            elif close[place]:
                interval = self.draws.difference(place, own)
                share = float(better[place])
                found.append(
                    Rival(other, interval.estimate, interval.low, interval.high, share, True)
                )
            else:
                difference = self._difference(winner, other)
                ends = (difference, difference)  # not looked at: no draw has the order otherwise
                found.append(Rival(other, difference, *ends, float(better[place]), True))
        return found

    def _difference(self, winner: int, other: int) -> float:
        rates = self.frame["wer_average"]
        return float(rates[other]) - float(rates[winner])

    def _unpaired(self, winner: int, other: int) -> Rival:
        """From the two intervals alone, as if the two had been measured on clips of their own.

        Half the interval of the difference is the root of the sum of their squared halves (normal,
        independent). What both owe to the same clips is not taken out, so that more rows cannot be
        told apart than clip by clip.
        """
        difference = self._difference(winner, other)
        low, high = self.frame["wer_low"], self.frame["wer_high"]
        half = math.hypot(*(float(high[row]) - float(low[row]) for row in (winner, other))) / 2
        if math.isnan(half):
            return Rival(other, difference)
        return Rival(other, difference, difference - half, difference + half)


def contest(
    frame: pd.DataFrame, runs: Mapping[str, Run], aligned: Mapping[str, Alignments]
) -> Contest:
    """The rows of a table with what lies beside their records.

    Args:
        frame: The table.
        runs: Its runs by run id.
        aligned: What `read_alignments` read of them, of those that have any.
    """
    samples: list[list[Sample]] = []
    places: dict[int, int] = {}
    first: Alignments | None = None
    speakers: Mapping[str, str] = {}
    for row, run_id in enumerate(frame["run_id"]):
        own = aligned.get(run_id)
        if own is None:
            continue
        if first is None:
            first, speakers = own, _speakers(runs[run_id])
        if _references(own) == _references(first):
            places[row] = len(samples)
            samples.append([_sample(own[name], first[name], speakers) for name in first])
    return Contest(frame, paired_draws(samples), places) if len(samples) > 1 else Contest(frame)


def _speakers(run: Run) -> dict[str, str]:
    """The speaker of every utterance, as far as they are known."""
    manifests = read_manifests(run).values()
    return {clip.id: clip.metadata.get(SPEAKER, "") for clips in manifests for clip in clips}


def _references(aligned: Alignments) -> dict[str, dict[str, str]]:
    return {
        name: {key: one.reference for key, one in utterances.items()}
        for name, utterances in aligned.items()
    }


def _sample(
    own: Mapping[str, Aligned], order: Mapping[str, Aligned], speakers: Mapping[str, str]
) -> Sample:
    """The errors of a data set, by speaker where all are known, as scoring takes them."""
    named = [speakers.get(key, "") for key in order]
    clusters = np.unique(named, return_inverse=True)[1] if all(named) else None
    counts = [(own[key].errors, own[key].words) for key in order]
    errors, words = np.array(counts, dtype=np.int64).T
    return Sample(errors, words, clusters)


def advice(contest: Contest, budget: Mapping[str, float]) -> list[str]:
    """What to ship within a budget, line by line, and how sure that is."""
    frame = contest.frame
    limits = ", ".join(_amount(column, budget[column]) for column in COLUMNS if column in budget)
    rows = contest.lowest(budget)
    if not rows:
        least = ", ".join(_amount(column, frame[column].min()) for column in COLUMNS)
        return [f"Nothing is within {limits}; the least of each: {least}."]
    winner, *others = rows
    rivals = contest.rivals(winner, others)
    close = [one for one in rivals if not one.distinguishable]
    lines = [
        f"Within {limits}, the lowest WER of {len(rows)}:",
        f"  {_named(frame, winner)}: {_figures(frame, winner)}",
    ]
    if close:
        lines.append("Not distinguishable from it on these clips (difference, how often worse):")
    for one in close:
        often = "" if one.better is None else f", {100 * one.better:.0f} % of draws"
        told = with_interval(one.difference, one.low, one.high, sign=True)
        unpaired = "" if one.paired else ", unpaired"
        lines.append(
            f"  {_named(frame, one.row)}: {told}{often}{unpaired}; {_figures(frame, one.row)}"
        )
    if smallest := _smallest(frame, winner, close):
        lines.append(smallest)
    if len(close) < len(rivals):
        lines.append(f"Worse by more than chance explains: {len(rivals) - len(close)}.")
    if rivals:
        lines.append(PAIRED if all(one.paired for one in rivals) else UNPAIRED)
    return lines


def _smallest(frame: pd.DataFrame, winner: int, close: Sequence[Rival]) -> str | None:
    """The smallest file among those that cannot be told from the lowest, where that is smaller."""
    sizes = frame.loc[[one.row for one in close], "size_mb"].dropna()
    if sizes.empty or not sizes.min() < frame["size_mb"][winner]:
        return None
    row = int(str(sizes.idxmin()))
    return f"The smallest file of them: {_named(frame, row)}, {_amount('size_mb', sizes[row])}."


def _amount(column: str, value: object) -> str:
    return f"{significant(value)} {COLUMNS[column]}"


def _named(frame: pd.DataFrame, row: int) -> str:
    return " ".join(str(frame[name][row]) for name in ("model", "method", "scheme"))


def _figures(frame: pd.DataFrame, row: int) -> str:
    cells = frame.loc[row]
    rate = with_interval(cells["wer_average"], cells["wer_low"], cells["wer_high"])
    return ", ".join([f"{rate} %", *(_amount(column, cells[column]) for column in COLUMNS)])

"""From hypotheses to the result rows of a record: of every data set, its conditions and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from edge_asr.config import ProtocolSettings
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, Transcription
from edge_asr.evaluation.paired_tests import mapsswe
from edge_asr.evaluation.pairs import marks_of
from edge_asr.evaluation.protocols import Protocol, protocol_named
from edge_asr.evaluation.significance import Sample, difference_of, wer_interval
from edge_asr.evaluation.wer import Score, score
from edge_asr.store.record import ALL, Average, Interval, Result, WorstUtterance

# Where lengths are parted, in seconds: low-bit models fail on long clips first, or on commands.
LENGTHS = (0, 5, 10, 20, float("inf"))
SPEAKER = "speaker"
WORST = 20


@dataclass(frozen=True)
class DataSetScore:
    """One data set, scored.

    Attributes:
        name: Of the data set.
        transcription: What was heard.
        own: Its counts.
        plain: Those of the float model on the same clips, or None.
    """

    name: str
    transcription: Transcription
    own: Score
    plain: Score | None = None

    @property
    def sample(self) -> Sample:
        """What its interval is drawn from."""
        return sample_of(self.own, self.transcription.hypotheses)

    @property
    def difference(self) -> Sample | None:
        """The same of the difference to the float model."""
        if self.plain is None:
            return None
        return difference_of(self.sample, sample_of(self.plain, self.transcription.hypotheses))

    def part(self, clips: Sequence[int]) -> DataSetScore:
        """The same of some clips. Raises UserError where none of them is scored."""
        own = self.own.select(clips)
        return replace(self, own=own, plain=self.plain and self.plain.select(clips))


def sample_of(counted: Score, clips: Sequence[Hypothesis]) -> Sample:
    """Errors and words of every scored pair, by speaker where all are known."""
    named = [clips[index].metadata.get(SPEAKER, "") for index in counted.scored]
    clusters = np.unique(named, return_inverse=True)[1] if all(named) else None
    return Sample(counted.errors, counted.words, clusters)


def score_data_set(
    protocol: Protocol,
    name: str,
    transcription: Transcription,
    baseline: Sequence[Hypothesis] | None,
) -> DataSetScore:
    """Score a transcription, and the float model's hypotheses of the same clips where given.

    Raises:
        UserError: when no clip could be transcribed, no reference holds a word, or the float
            model's hypotheses are of other clips.
    """
    clips = transcription.hypotheses
    if not clips:
        raise UserError(
            f"data: none of the {len(transcription.damaged)} clips of {name!r} could be read; "
            f"the first: {transcription.damaged[0].source}: {transcription.damaged[0].reason}"
            if transcription.damaged
            else f"data: {name!r} holds no clip"
        )
    plain = None
    if baseline is not None:
        remedy = "make the float run again with method=float rerun=true"
        named = "method: this run and the float run"
        plain = score(paired(clips, baseline, protocol, named, remedy), protocol)
    return DataSetScore(name, transcription, score(clips, protocol), plain)


def paired(
    hypotheses: Sequence[Hypothesis],
    others: Sequence[Hypothesis],
    protocol: Protocol,
    named: str,
    remedy: str = "compare runs on the same data",
) -> list[Hypothesis]:
    """The hypotheses of another run in the order of `hypotheses`.

    Args:
        hypotheses, others: Of the same clips.
        protocol: By which references are the same; some publish normalized ones.
        named: The two runs, for the message.
        remedy: What to do where they differ.

    Raises:
        UserError: when the two are not of the same clips by id, reference and, where both tell,
            samples.
    """

    def same(one: Hypothesis, other: Hypothesis | None) -> bool:
        if other is None or (one.samples and other.samples and one.samples != other.samples):
            return False
        return one.text == other.text or protocol.words(one.text) == protocol.words(other.text)

    by_id = {clip.id: clip for clip in others}
    # The file lies beside the record but no digest guards it: it may be cut short or copied.
    differing = [clip.id for clip in hypotheses if not same(clip, by_id.get(clip.id))]
    differing += sorted(by_id.keys() - {clip.id for clip in hypotheses})
    if differing:
        raise UserError(
            f"{named} are not of the same clips: id, text or samples of {len(differing)} differ, "
            f"the first {differing[0]!r}; {remedy}"
        )
    return [by_id[clip.id] for clip in hypotheses]


def results_of(settings: ProtocolSettings, scored: DataSetScore) -> tuple[Result, ...]:
    """The rows of one data set: all clips, every condition, every range of lengths that occurs.

    A part none of whose references holds a word gets a row without rates.
    """
    clips = scored.transcription.hypotheses
    parts: list[tuple[str, str, list[int]]] = []
    for condition in sorted({clip.metadata.get("condition", "") for clip in clips} - {""}):
        chosen = [i for i, clip in enumerate(clips) if clip.metadata.get("condition") == condition]
        parts.append(("condition", condition, chosen))
    for low, high in pairwise(LENGTHS):
        chosen = [i for i, clip in enumerate(clips) if low <= clip.duration < high]
        parts.append(("duration", f"{low}-{high} s" if high < LENGTHS[-1] else f"{low}+ s", chosen))
    rows = [_result(settings, scored, scored.transcription, ALL, "condition")]
    for by, name, chosen in parts:
        if not chosen:
            continue
        part = Transcription(tuple(clips[index] for index in chosen))
        # One unscorable condition, such as noise without speech, must not cost the whole run.
        wanted = set(chosen)
        scorable = any(wanted.issuperset(pair.rows) for pair in scored.own.pairs)
        rows.append(_result(settings, scored.part(chosen) if scorable else None, part, name, by))
    return tuple(replace(row, dataset=scored.name) for row in rows)


def average_of(settings: ProtocolSettings, scored: Sequence[DataSetScore]) -> Average:
    """The mean of the data sets, as the protocol takes it."""
    protocol = protocol_named(settings.name)
    differences = [one.difference for one in scored]
    compared = [one for one in differences if one is not None]
    both = len(compared) == len(scored)
    rounded = None
    if protocol.decimals is not None:
        rates = [round(one.own.wer, protocol.decimals) for one in scored]
        rounded = round(sum(rates) / len(rates), protocol.decimals)
    return Average(
        settings.name,
        _interval(settings, [one.sample for one in scored]),
        _interval(settings, compared) if both else None,
        rounded=rounded,
        complete=_complete(protocol, [one.name for one in scored]),
        p_value=_p_value(scored) if both else None,
    )


def worst_utterances(
    scored: Sequence[DataSetScore], count: int = WORST
) -> tuple[WorstUtterance, ...]:
    """The `count` pairs with the most errors, the earlier of equal ones first."""
    found = [
        WorstUtterance(
            dataset=one.name,
            id=one.transcription.hypotheses[pair.rows[0]].id,
            errors=int(errors),
            words=len(pair.reference),
            reference=" ".join(pair.reference),
            hypothesis=" ".join(pair.hypothesis),
        )
        for one in scored
        for pair, errors in zip(one.own.pairs, one.own.errors, strict=True)
        if errors
    ]
    return tuple(sorted(found, key=lambda worst: -worst.errors)[:count])


def _complete(protocol: Protocol, names: Sequence[str]) -> bool | None:
    return sorted(names) == sorted(protocol.data_sets) if protocol.data_sets else None


def _interval(settings: ProtocolSettings, samples: Sequence[Sample]) -> Interval:
    return wer_interval(samples, resamples=settings.resamples, seed=settings.seed)


def _p_value(scored: Sequence[DataSetScore]) -> float | None:
    """Of the matched-pairs test against the float model, over all segments of all data sets."""
    both = [(one.own, one.plain) for one in scored if one.plain is not None]
    own = [marks_of(alignment) for ours, _ in both for alignment in ours.alignments]
    plain = [marks_of(alignment) for _, theirs in both for alignment in theirs.alignments]
    return mapsswe(own, plain).p_value if both else None


def _result(
    settings: ProtocolSettings,
    scored: DataSetScore | None,
    transcription: Transcription,
    condition: str,
    by: str,
) -> Result:
    """A row, its rates those of `scored`; None: none of the clips is."""
    clips = transcription.hypotheses
    unscored = Result(
        dataset="",
        protocol=settings.name,
        utterances=len(clips),
        seconds=transcription.audio_seconds,
        condition=condition,
        by=by,
        scored=0,
        dropped=len(clips),
        hit_limit=sum(clip.hit_limit for clip in clips),
        truncated=sum(clip.truncated for clip in clips),
        flagged=sum(bool(clip.flags) for clip in clips),
        damaged=tuple(clip.source for clip in transcription.damaged),
    )
    return unscored if scored is None else replace(unscored, **_rates(settings, scored))


def _rates(settings: ProtocolSettings, scored: DataSetScore) -> Mapping[str, Any]:
    own, plain, difference = scored.own, scored.plain, scored.difference
    clusters = scored.sample.clusters
    return {
        "scored": len(own.pairs),
        "clusters": None if clusters is None else len(np.unique(clusters)),
        "wer": own.wer,
        "interval": _interval(settings, [scored.sample]),
        "cer": own.cer,
        "float_wer": None if plain is None else plain.wer,
        "float_cer": None if plain is None else plain.cer,
        "difference": None if difference is None else _interval(settings, [difference]),
        "p_value": _p_value([scored]),
        "rare_words": int(own.rare.sum()),
        "rare_wer": own.rare_wer,
        "float_rare_wer": None if plain is None else plain.rare_wer,
        "reference_words": int(own.words.sum()),
        "substitutions": int(own.substitutions.sum()),
        "deletions": int(own.deletions.sum()),
        "insertions": int(own.insertions.sum()),
        "empty": int(own.empty_outputs.sum()),
        "looping": int(own.looping_outputs.sum()),
        "over_long": int(own.over_long_outputs.sum()),
        "dropped": len(own.dropped),
        "invented_clips": sum(words > 0 for words in own.invented),
        "invented_words": sum(own.invented),
    }

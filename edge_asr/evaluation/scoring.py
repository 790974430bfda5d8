"""From hypotheses to the result rows of a record: one for all clips, one for each condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge_asr.config import ProtocolSettings
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, Transcription
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.significance import (
    mean_paired_difference,
    mean_wer_interval,
    paired_difference,
    wer_interval,
)
from edge_asr.evaluation.wer import Score, score
from edge_asr.store.record import ALL, Average, Result


def score_run(
    settings: ProtocolSettings,
    dataset: str,
    transcription: Transcription,
    baseline: Sequence[Hypothesis] | None,
) -> tuple[tuple[Result, ...], tuple[Average, ...]]:
    """Score a transcription, and against the float model's hypotheses where given.

    Utterances are paired by id; both runs transcribed the same corpus. A condition none of whose
    references holds a word gets a row without rates.

    Raises:
        UserError: when no clip could be transcribed, no reference holds a word, or the float
            model's hypotheses are of other clips.
    """
    hypotheses = transcription.hypotheses
    if not hypotheses:
        raise UserError(
            f"data: none of the {len(transcription.damaged)} clips of {dataset!r} could be read; "
            f"the first: {transcription.damaged[0].source}: {transcription.damaged[0].reason}"
            if transcription.damaged
            else f"data: {dataset!r} holds no clip"
        )
    own = score_hypotheses(settings.name, hypotheses)
    plain = None
    if baseline is not None:
        remedy = "make the float run again with method=float rerun=true"
        named = "method: this run and the float run"
        plain = score_hypotheses(settings.name, paired(hypotheses, baseline, named, remedy))
    conditions = [hypothesis.metadata.get("condition", "") for hypothesis in hypotheses]
    results = [_result(settings, dataset, ALL, transcription, own, plain)]
    for condition in sorted({name for name in conditions if name}):
        chosen = [index for index, name in enumerate(conditions) if name == condition]
        part = Transcription(tuple(hypotheses[index] for index in chosen))
        # One unscorable condition, such as noise without speech, must not cost the whole run.
        scorable = bool(np.isin(own.scored, chosen).any())
        results.append(
            _result(
                settings,
                dataset,
                condition,
                part,
                own.select(chosen) if scorable else None,
                plain.select(chosen) if scorable and plain is not None else None,
            )
        )
    options = {"resamples": settings.resamples, "seed": settings.seed}
    average = Average(
        settings.name,
        mean_wer_interval([own], **options),
        None if plain is None else mean_paired_difference([own], [plain], **options),
    )
    return tuple(results), (average,)


def paired(
    hypotheses: Sequence[Hypothesis], others: Sequence[Hypothesis], named: str, remedy: str = ""
) -> list[Hypothesis]:
    """The hypotheses of another run in the order of `hypotheses`.

    Args:
        hypotheses, others: Of the same clips.
        named: The two runs, for the message.
        remedy: What to do where they differ.

    Raises:
        UserError: when the two are not of the same clips by id, reference and samples.
    """
    by_id = {hypothesis.id: hypothesis for hypothesis in others}
    clips, other_clips = (
        {row.id: (row.text, row.samples) for row in rows} for rows in (hypotheses, others)
    )
    # The file lies beside the record but no digest guards it: it may be cut short or copied.
    differing = [name for name in clips | other_clips if clips.get(name) != other_clips.get(name)]
    if differing:
        raise UserError(
            f"{named} are not of the same clips: id, text or samples of {len(differing)} differ, "
            f"the first {differing[0]!r}; {remedy or 'compare runs on the same data'}"
        )
    return [by_id[hypothesis.id] for hypothesis in hypotheses]


def score_hypotheses(protocol: str, hypotheses: Sequence[Hypothesis]) -> Score:
    """Error counts of the hypotheses under the protocol of that name."""
    return score(
        [hypothesis.text for hypothesis in hypotheses],
        [hypothesis.pred_text for hypothesis in hypotheses],
        protocol_named(protocol),
    )


def _result(
    settings: ProtocolSettings,
    dataset: str,
    condition: str,
    transcription: Transcription,
    own: Score | None,
    plain: Score | None,
) -> Result:
    unscored = Result(
        dataset=dataset,
        protocol=settings.name,
        utterances=len(transcription.hypotheses),
        seconds=transcription.audio_seconds,
        condition=condition,
        dropped=len(transcription.hypotheses),
        hit_limit=sum(hypothesis.hit_limit for hypothesis in transcription.hypotheses),
        damaged=tuple(clip.source for clip in transcription.damaged),
    )
    if own is None:
        return unscored
    options = {"resamples": settings.resamples, "seed": settings.seed}
    return replace(
        unscored,
        wer=own.wer,
        interval=wer_interval(own, **options),
        float_wer=None if plain is None else plain.wer,
        difference=None if plain is None else paired_difference(own, plain, **options),
        reference_words=int(own.words.sum()),
        substitutions=int(np.sum(own.substitutions)),
        deletions=int(np.sum(own.deletions)),
        insertions=int(np.sum(own.insertions)),
        empty=own.empty,
        looping=own.looping,
        dropped=own.dropped,
    )

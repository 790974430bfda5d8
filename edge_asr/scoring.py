"""From hypotheses to the result rows of a record: one for all clips, one for each condition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_asr.config import ProtocolSettings
from edge_asr.errors import UserError
from edge_asr.metrics.significance import (
    mean_paired_difference,
    mean_wer_interval,
    paired_difference,
    wer_interval,
)
from edge_asr.metrics.wer import Score, protocol_named, score
from edge_asr.record import ALL, Average, Result
from edge_asr.transcribe import Hypothesis, Transcription


def score_run(
    settings: ProtocolSettings,
    dataset: str,
    transcription: Transcription,
    baseline: Sequence[Hypothesis] | None,
) -> tuple[tuple[Result, ...], tuple[Average, ...]]:
    """Score a transcription, and against the float model's hypotheses where given.

    Utterances are paired by id; both runs transcribed the same corpus.

    Raises:
        UserError: when no clip could be transcribed, or no reference holds a word.
    """
    hypotheses = transcription.hypotheses
    if not hypotheses:
        raise UserError(
            f"data: none of the {len(transcription.damaged)} clips of {dataset!r} could be read; "
            f"the first: {transcription.damaged[0].source}: {transcription.damaged[0].reason}"
            if transcription.damaged
            else f"data: {dataset!r} holds no clip"
        )
    own = _score(settings, hypotheses)
    plain = None
    if baseline is not None:
        by_id = {hypothesis.id: hypothesis for hypothesis in baseline}
        plain = _score(settings, [by_id[hypothesis.id] for hypothesis in hypotheses])
    conditions = [hypothesis.metadata.get("condition", "") for hypothesis in hypotheses]
    results = [_result(settings, dataset, ALL, transcription, own, plain)]
    for condition in sorted({name for name in conditions if name}):
        chosen = [index for index, name in enumerate(conditions) if name == condition]
        part = Transcription(tuple(hypotheses[index] for index in chosen), ())
        results.append(
            _result(
                settings,
                dataset,
                condition,
                part,
                own.select(chosen),
                None if plain is None else plain.select(chosen),
            )
        )
    options = {"resamples": settings.resamples, "seed": settings.seed}
    average = Average(
        settings.name,
        mean_wer_interval([own], **options),
        None if plain is None else mean_paired_difference([own], [plain], **options),
    )
    return tuple(results), (average,)


def _score(settings: ProtocolSettings, hypotheses: Sequence[Hypothesis]) -> Score:
    return score(
        [hypothesis.text for hypothesis in hypotheses],
        [hypothesis.pred_text for hypothesis in hypotheses],
        protocol_named(settings.name),
    )


def _result(
    settings: ProtocolSettings,
    dataset: str,
    condition: str,
    transcription: Transcription,
    own: Score,
    plain: Score | None,
) -> Result:
    options = {"resamples": settings.resamples, "seed": settings.seed}
    return Result(
        dataset=dataset,
        protocol=settings.name,
        utterances=len(transcription.hypotheses),
        seconds=transcription.audio_seconds,
        condition=condition,
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
        truncated=sum(hypothesis.hit_limit for hypothesis in transcription.hypotheses),
        damaged=tuple(clip.source for clip in transcription.damaged),
    )

"""Our error rates as a metric of Hugging Face `evaluate`, without a download.

from edge_asr.evaluation.metric import SpeechErrors

SpeechErrors().compute(predictions=["a cat"], references=["a dog"], protocol="plain")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from edge_asr.evaluation.hypotheses import Hypothesis
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.wer import score

DESCRIPTION = """\
Word and character error rate of speech recognition under a scoring protocol, in percent, with the
counts behind them and of the ways in which recognisers fail."""
INPUTS = """\
Args:
    predictions: Recognised texts.
    references: Transcripts, in the same order.
    protocol: How to normalize and align: open_asr_2024, open_asr_2026, multilingual or plain.
Returns:
    wer, cer, rare_wer: Percent; the last of reference words that are not among the most frequent
        of English, None without any.
    substitutions, deletions, insertions, hits, words: Counts of words.
    scored, dropped: Utterances that count, and those without a word in their reference.
    empty, looping, over_long: Outputs without a word, that repeat themselves, far too long.
    invented_clips, invented_words: Dropped utterances that were given words, and the words."""


class SpeechErrors(evaluate.Metric):  # type: ignore[misc]  # the library is untyped
    """WER, CER, edit counts and failures of hypotheses; see `INPUTS`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        protocol: str = "open_asr_2024",
    ) -> dict[str, Any]:
        clips = [
            Hypothesis(audio_filepath=str(index), text=reference, pred_text=prediction)
            for index, (reference, prediction) in enumerate(
                zip(references, predictions, strict=True)
            )
        ]
        counted = score(clips, protocol_named(protocol))
        return {"wer": counted.wer, "cer": counted.cer, "rare_wer": counted.rare_wer} | {
            name: int(value)
            for name, value in {
                "substitutions": counted.substitutions.sum(),
                "deletions": counted.deletions.sum(),
                "insertions": counted.insertions.sum(),
                "hits": counted.hits.sum(),
                "words": counted.words.sum(),
                "scored": len(counted.pairs),
                "dropped": len(counted.dropped),
                "empty": counted.empty_outputs.sum(),
                "looping": counted.looping_outputs.sum(),
                "over_long": counted.over_long_outputs.sum(),
                "invented_clips": sum(words > 0 for words in counted.invented),
                "invented_words": sum(counted.invented),
            }.items()
        }

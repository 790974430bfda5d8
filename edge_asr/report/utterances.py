"""What lies beside a record, read for a report: what was heard, word by word, and how fast."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, read_hypotheses
from edge_asr.experiments.files import ALIGNMENTS_NAME
from edge_asr.report.read import Run
from edge_asr.store.record import ALL, Result

KINDS = ("equal", "substitute", "delete", "insert")


def read_manifests(run: Run) -> dict[str, tuple[Hypothesis, ...]]:
    """The hypotheses of every data set that lie beside a record; none where one is missing."""
    try:
        return {
            name: read_hypotheses(run.folder / file)
            for name, file in run.record.hypotheses_files.items()
        }
    except UserError:
        return {}


@dataclass(frozen=True)
class Aligned:
    """One utterance as it was compared: [[kind, words], [kind, reference, hypothesis], ...].

    Either side is empty where it has no words.
    """

    edits: tuple[tuple[str, ...], ...]

    @property
    def reference(self) -> str:
        return " ".join(one[1] for one in self.edits if one[1])

    @property
    def words(self) -> int:
        """Of the reference."""
        return sum(len(one[1].split()) for one in self.edits if one[0] != "insert")

    @property
    def errors(self) -> int:
        return sum(len((one[1] or one[-1]).split()) for one in self.edits if one[0] != "equal")


Alignments = Mapping[str, Mapping[str, Aligned]]


def read_alignments(run: Run) -> Alignments | None:
    """The alignments of every data set, by utterance.

    None where there are none, or where they are not those that the record was made of.
    """
    path = run.folder / ALIGNMENTS_NAME
    try:
        plain = json.loads(path.read_bytes())
        found = {
            str(name): {str(key): _aligned(edits) for key, edits in utterances.items()}
            for name, utterances in plain.items()
        }
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return None
    whole = [one for one in run.record.results if (one.condition, one.by) == (ALL, "condition")]
    return found if whole and all(_is_of(found.get(one.dataset), one) for one in whole) else None


def _aligned(edits: Any) -> Aligned:
    """One utterance. Raises ValueError for what is no alignment."""
    plain = tuple(tuple(map(str, edit)) for edit in edits)
    for edit in plain:
        if edit[:1] == () or edit[0] not in KINDS or len(edit) not in (2, 3):
            raise ValueError(f"{edit!r:.60} is no edit")
    return Aligned(plain)


def _is_of(utterances: Mapping[str, Aligned] | None, result: Result) -> bool:
    if not utterances or result.wer is None:
        return False
    words = sum(one.words for one in utterances.values())
    errors = sum(one.errors for one in utterances.values())
    return bool(words) and math.isclose(100 * errors / words, result.wer, rel_tol=1e-9)

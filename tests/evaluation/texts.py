"""Hypotheses of bare texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_asr.evaluation.hypotheses import Hypothesis


def clip(reference: str, hypothesis: str, name: str = "", **metadata: str) -> Hypothesis:
    """A clip of 1.5 seconds; `parent_id` and `chunk_index` of a chunk go to their fields."""
    fields: Mapping[str, object] = {
        "parent_id": metadata.get("parent_id"),
        "chunk_index": int(metadata["chunk_index"]) if "chunk_index" in metadata else None,
    }
    return Hypothesis(
        audio_filepath=f"{name}.wav",
        text=reference,
        pred_text=hypothesis,
        duration=1.5,
        time=0.1,
        id=name,
        samples=24_000,
        generated_tokens=3,
        metadata=metadata,
        **fields,  # type: ignore[arg-type]
    )


def clips(references: Sequence[str], hypotheses: Sequence[str]) -> list[Hypothesis]:
    """A clip for every pair of texts, their numbers their ids."""
    both = zip(references, hypotheses, strict=True)
    return [clip(*pair, name=str(index)) for index, pair in enumerate(both)]

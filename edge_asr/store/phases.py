"""Where the time of a transcription goes."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class PhaseSeconds:
    """Wall seconds of every phase. Features are made while the batch before is decoded, so that
    a run may take less than their sum.

    Attributes:
        audio: Reading and decoding files.
        features: Of the samples, on the processor.
        encoder: Moving them to the device, and the encoder.
        decoder: All steps of the decoder.
        text: Writing tokens as text.
    """

    audio: float = 0.0
    features: float = 0.0
    encoder: float = 0.0
    decoder: float = 0.0
    text: float = 0.0

    def __add__(self, other: PhaseSeconds) -> PhaseSeconds:
        names = (one.name for one in fields(self))
        return PhaseSeconds(*(getattr(self, name) + getattr(other, name) for name in names))

    def share(self, clips: int) -> PhaseSeconds:
        """That of each of `clips` clips."""
        return PhaseSeconds(*(getattr(self, one.name) / clips for one in fields(self)))

    @property
    def transcription(self) -> float:
        """What the Open ASR Leaderboard times: all but reading and decoding files
        (huggingface/open_asr_leaderboard, transformers/run_eval.py, `benchmark`, d1e99b2, 2026)."""
        return self.features + self.encoder + self.decoder + self.text

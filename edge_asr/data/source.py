"""What a source of clips is; `data=` and `calibration=` choose one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod

from edge_asr.data.corpus import Corpus
from edge_asr.registry import Registry
from edge_asr.settings import Checked


class Source(Checked, ABC):
    """Where clips come from."""

    @abstractmethod
    def clips(self, limit: int | None = None) -> Corpus:
        """The clips to transcribe, with transcripts; at most `limit` of them.

        Raises UserError for what cannot be opened.
        """

    def data_sets(self, protocol: str, limit: int | None = None) -> tuple[Corpus, ...]:
        """The data sets to transcribe, each scored on its own; at most `limit` clips of each.

        A source of several, or one of which a protocol has its own edition, says more than this.
        Raises UserError for what cannot be opened.
        """
        del protocol
        return (self.clips(limit),)

    @abstractmethod
    def calibration_clips(self) -> Corpus:
        """The clips that calibration draws from; transcripts may be missing.

        Raises UserError for what cannot be opened.
        """


sources: Registry[Source] = Registry("source", "data", "calibration")

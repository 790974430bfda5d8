"""Where clips come from, by name: what `data=` and `calibration=` choose.

A source is a registered frozen dataclass whose fields are its settings; it opens a corpus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from edge_asr.data.corpus import Corpus
from edge_asr.data.embedded import embedded_calibration, embedded_test
from edge_asr.data.manifest import ManifestCorpus, manifest_file
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


@sources.register("embedded")
@dataclass(frozen=True)
class Embedded(Source):
    """The clips that come with the package: synthetic speech, clean and noisy.

    Attributes:
        condition: Which of them.
        where: Only clips whose fields equal these, such as where.kind=sentence.
    """

    condition: Literal["all", "clean", "noisy"] = "all"
    where: Mapping[str, Any] = field(default_factory=dict)

    def clips(self, limit: int | None = None) -> Corpus:
        return embedded_test(self.condition, limit, _texts(self.where))

    def calibration_clips(self) -> Corpus:
        chosen = {} if self.condition == "all" else {"condition": self.condition}
        return embedded_calibration(where={**_texts(self.where), **chosen})


@sources.register("manifest")
@dataclass(frozen=True)
class Manifest(Source):
    """The clips that a JSON-lines manifest lists.

    Attributes:
        path: The manifest: a clip a line, {"audio": "clip.wav", "text": "what was said"}.
        where: Only rows whose fields equal these, such as where.set=NAME.
    """

    path: Annotated[str, Field(min_length=1)]
    where: Mapping[str, Any] = field(default_factory=dict)

    def clips(self, limit: int | None = None) -> Corpus:
        return ManifestCorpus(
            self.path, limit=limit, where=_texts(self.where), name=self._name(limit)
        )

    def calibration_clips(self) -> Corpus:
        return ManifestCorpus(self.path, where=_texts(self.where), require_text=False)

    def _name(self, limit: int | None) -> str:
        """The file's name with its folder and selection, so that parts are told apart."""
        manifest = manifest_file(self.path).resolve()
        selection = "".join(f"-{value}" for _, value in sorted(_texts(self.where).items()))
        first = f"-first{limit}" if limit else ""
        return f"{manifest.parent.name}-{manifest.stem}{selection}{first}"


def _texts(where: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a manifest are compared as text, and `where.speaker=84` arrives as a number."""
    return {str(name): str(value) for name, value in where.items()}

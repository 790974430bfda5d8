"""Where clips come from, by name: what `data=` and `calibration=` choose.

A source is a registered frozen dataclass whose fields are its settings; it opens a corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from edge_asr.data import leaderboard_sets as leaderboard_sets
from edge_asr.data.corpus import Corpus
from edge_asr.data.embedded import embedded_calibration, embedded_test
from edge_asr.data.manifest import ManifestCorpus, manifest_file
from edge_asr.data.source import Source as Source
from edge_asr.data.source import sources as sources
from edge_asr.errors import UserError


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
        split_by: A field, such as set: the rows of each of its values are a data set of their own.
            where.FIELD=[A,B] chooses some.
    """

    path: Annotated[str, Field(min_length=1)]
    where: Mapping[str, Any] = field(default_factory=dict)
    split_by: Annotated[str, Field(min_length=1)] | None = None

    def clips(self, limit: int | None = None) -> Corpus:
        return self._of(self.where, limit)

    def data_sets(self, protocol: str, limit: int | None = None) -> tuple[Corpus, ...]:
        if self.split_by is None:
            return super().data_sets(protocol, limit)
        rest = {name: value for name, value in self.where.items() if name != self.split_by}
        chosen = self.where.get(self.split_by)
        if chosen is None:
            rows = ManifestCorpus(self.path, where=_texts(rest), require_text=False).rows
            chosen = sorted({row.metadata.get(self.split_by, "") for row in rows})
            if not all(chosen):
                raise UserError(
                    f"data.split_by={self.split_by}: not every row of manifest {self.path!r} has "
                    f"that field; choose values, data.where.{self.split_by}=[A,B]"
                )
        values = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
        return tuple(self._of({**rest, self.split_by: value}, limit) for value in values)

    def calibration_clips(self) -> Corpus:
        return ManifestCorpus(self.path, where=_texts(self.where), require_text=False)

    def _of(self, where: Mapping[str, Any], limit: int | None) -> Corpus:
        return ManifestCorpus(
            self.path, limit=limit, where=_texts(where), name=self._name(where, limit)
        )

    def _name(self, where: Mapping[str, Any], limit: int | None) -> str:
        """The file's name with its folder and selection, so that parts are told apart."""
        manifest = manifest_file(self.path).resolve()
        selection = "".join(f"-{value}" for _, value in sorted(_texts(where).items()))
        first = f"-{limit}clips" if limit else ""
        return f"{manifest.parent.name}-{manifest.stem}{selection}{first}"


@sources.register("hf")
@dataclass(frozen=True)
class Hub(Source):
    """A data set of the Hugging Face hub, or a folder of the same layout.

    Attributes:
        path: Its id, owner/name, or a folder: a copy of such a repository, what save_to_disk wrote,
            or audio files with a metadata.csv.
        config: Which of its configurations; null where it has only one.
        split: Which of its splits.
        text_column: Column of transcripts; null for the first of text, sentence, normalized_text,
            transcript and transcription.
        audio_column: Column of audio; null for the usual one.
        id_column: Column of ids; null for a usual one, else file names, else row numbers.
        revision: Branch, tag or commit; null for the newest. The record says the commit.
        streaming: Whether to fetch only what is needed and keep none of it.
    """

    path: Annotated[str, Field(min_length=1)]
    config: str | None = None
    split: Annotated[str, Field(min_length=1)] = "test"
    text_column: str | None = None
    audio_column: str | None = None
    id_column: str | None = None
    revision: str | None = None
    streaming: bool = False

    def clips(self, limit: int | None = None) -> Corpus:
        return self._open(limit)

    def calibration_clips(self) -> Corpus:
        return self._open(None, require_text=False)

    def _open(self, limit: int | None, require_text: bool = True) -> Corpus:
        from edge_asr.data.hub import HubCorpus
        from edge_asr.data.hub_columns import Names
        from edge_asr.data.hub_files import Place

        return HubCorpus(
            Place(self.path, self.config, self.split, self.revision, self.streaming),
            limit=limit,
            names=Names(self.text_column, self.audio_column, self.id_column),
            require_text=require_text,
        )


def _texts(where: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a manifest are compared as text, and `where.speaker=84` arrives as a number."""
    return {str(name): str(value) for name, value in where.items()}

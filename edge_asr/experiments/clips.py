"""The clips of a run: those to transcribe, and those drawn to calibrate on."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_asr.calibration.batches import DrawnClip, draw_clips
from edge_asr.config import CalibrationSettings, Settings
from edge_asr.data.corpus import Corpus
from edge_asr.data.overlap import overlap
from edge_asr.data.sources import Source, sources
from edge_asr.errors import UserError
from edge_asr.store.fingerprint import Digests


@dataclass(frozen=True)
class DrawnClips:
    """The clips to calibrate on.

    Attributes:
        clips: Longest first.
        digests: Of their audio, as the corpus gives it.
        warnings: What drawing them has to say.
    """

    clips: tuple[DrawnClip, ...] = ()
    digests: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class Clips:
    """Opens the clips of runs; those that several runs have in common are read once.

    Attributes:
        digests: Remembers those of files.
    """

    digests: Digests
    _data_sets: dict[str, tuple[Corpus, ...]] = field(default_factory=dict)
    _drawn: dict[str, DrawnClips] = field(default_factory=dict)

    def data_sets(self, settings: Settings) -> tuple[Corpus, ...]:
        """The data sets to transcribe. Raises UserError for two of one name."""
        key = repr((settings.data, settings.protocol.name))
        if key not in self._data_sets:
            source = data_source(settings)
            corpora = source.data_sets(settings.protocol.name, settings.data.limit)
            names = [corpus.name for corpus in corpora]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UserError(
                    f"data: two data sets are called {twice!r}; give each a name of its own"
                )
            self._data_sets[key] = corpora
        return self._data_sets[key]

    def drawn(self, settings: Settings) -> DrawnClips:
        """The clips to calibrate on. Raises UserError where some must not be transcribed too."""
        chosen = settings.calibration
        key = repr((chosen, settings.data, settings.protocol.name))
        if key not in self._drawn:
            corpus = calibration_source(chosen).calibration_clips()
            warnings: list[str] = []
            clips = draw_clips(corpus, chosen.clips, chosen.seed, warnings.append)
            shared = overlap(
                [clip.utterance for clip in clips], self.data_sets(settings), self.digests
            )
            overlap_warnings(settings, shared)
            digests = corpus.audio_digests(self.digests, [clip.index for clip in clips])
            # Their audio takes memory: of several choices only the last stays.
            self._drawn = {key: DrawnClips(tuple(clips), tuple(digests), tuple(warnings))}
        return self._drawn[key]


def data_source(settings: Settings) -> Source:
    """Where clips to transcribe come from. Raises UserError for a setting out of its range."""
    return sources.build({"name": settings.data.name, **settings.data.options}, "data")


def calibration_source(calibration: CalibrationSettings) -> Source:
    """Where calibration clips come from. Raises UserError for a setting out of its range."""
    return sources.build({"name": calibration.name, **calibration.options}, "calibration")


def overlap_warnings(settings: Settings, shared: int) -> list[str]:
    """That `shared` calibration clips are transcribed too, if there are any and that is allowed.

    Raises UserError where it is not.
    """
    if not shared:
        return []
    said = f"calibration: {shared} clips are transcribed too, so the error is not that of unknown"
    if not settings.calibration.allow_overlap:
        raise UserError(f"{said} speech; choose other clips, or set calibration.allow_overlap=true")
    return [f"{said} speech (calibration.allow_overlap=true)"]

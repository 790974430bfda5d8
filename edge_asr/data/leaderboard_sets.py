"""The test sets of the open ASR leaderboard by name, and each of its protocols' sets as a group.

Repositories, configurations and splits are those of the leaderboard's own scripts
(github.com/huggingface/open_asr_leaderboard: transformers/run_whisper.sh at 2d5dec7, 2025-07-08,
and the transformers/submit_jobs_*.sh and normalizer/data_utils.py at d1e99b2, 2026-08-21).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from edge_asr.data.corpus import Corpus
from edge_asr.data.source import Source, sources
from edge_asr.errors import UserError
from edge_asr.settings import nearest

if TYPE_CHECKING:
    from edge_asr.data.hub import HubCorpus, Recordings

OPEN_ASR_2024 = "hf-audio/esb-datasets-test-only-sorted"
OPEN_ASR_2026 = "hf-audio/open-asr-leaderboard"
EARNINGS22 = "ArtificialAnalysis/Earnings22-Cleaned-AA"
NEW_PROTOCOL = "open_asr_2026"


@dataclass(frozen=True)
class LeaderboardSet(Source):
    """A test set of the open ASR leaderboard.

    Attributes:
        path: Its repository, or a local copy; null for the one that the protocol names.
        revision: Branch, tag or commit; null for the newest. The record says the commit.
        streaming: Whether to fetch only what is needed and keep none of it.
    """

    path: str | None = None
    revision: str | None = None
    streaming: bool = False

    config: ClassVar[str | None]
    split: ClassVar[str] = "test"
    # The repositories of the older protocol and of the newer one.
    repositories: ClassVar[tuple[str, str]] = (OPEN_ASR_2024, OPEN_ASR_2026)

    def clips(self, limit: int | None = None) -> Corpus:
        return self._open("", limit)

    def data_sets(self, protocol: str, limit: int | None = None) -> tuple[Corpus, ...]:
        return (self._open(protocol, limit),)

    def calibration_clips(self) -> Corpus:
        return self._open("", None, require_text=False)

    def _open(self, protocol: str, limit: int | None, require_text: bool = True) -> HubCorpus:
        from edge_asr.data.hub import HubCorpus
        from edge_asr.data.hub_files import Place

        path = self.path or self.repositories[protocol == NEW_PROTOCOL]
        return HubCorpus(
            Place(path, self.config, self.split, self.revision, self.streaming),
            name=sources.name_of(self),
            limit=limit,
            require_text=require_text,
            recordings=self._recordings(),
        )

    def _recordings(self) -> Recordings | None:
        """What the rows are chunks of, where they are chunks."""
        return None


@dataclass(frozen=True)
class OldSet(LeaderboardSet):
    """A test set that only the older protocol has."""

    repositories = (OPEN_ASR_2024, OPEN_ASR_2024)


@dataclass(frozen=True)
class NewSet(LeaderboardSet):
    """A test set that only the newer protocol has."""

    repositories = (OPEN_ASR_2026, OPEN_ASR_2026)


@sources.register("ami")
@dataclass(frozen=True)
class Ami(LeaderboardSet):
    """Meetings, headset microphones (AMI)."""

    config = "ami"


@sources.register("earnings22")
@dataclass(frozen=True)
class Earnings22(LeaderboardSet):
    """Earnings calls in English of many countries (Earnings-22)."""

    config = "earnings22"


@sources.register("gigaspeech")
@dataclass(frozen=True)
class GigaSpeech(LeaderboardSet):
    """Audiobooks, podcasts and videos (GigaSpeech)."""

    config = "gigaspeech"


@sources.register("librispeech_clean")
@dataclass(frozen=True)
class LibriSpeechClean(LeaderboardSet):
    """Audiobooks, test-clean (LibriSpeech)."""

    config = "librispeech"
    split = "test.clean"


@sources.register("librispeech_other")
@dataclass(frozen=True)
class LibriSpeechOther(LeaderboardSet):
    """Audiobooks, test-other (LibriSpeech)."""

    config = "librispeech"
    split = "test.other"


@sources.register("spgispeech")
@dataclass(frozen=True)
class SpgiSpeech(LeaderboardSet):
    """Earnings calls (SPGISpeech)."""

    config = "spgispeech"


@sources.register("tedlium")
@dataclass(frozen=True)
class Tedlium(OldSet):
    """TED talks (TED-LIUM 3); in no mean since June 2026."""

    config = "tedlium"


@sources.register("voxpopuli")
@dataclass(frozen=True)
class VoxPopuli(LeaderboardSet):
    """Speeches in the European Parliament (VoxPopuli, English)."""

    config = "voxpopuli"


@sources.register("common_voice")
@dataclass(frozen=True)
class CommonVoice(OldSet):
    """Sentences read by volunteers (Common Voice 9, English); in no mean since August 2024."""

    config = "common_voice"


@sources.register("ami_cleaned")
@dataclass(frozen=True)
class AmiCleaned(NewSet):
    """Meetings with corrected references (AMI)."""

    config = "ami_cleaned"


@sources.register("gigaspeech_cleaned")
@dataclass(frozen=True)
class GigaSpeechCleaned(NewSet):
    """Audiobooks, podcasts and videos with corrected references (GigaSpeech)."""

    config = "gigaspeech_cleaned"


@sources.register("voxpopuli_cleaned_aa")
@dataclass(frozen=True)
class VoxPopuliCleaned(NewSet):
    """Speeches in the European Parliament with corrected references (VoxPopuli)."""

    config = "voxpopuli_cleaned_aa"


@sources.register("earnings22_cleaned_aa_chunked")
@dataclass(frozen=True)
class Earnings22Chunked(LeaderboardSet):
    """Six earnings calls in 341 chunks, a corrected reference for each call (Earnings-22).

    Attributes:
        calls: Repository of the calls' references, or a local copy; null for the published one, or
            its copy beside that of the chunks.
    """

    calls: str | None = None

    config = None
    repositories = (f"{EARNINGS22}-chunked", f"{EARNINGS22}-chunked")

    def _recordings(self) -> Recordings:
        from edge_asr.data.hub import Recordings
        from edge_asr.data.hub_files import Place

        beside = Path(self.path or "").expanduser().parent / Path(EARNINGS22).name
        copied = self.path is not None and beside.is_dir()
        calls = self.calls or (str(beside) if copied else EARNINGS22)
        return Recordings(Place(calls, streaming=self.streaming), audio_folder="audio")


@sources.register("fleurs")
@dataclass(frozen=True)
class Fleurs(Source):
    """Sentences read in 102 languages (FLEURS).

    Attributes:
        language: Which of its configurations, such as en_us or de_de.
        path: Its repository, or a local copy.
        revision: Branch, tag or commit; the default is the hub's own Parquet copy, for the
            repository itself is a program.
        streaming: Whether to fetch only what is needed and keep none of it.
    """

    language: Annotated[str, Field(min_length=1)] = "en_us"
    path: Annotated[str, Field(min_length=1)] = "google/fleurs"
    revision: str | None = "refs/convert/parquet"
    streaming: bool = False

    def clips(self, limit: int | None = None) -> Corpus:
        return self._open("test", limit)

    def calibration_clips(self) -> Corpus:
        return self._open("train", None)

    def _open(self, split: str, limit: int | None) -> Corpus:
        from edge_asr.data.hub import HubCorpus
        from edge_asr.data.hub_files import Place

        return HubCorpus(
            Place(self.path, self.language, split, self.revision, self.streaming),
            name=f"fleurs-{self.language}",
            limit=limit,
        )


@dataclass(frozen=True)
class LeaderboardGroup(Source):
    """Test sets of the open ASR leaderboard, each scored on its own.

    Attributes:
        sets: Which of them, such as [librispeech_other,common_voice]; empty for those of the mean.
        path: The repository of most of them, a local copy, or a folder of copies that are called as
            their repositories; null for the published ones.
        revision: Of that repository: branch, tag or commit; null for the newest.
        streaming: Whether to fetch only what is needed and keep none of it.
    """

    sets: tuple[str, ...] = ()
    path: str | None = None
    revision: str | None = None
    streaming: bool = False

    protocol: ClassVar[str]
    repository: ClassVar[str]
    members: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [name for name in sources if issubclass(sources[name], LeaderboardSet)]
        for name in self.sets:
            if name not in known:
                raise UserError(f"sets={name}: {nearest(name, known)}")

    def data_sets(self, protocol: str, limit: int | None = None) -> tuple[Corpus, ...]:
        """One for each set, from the repositories of the protocol that the group is called by."""
        del protocol
        opened: list[Corpus] = []
        for name in self.sets or self.members:
            kind = sources[name]
            assert issubclass(kind, LeaderboardSet)
            repository = kind.repositories[self.protocol == NEW_PROTOCOL]
            main = repository == self.repository
            one = kind(self._copy_of(repository), self.revision if main else None, self.streaming)
            opened += one.data_sets(self.protocol, limit)
        return tuple(opened)

    def _copy_of(self, repository: str) -> str | None:
        """Where the user has a repository; None for the published one."""
        if self.path is None:
            return None
        inner = Path(self.path).expanduser() / Path(repository).name
        if inner.is_dir():
            return str(inner)
        return self.path if repository == self.repository else None

    def clips(self, limit: int | None = None) -> Corpus:
        del limit
        raise UserError(f"data={self.protocol} is several data sets; choose one of them here")

    def calibration_clips(self) -> Corpus:
        raise UserError(
            f"calibration={self.protocol} is several data sets of clips to transcribe; choose "
            "clips of other speech"
        )


@sources.register("open_asr_2024")
@dataclass(frozen=True)
class OpenAsr2024(LeaderboardGroup):
    """The eight test sets of the open ASR leaderboard from July 2024 to March 2026."""

    protocol = "open_asr_2024"
    repository = OPEN_ASR_2024
    members = (
        "ami", "earnings22", "gigaspeech", "librispeech_clean", "librispeech_other", "spgispeech",
        "tedlium", "voxpopuli",
    )  # fmt: skip


@sources.register("open_asr_2026")
@dataclass(frozen=True)
class OpenAsr2026(LeaderboardGroup):
    """The seven test sets of the open ASR leaderboard since July 2026."""

    protocol = NEW_PROTOCOL
    repository = OPEN_ASR_2026
    members = (
        "ami_cleaned", "earnings22_cleaned_aa_chunked", "gigaspeech_cleaned", "librispeech_clean",
        "librispeech_other", "spgispeech", "voxpopuli_cleaned_aa",
    )  # fmt: skip

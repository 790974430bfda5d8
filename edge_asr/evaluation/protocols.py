"""How hypotheses are scored, by name: what `protocol=` chooses.

A word error rate means nothing without its text normalizer and the references it leaves out, so
both travel together as a protocol.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from whisper_normalizer.english import EnglishTextNormalizer

from edge_asr.registry import Registry
from edge_asr.settings import Checked


class Protocol(Checked, ABC):
    """How text is normalized and which references are left out.

    Attributes:
        ignored_references: Normalized references that mark a clip as not to be scored; an empty
            one always is.
    """

    ignored_references: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """What it is registered as; printed beside every rate and part of file names."""
        return protocols.name_of(self)

    @abstractmethod
    def normalize(self, text: str) -> str:
        """The text as it is compared, of reference and hypothesis alike."""

    def words(self, text: str) -> list[str]:
        """The normalized words of `text`."""
        return self.normalize(text).split()


protocols: Registry[Protocol] = Registry("protocol", "protocol")


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. Raises UserError where there is none."""
    return protocols.build({"name": name})


@cache
def _english_normalizer() -> Callable[[str], str]:
    # Building one reads a spelling dictionary, far slower than using it.
    normalizer: Callable[[str], str] = EnglishTextNormalizer()
    return normalizer


def normalize_english(text: str) -> str:
    """Whisper's English text normalization (Radford et al. 2022, appendix C)."""
    return _english_normalizer()(text)


@protocols.register("open_asr_2024")
@dataclass(frozen=True)
class OpenAsr2024(Protocol):
    """Open ASR leaderboard, July 2024 to March 2026: Whisper's English normalizer, jiwer."""

    # What some corpora put in place of a transcript, as normalized.
    ignored_references: ClassVar[frozenset[str]] = frozenset({"ignore time segment in scoring"})

    def normalize(self, text: str) -> str:
        return normalize_english(text)

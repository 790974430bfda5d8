"""The section of a record on what the file of a runtime writes beside what was simulated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DifferingText:
    """An utterance that the file and the simulation write differently.

    Attributes:
        dataset, id: Which.
        file, simulated: What either writes.
        near_ties: Steps of either at which a second token was almost as likely.
    """

    dataset: str
    id: str
    file: str
    simulated: str
    near_ties: int


@dataclass(frozen=True)
class FileTexts:
    """Both on the same clips: how many texts were compared, and those that differ."""

    compared: int
    differing: tuple[DifferingText, ...] = ()

    @property
    def in_words(self) -> str:
        """`10 of 100 texts of the file differ from the simulation's, 0 of them with near ties`."""
        ties = sum(one.near_ties > 0 for one in self.differing)
        told = f", {ties} of them with near ties" if self.differing else ""
        return (
            f"{len(self.differing)} of {self.compared} texts of the file differ from the "
            f"simulation's{told}"
        )

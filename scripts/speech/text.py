"""Unpredictable sentences: a recogniser must hear every word, it cannot guess.

Three kinds in equal shares. Semantically unpredictable sentences follow Benoit, Grice and
Hazan, "The SUS test" (Speech Communication 18, 1996): correct syntax, random content words.
Strings are letters and digits. Commands are voice-assistant phrases whose slots are open.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

KINDS = ("sentence", "string", "command")
WORDS_FILE = Path(__file__).with_name("words.txt")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
MODALS = ("will", "can", "must", "should")
CONJUNCTIONS = ("and", "but", "because", "while", "until", "although")


def read_words(path: Path = WORDS_FILE) -> dict[str, list[str]]:
    """The word lists by section, in file order. Raises ValueError on a word listed twice."""
    words: dict[str, list[str]] = {}
    seen: set[str] = set()
    section = ""
    for line in path.read_text().splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            words[section] = []
            continue
        for word in line.split():
            if word in seen:
                raise ValueError(f"{path}: {word!r} is listed twice")
            seen.add(word)
            words[section].append(word)
    return words


class TextSource:
    """Draws sentences, strings and commands from the word lists with a given generator."""

    def __init__(self, words: dict[str, list[str]] | None = None) -> None:
        self.words = words or read_words()
        self._templates: dict[str, tuple[Callable[[np.random.Generator], str], ...]] = {
            "sentence": (
                self._transitive, self._intransitive, self._imperative, self._question,
                self._relative, self._joined, self._loose,
            ),
            "string": (self._string,),
            "command": (self._command,),
        }  # fmt: skip

    def draw(self, rng: np.random.Generator) -> tuple[str, str]:
        """One (kind, text) in lower case without punctuation."""
        kind = str(rng.choice(KINDS))
        templates = self._templates[kind]
        return kind, templates[rng.integers(len(templates))](rng)

    def _pick(self, rng: np.random.Generator, section: str) -> str:
        return str(rng.choice(self.words[section]))

    def _noun_phrase(self, rng: np.random.Generator) -> str:
        noun = self._pick(rng, "nouns")
        if rng.random() < 0.5:
            noun = f"{self._pick(rng, 'adjectives')} {noun}"
        return f"the {noun}" if rng.random() < 0.6 else noun

    def _transitive(self, rng: np.random.Generator) -> str:
        return f"{self._noun_phrase(rng)} {self._pick(rng, 'verbs_past')} {self._noun_phrase(rng)}"

    def _intransitive(self, rng: np.random.Generator) -> str:
        return (
            f"{self._noun_phrase(rng)} {self._pick(rng, 'verbs_past')} "
            f"{self._pick(rng, 'adverbs')} {self._pick(rng, 'prepositions')} "
            f"{self._noun_phrase(rng)}"
        )

    def _imperative(self, rng: np.random.Generator) -> str:
        return (
            f"{self._pick(rng, 'verbs_base')} {self._noun_phrase(rng)} and {self._noun_phrase(rng)}"
        )

    def _question(self, rng: np.random.Generator) -> str:
        opener = rng.choice(["when", "how", "why", "where"])
        return (
            f"{opener} {rng.choice(MODALS)} {self._noun_phrase(rng)} "
            f"{self._pick(rng, 'verbs_base')} {self._noun_phrase(rng)}"
        )

    def _relative(self, rng: np.random.Generator) -> str:
        return (
            f"{self._noun_phrase(rng)} that {self._pick(rng, 'verbs_past')} "
            f"{self._noun_phrase(rng)} {self._pick(rng, 'verbs_past')}"
        )

    def _joined(self, rng: np.random.Generator) -> str:
        return (
            f"{self._pick(rng, 'names')} {self._pick(rng, 'verbs_past')} "
            f"{self._pick(rng, 'nouns')} {rng.choice(CONJUNCTIONS)} "
            f"{self._pick(rng, 'nouns')} {self._pick(rng, 'verbs_past')}"
        )

    def _loose(self, rng: np.random.Generator) -> str:
        sections = rng.choice(
            ["nouns", "adjectives", "verbs_past", "verbs_base", "adverbs", "names"],
            size=rng.integers(3, 7),
        )
        return " ".join(self._pick(rng, str(section)) for section in sections)

    def _string(self, rng: np.random.Generator) -> str:
        length = rng.integers(4, 8)
        share_of_letters = rng.choice([0.0, 0.5, 0.5, 0.7, 1.0])
        return " ".join(
            str(rng.choice(LETTERS if rng.random() < share_of_letters else DIGITS))
            for _ in range(length)
        )

    def _amount(self, rng: np.random.Generator) -> str:
        tens, ones = str(rng.choice(TENS)), str(rng.choice(DIGITS[1:]))
        return tens if rng.random() < 0.3 else f"{tens} {ones}"

    def _command(self, rng: np.random.Generator) -> str:
        noun, adjective, verb, name, other = (
            self._pick(rng, section)
            for section in ("nouns", "adjectives", "verbs_base", "names", "nouns")
        )
        forms = (
            f"set the {noun} {other} at {self._amount(rng)} percent",
            f"call {name} about {noun} and {other}",
            f"play {adjective} {noun} by {name}",
            f"turn on the {adjective} {noun} in the {other}",
            f"turn off every {noun} {self._pick(rng, 'prepositions')} the {other}",
            f"send {name} the {adjective} {noun} {other}",
            f"add {noun} {other} and {adjective} {self._pick(rng, 'nouns')} on my list",
            f"{verb} the {noun} at {self._amount(rng)} degrees",
            f"{verb} channel {self._amount(rng)} {self._pick(rng, 'adverbs')}",
            f"wake {name} when the {noun} is {adjective}",
            f"find {adjective} {noun} near {other} street",
            f"{verb} {noun} {other} with code {self._string_of_digits(rng)}",
        )
        return str(rng.choice(forms))

    @staticmethod
    def _string_of_digits(rng: np.random.Generator) -> str:
        return " ".join(rng.choice(DIGITS, size=rng.integers(2, 4)))

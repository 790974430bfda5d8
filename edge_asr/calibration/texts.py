"""Transcripts as text that a model could write: without the marks of those who made them."""

from __future__ import annotations

import re

# GigaSpeech spells punctuation out (its README, "Text Pre-Processing").
PUNCTUATION = {
    "<COMMA>": ",",
    "<PERIOD>": ".",
    "<QUESTIONMARK>": "?",
    "<EXCLAMATIONPOINT>": "!",
}
SPELLED_OUT = re.compile(r"\s*(" + "|".join(PUNCTUATION) + ")")
# <unk>, <laugh>, <|en|>, [noise], {BREATH} and (hesitation), which is what Whisper's normalizer
# takes for a mark as well, and IBM's %hesitation. A mark is short: a bracket may be a mistake.
MARK = re.compile(
    r"<[^<>\s][^<>]{0,40}>|\[[^\[\]]{0,40}\]|\{[^{}]{0,40}\}|\([^()]{0,40}\)|(?<!\S)%[a-z]+\b",
    re.IGNORECASE,
)
# What TED-LIUM has in the place of a text that nobody wrote.
NO_TEXT = "ignore_time_segment_in_scoring"
# Beyond any speech: auctioneers reach 40.
CHARACTERS_PER_SECOND, CHARACTERS_MORE = 50, 50


def clean_text(text: str) -> str:
    """A transcript without tags and markers; empty where it was nothing else."""
    if NO_TEXT in text:
        return ""
    text = SPELLED_OUT.sub(lambda found: PUNCTUATION[found[1]], text)
    marks = 1
    while marks:  # a mark inside of another leaves one
        text, marks = MARK.subn(" ", text)
    text = re.sub(r"\s+([,.?!])(?!\S)", r"\1", " ".join(text.split()))
    return text if any(character.isalnum() for character in text) else ""


def is_too_long(text: str, seconds: float) -> bool:
    """Whether nobody can have said `text` in that time."""
    return len(text) > CHARACTERS_MORE + CHARACTERS_PER_SECOND * seconds

"""The most frequent English words: a reference word beyond them is a rare one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from edge_asr.evaluation.normalizers.english import english_2024
from edge_asr.evaluation.normalizers.tables import read_asset

# The list counts contractions in parts, and has neither single letters nor abbreviations. None of
# these is a rare word.
_NOT_LISTED = """
    a b c d e f g h i j k l m n o p q r s t u v w x y z mr mrs dr st ok cannot gonna wanna gotta
    i'm i've i'd i'll you're you've you'd you'll we're we've we'd we'll they're they've they'd
    they'll he's he'd he'll she's she'd she'll it's it'd it'll that's that'll this'll
    what's who's where's when's why's how's there's here's let's
    don't doesn't didn't isn't aren't wasn't weren't haven't hasn't hadn't
    can't couldn't won't wouldn't shouldn't mustn't ain't
"""


@cache
def frequent_words(count: int, normalize: Callable[[str], str] = english_2024) -> frozenset[str]:
    """The `count` most frequent English words, written as `normalize` writes them.

    From books of 2010 to 2019 (Google Books Ngram, see assets/text/README.md), without names of
    persons, cities and companies. Single letters, titles and contractions are always among them;
    numbers in digits are not, but for those the list has as words ("two"): no name or term is one,
    so whoever asks for rare words leaves them out.

    Args:
        count: How many of the 9,999 listed words.
        normalize: The normalizer of the texts whose words are to be looked up.

    Raises:
        ValueError: `count` is below 1 or beyond the list.
    """
    words = read_asset("frequent_words.txt").split()
    if not 1 <= count <= len(words):
        raise ValueError(f"count {count} is not between 1 and {len(words)}")
    texts = [*words[:count], *_NOT_LISTED.split()]
    return frozenset(word for text in texts for word in normalize(text).split())

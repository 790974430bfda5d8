"""Word tables that lie beside the package, pinned by date; assets/text/README.md has sources."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources


def read_asset(name: str) -> str:
    """The text of a file in assets/text."""
    return (resources.files("edge_asr") / "assets" / "text" / name).read_text(encoding="utf-8")


def word_table(name: str) -> dict[str, str]:
    """What each word or phrase of a table is written as."""
    table: dict[str, str] = json.loads(read_asset(f"{name}.json"))
    return table


@cache
def spelling_table(date: str) -> dict[str, str]:
    """British to American spellings as the leaderboard's repository had them on a day.

    Args:
        date: Year, month and day, as `2025-09-11`, the day of the first change.
    """
    table = word_table("spelling")
    changes: dict[str, dict[str, str | None]] = json.loads(read_asset("spelling_changes.json"))
    for day in sorted(changes):
        if day <= date:
            for word, spelling in changes[day].items():
                if spelling is None:
                    del table[word]
                else:
                    table[word] = spelling
    return table

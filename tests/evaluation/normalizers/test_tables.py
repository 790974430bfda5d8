"""The word tables of the package: what they hold at which date, and that they are well formed."""

from __future__ import annotations

import pytest

from edge_asr.evaluation.normalizers import english_2024, english_2026
from edge_asr.evaluation.normalizers.english import SPELLING_DATE as SPELLING_DATE_2024
from edge_asr.evaluation.normalizers.english_2026 import SPELLING_DATE as SPELLING_DATE_2026
from edge_asr.evaluation.normalizers.tables import spelling_table, word_table

# The nine spellings that the leaderboard's commit 6a3e6d4 changed, before and after.
BEFORE = {
    "archaeology": "archeology</span>",
    "archeological": "archaeological",
    "cancelation": "cancellation",
    "cancelations": "cancellations",
    "pummelled": "pummel",
    "pummelling": "pummeled",
    "snowploughs": "snowplow",
    "travelog": "travelogue",
    "travelogs": "travelogues",
}
AFTER = {
    "archaeology": "archeology",
    "archaeological": "archeological",
    "cancellation": "cancelation",
    "cancellations": "cancelations",
    "pummelled": "pummeled",
    "pummelling": "pummeling",
    "snowploughs": "snowplows",
    "travelogue": "travelog",
    "travelogues": "travelogs",
}


@pytest.mark.parametrize(
    ("date", "pairs"),
    [
        ("2023-07-12", 1740),
        (SPELLING_DATE_2024, 1740),
        ("2025-09-10", 1740),
        ("2025-09-11", 1740),
        ("2026-04-28", 1741),
        (SPELLING_DATE_2026, 1743),
    ],
)
def test_number_of_spellings_at_a_date(date: str, pairs: int) -> None:
    assert len(spelling_table(date)) == pairs


def test_the_nine_spellings_that_changed_within_the_era() -> None:
    before, after = spelling_table("2025-09-10"), spelling_table("2025-09-11")
    assert dict(before.items() - after.items()) == BEFORE
    assert dict(after.items() - before.items()) == AFTER


def test_each_normalizer_uses_the_table_of_its_date() -> None:
    for word, spelling in BEFORE.items():
        assert english_2024(word) == spelling
    for word, spelling in (AFTER | {"flyer": "flier", "ok": "okay", "etcetera": "etc"}).items():
        assert english_2026(word) == spelling


@pytest.mark.parametrize(("name", "entries"), [("names", 152), ("compounds", 16)])
def test_number_of_entries(name: str, entries: int) -> None:
    assert len(word_table(name)) == entries


def test_no_spelling_or_name_leads_to_another() -> None:
    for table in (spelling_table("2024-07-03"), spelling_table("2026-07-08"), word_table("names")):
        assert not table.keys() & set(table.values())

"""`english_2026`: pairs of the leaderboard's own code, by hand and drawn at random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_asr.evaluation.normalizers import english_2024, english_2026

# What the leaderboard's code makes of these (normalizer/normalizer.py at commit d1e99b2).
LEADERBOARD = [
    ("ah, aha, ahh, ahm", ""),
    ("Eh? Em, hm, huh!", ""),
    ("hum, mhum, uhm, umm, uhuh", ""),
    ("ehehe, hmm, mm, mhm, mmm, uh, um", ""),
    ("oh", "0"),
    ("it's late", "it is late"),
    ("he's late", "he is late"),
    ("she's late", "she is late"),
    ("what's new", "what is new"),
    ("that's it", "that is it"),
    ("who's there", "who is there"),
    ("here's one", "here is one"),
    ("there's two", "there is 2"),
    ("how's that", "how is that"),
    ("when's lunch", "when is lunch"),
    ("where's he", "where is he"),
    ("why's that", "why is that"),
    ("this's it", "this is it"),
    ("John's book", "john s book"),
    ("the dog's dinner", "the dog s dinner"),
    ("everybody's here", "everybody s here"),
    ("it 's late", "it is late"),
    ("let's go", "let us go"),
    ("John's been there", "john has been there"),
    ("he's got it", "he has got it"),
    ("the cat's gone", "the cat has gone"),
    ("ok", "okay"),
    ("OK, okay", "okay okay"),
    ("Kay", "okay"),
    ("etcetera", "etc"),
    ("et cetera", "etc"),
    ("et-cetera", "etc"),
    ("flyer", "flier"),
    ("flier", "flier"),
    ("archaeology", "archeology"),
    ("archeological", "archeological"),
    ("cancellation", "cancelation"),
    ("cancelations", "cancelations"),
    ("travelogue", "travelog"),
    ("pummelled", "pummeled"),
    ("snowploughs", "snowplows"),
    ("Wi-Fi", "wifi"),
    ("hi-fi", "hifi"),
    ("lo-fi", "lofi"),
    ("sci-fi", "scifi"),
    ("e-mail", "email"),
    ("e book", "ebook"),
    ("e-commerce", "ecommerce"),
    ("X-ray", "xray"),
    ("T-shirt", "tshirt"),
    ("10 a.m.", "10 am"),
    ("5 p.m.", "5 pm"),
    ("O.K.", "okay"),
    ("all right", "alright"),
    ("al right", "alright"),
    ("how ever", "however"),
    ("a l right", "a l right"),
    ("B.B.C.", "bbc"),
    ("b b c news", "bbc news"),
    ("5 G", "5g"),
    ("five g", "5g"),
    ("a b", "a b"),
    ("a b c", "abc"),
    ("i b", "i b"),
    ("I B M", "ibm"),
    ("plan b", "plan b"),
    ("a 5", "a 5"),
    ("U.S.A.", "usa"),
    ("U.S.", "us"),
    ("the U.S. a week", "the usa week"),
    ("a big cat", "a big cat"),
    ("4 5 6", "456"),
    ("one b", "one b"),
    ("Alan and Allen", "allen and allen"),
    ("Stephen", "steven"),
    ("Catherine, Katherine and Kathryn", "catherine catherine and catherine"),
    ("Kris", "chris"),
    ("Muhammad", "mohammed"),
    ("MacDonald", "mcdonald"),
    ("Jon", "john"),
    ("Sara's", "sarah s"),
    ("Ann's", "anne s"),
    ("Geoffrey Lewis", "jeffrey louis"),
    ("ann arbor", "anne arbor"),
    ("rock 'n' roll", "rock n roll"),
    ("John's B.B.C.", "john sbbc"),
    ("", ""),
    ("two", "2"),
    ("thirty one", "31"),
    ("twenty nineteen", "2019"),
    ("two point five million", "2500000"),
    ("$20 million", "$20000000"),
    ("two double o eight", "2008"),
    ("nineteen fifties", "1950s"),
    ("thirty first", "31st"),
    ("3 point 14", "3.14"),
    ("two dollars and seventy cents", "$2.70"),
    ("$0.36", "¢36"),
    ("three and a half million", "3500000"),
    ("seventy six per cent", "76%"),
    ("Let's", "let us"),
    ("she's been like", "she has been like"),
    ("10km", "10 km"),
    ("Mr. Park visited Assoc. Prof. Kim Jr.", "mister park visited associate professor kim junior"),
    ("mobilisation", "mobilization"),
]

# A recorded run of that code over random texts of names, letters, compounds, numbers and
# contractions: one JSON pair of text and result a line.
RECORDED = Path(__file__).with_name("leaderboard_2026.jsonl")


@pytest.mark.parametrize(("text", "expected"), LEADERBOARD)
def test_pairs_of_the_leaderboard(text: str, expected: str) -> None:
    assert english_2026(text) == expected


def test_agrees_with_a_recorded_run_of_the_leaderboard() -> None:
    pairs = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == 1000
    for text, expected in pairs:
        assert english_2026(text) == expected, text


def test_what_it_changes_of_2024_and_what_not() -> None:
    same = "twenty one dollars, can't we? Yes: mister Smith won't"
    assert english_2026(same) == english_2024(same)
    for text in ("John's", "ok", "b b c", "wi-fi", "Alan", "huh", "flyer"):
        assert english_2026(text) != english_2024(text)

"""Words of a command line reach the settings as they were typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.cli.overrides import PATHS, parse, prepare, quoted, values
from edge_asr.errors import UserError

# Not what would be an interpolation, a home or nothing.
paths = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="$~\x00"), min_size=1
).filter(lambda text: text != "null" and text[0] not in "'\"")


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_quoted_text_is_the_text(text: str) -> None:
    assert parse([f"key={quoted(text)}"])[0].value() == text


@given(st.sampled_from(PATHS), paths)
def test_a_path_is_taken_as_it_is(option: str, path: str) -> None:
    (word,) = prepare([f"{option}={path}"], sweep=False)
    assert parse([word])[0].value() == path


def test_a_home_is_the_users() -> None:
    (word,) = prepare(["data.path=~/clips (1)/é=2.jsonl"], sweep=False)
    assert parse([word])[0].value() == str(Path("~/clips (1)/é=2.jsonl").expanduser())


def test_commas_separate_paths_in_a_sweep_alone() -> None:
    word = "data.path=a (1).jsonl,é.jsonl"
    assert parse(prepare([word], sweep=False))[0].value() == "a (1).jsonl,é.jsonl"
    (swept,) = parse(prepare([word], sweep=True))
    assert list(values(swept)) == ["data.path='a (1).jsonl'", "data.path='é.jsonl'"]


def test_what_hydra_can_read_it_reads() -> None:
    words = ["method='gptq'", "bits=3,2", "method=choice(rtn,gptq)", "+new=1", "~data.limit"]
    assert prepare(words, sweep=True) == words
    assert prepare(["data.where.set=a(b"], sweep=False) == ["++data.where.set='a(b'"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("gptq", "gptq: is no option; write name=value"),
        ("method.name=gptq", "choose with method=gptq"),
        ("method.rounding.name=gptq", "choose with method/rounding=gptq"),
        ("data.name=manifest", "choose with data=manifest"),
    ],
)
def test_a_word_that_says_nothing_is_refused(word: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        prepare([word], sweep=False)

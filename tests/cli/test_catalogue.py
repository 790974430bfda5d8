"""What is read from source is what the imported classes say."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edge_asr.data.sources
import edge_asr.evaluation.protocols
import edge_asr.quant.recipe  # noqa: F401
from edge_asr.cli.catalogue import Choice, choices, class_settings, registered, sentences_of
from edge_asr.config import (
    CalibrationSettings,
    DataSettings,
    ModelSettings,
    ProtocolSettings,
    SchemeSettings,
    Settings,
    StackSettings,
)

CHOICES = [one for one in choices() if one.group != "runtime"]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda one: f"{one.group}={one.name}")
def test_the_source_says_what_the_class_says(choice: Choice) -> None:
    imported = {(one.group, one.name): one for one in registered()}
    assert choice == imported[choice.group, choice.name]


def test_nothing_that_is_registered_is_missing() -> None:
    known = {(one.group, one.name) for one in CHOICES}
    assert known == {(one.group, one.name) for one in registered()}
    assert {one.group for one in CHOICES} == {
        "method/transform", "method/outliers", "method/range", "method/rounding",
        "method/correction", "data", "calibration", "protocol",
    }  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES, ids=lambda one: f"{one.group}={one.name}")
def test_every_choice_and_setting_has_a_sentence(choice: Choice) -> None:
    assert choice.sentence
    assert all(one.sentence for one in choice.settings)


@pytest.mark.parametrize(
    "kind",
    [
        Settings, ModelSettings, SchemeSettings, StackSettings, DataSettings, CalibrationSettings,
        ProtocolSettings,
    ],
)  # fmt: skip
def test_every_setting_of_a_run_has_a_sentence(kind: type) -> None:
    assert all(one.sentence for one in class_settings(kind))


def test_it_imports_nothing_heavy() -> None:
    program = (
        "import sys; from edge_asr.cli.catalogue import choices; assert choices();"
        "print([one for one in ('torch', 'transformers', 'numpy', 'jiwer') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_sentences_of_a_docstring() -> None:
    text = """A thing.

    Attributes:
        one, two: First. As the authors
            do: they know.
        three: See `Other`.
        four: Last.

    Raises:
        five: Nothing.
    """
    first = "First. As the authors do: they know."
    assert sentences_of(text) == {"one": first, "two": first, "four": "Last."}

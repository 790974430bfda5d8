"""Golden rows: a number that changes without a raised version is a mistake.

`scripts/make_golden.py` made them and says how to make them again.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from make_golden import CLOSED_FORM, GOLDEN, METHODS, MODELS, environment, golden_row

from edge_asr.config import BASE_RECIPE, CONF

CODES_EQUAL, BAND = 0.999, 0.05
# On another processor. Between an Intel and an AMD one, both with AVX-512, the output error of
# TesseraQ differs by a quarter, bits of SpQR with its outliers by 3e-5.
ELSEWHERE_BAND, ELSEWHERE_BITS = 0.4, 1e-3
AGAIN = "raise the version of the part whose numbers changed and run scripts/make_golden.py"


@cache
def golden(model: str) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((GOLDEN / f"{model}.json").read_text())
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs share what they have in common."""
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_short_run_is_what_it_was(model: str, method: str, folder: Path) -> None:
    expected, row = golden(model)[method], golden_row(model, method, folder)
    # Another processor adds up in another order: ties fall elsewhere, and learning ends elsewhere.
    same = environment() == expected["where"]
    assert row["versions"] == expected["versions"], "run scripts/make_golden.py for the new version"
    assert row["label"] == expected["label"]
    bits = pytest.approx(expected["effective_bits"], rel=0 if same else ELSEWHERE_BITS)
    assert row["effective_bits"] == bits, AGAIN
    # Error feedback carries a tie that falls otherwise to a sixth of all codes.
    if method in CLOSED_FORM and (same or expected["output_error"] is None):
        pairs = list(zip(row["codes"], expected["codes"], strict=True))
        equal = sum(one == other for one, other in pairs) / len(pairs)
        assert equal >= CODES_EQUAL, AGAIN
    band = BAND if same or method in CLOSED_FORM else ELSEWHERE_BAND
    if expected["output_error"] is None:
        assert row["output_error"] is None, "nothing was asked for that costs a pass"
    else:
        assert row["output_error"] == pytest.approx(expected["output_error"], rel=band), AGAIN
    assert len(row["losses"]) == len(expected["losses"])
    if same:
        for losses, known in zip(row["losses"], expected["losses"], strict=True):
            assert losses == pytest.approx(known, rel=BAND), AGAIN
        assert row["texts_sha256"] == expected["texts_sha256"], AGAIN


def test_every_method_has_a_golden_row() -> None:
    recipes = {path.stem for path in (CONF / "method").glob("*.yaml")} - {BASE_RECIPE, "float"}
    assert set(METHODS) == recipes, "add the method to scripts/make_golden.py and run it"
    for model in MODELS:
        assert list(golden(model)) == list(METHODS)
        learned = {method for method, row in golden(model).items() if row["losses"]}
        assert learned == set(METHODS) - set(CLOSED_FORM)

"""Recipes that make no sense."""

from __future__ import annotations

from typing import Any

import pytest
from quant.passes import stages

from edge_asr.errors import UserError
from edge_asr.quant.recipe import Recipe


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"range": {"name": "lwc"}, "rounding": {"name": "gptq", "static_groups": False,
                                                    "act_order": False}},
            "static_groups=false",
        ),
        ({"transform": {"name": "let"}, "range": {"name": "mse"}}, "must follow it"),
        (
            {"transform": {"name": "let", "iterations": 5}, "range": {"name": "lwc"}},
            "same iterations",
        ),
        ({"outliers": {"name": "columns"}, "transform": {"name": "let"}}, "trained without them"),
        ({"correction": {"name": "bias"}, "rounding": {"name": "signround"}}, "undo it"),
        ({"transform": {"name": "cle"}, "range": {"name": "lwc"}}, "no float outputs"),
        (
            {"range": {"name": "mse_double_quant"}, "rounding": {"name": "tesseraq"}},
            "trains the scales",
        ),
        (
            {"rounding": {"name": "gptq", "compensation": "qep"}, "correction": {"name": "bias"}},
            "compensation=qep: .* undo",
        ),
        (
            {"rounding": {"name": "nearest", "compensation": "qep"}, "transform": {"name": "cle"}},
            "float inputs cannot be compared",
        ),
        (
            {"rounding": {"name": "nearest", "compensation": "gptaq"},
             "outliers": {"name": "columns"}},
            "could not make up",
        ),
        (
            {"rounding": {"name": "gptq", "compensation": "qronos"},
             "outliers": {"name": "unstructured"}},
            "use method/rounding=gptq with compensation=qep",
        ),
        ({"rounding": {"name": "tesseraq", "iterations": 5}}, "iterations=5"),
        ({"rounding": {"name": "tesseraq", "trained_shares": []}}, r"trained_shares=\[\]"),
        ({"rounding": {"name": "tesseraq", "trained_shares": [0.5, -0.1]}}, "trained_shares"),
        ({"rounding": {"name": "tesseraq", "trained_shares": [0.1, 0.5]}}, "trained_shares"),
    ],
)  # fmt: skip
def test_senseless_recipes_are_refused_when_built(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Recipe.build(stages(**changes))

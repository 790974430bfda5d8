"""Parts by name, with hints for the misspelt."""

from __future__ import annotations

import pytest

import edge_asr.quant.rounding  # noqa: F401
from edge_asr.errors import UserError
from edge_asr.quant.rounding.gptq import Gptq
from edge_asr.quant.stages import roundings


def test_settings_reach_the_part() -> None:
    part = roundings.build({"name": "gptq", "damping": 0.05})
    assert part == Gptq(damping=0.05)


def test_an_unknown_part_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean gptq"):
        roundings.build({"name": "gtpq"})


def test_an_unknown_setting_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean damping"):
        roundings.build({"name": "gptq", "dampning": 0.1})


def test_a_name_cannot_be_taken_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        roundings.register("gptq")(Gptq)


@pytest.mark.parametrize(
    ("setting", "value"), [("damping", "abc"), ("block_size", 1.5), ("act_order", "maybe")]
)
def test_a_setting_of_the_wrong_type_is_named(setting: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"method\.rounding\.{setting}="):
        roundings.build({"name": "gptq", setting: value})


def test_a_whole_number_does_for_a_fraction() -> None:
    assert roundings.build({"name": "gptq", "damping": 1}) == Gptq(damping=1.0)

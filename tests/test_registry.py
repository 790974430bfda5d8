"""Things by name, with hints for the misspelt."""

from __future__ import annotations

import pytest

import edge_asr.quant.rounding  # noqa: F401
from edge_asr import registry
from edge_asr.errors import UserError
from edge_asr.quant.range.minmax import MinMax
from edge_asr.quant.rounding.gptq import Gptq
from edge_asr.quant.stages import STAGES, ranges, roundings
from edge_asr.registry import REGISTRIES, Registry


def test_settings_reach_the_part() -> None:
    part = roundings.build({"name": "gptq", "damping": 0.05})
    assert part == Gptq(damping=0.05)


def test_an_unknown_part_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean gptq"):
        roundings.build({"name": "gtpq"})


def test_an_unknown_setting_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean damping"):
        roundings.build({"name": "gptq", "dampning": 0.1})


@pytest.mark.parametrize("name", ["../x", "", "a b", "=x"])
def test_a_name_can_be_typed_and_is_safe_in_file_names(name: str) -> None:
    with pytest.raises(ValueError, match="a name has letters"):
        roundings.register(name)


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


def test_a_part_is_found_again_by_its_class_alone() -> None:
    assert roundings["gptq"] is Gptq
    assert roundings.name_of(Gptq(damping=0.05)) == "gptq"
    with pytest.raises(KeyError, match="str is no registered rounding"):
        roundings.name_of("gptq")
    with pytest.raises(UserError, match=r"method/rounding=gtpq: did you mean gptq"):
        roundings["gtpq"]


def test_the_identity_is_name_version_and_all_settings() -> None:
    found = roundings.identity(Gptq(damping=0.05))
    assert found["name"] == "gptq"
    assert found["version"] == Gptq.version
    assert found["damping"] == 0.05
    assert found == roundings.identity(roundings.build({"name": "gptq", "damping": 0.05}))
    assert ranges.identity(MinMax()) == {"name": "minmax", "version": 1}


def test_a_kind_has_one_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert STAGES.items() <= REGISTRIES.items()
    monkeypatch.setattr(registry, "REGISTRIES", dict(REGISTRIES))
    with pytest.raises(ValueError, match="'rounding' is registered twice"):
        Registry("rounding")
    fresh: Registry[object] = Registry("fresh")
    assert list(fresh) == []
    with pytest.raises(UserError, match="fresh=gptq"):
        fresh["gptq"]

"""Schemes: later rules win, a rule that matches nothing is an error, labels tell schemes apart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import UserError
from edge_asr.models.tensors import ROLES, Slot
from edge_asr.quant.formats import TensorFormat
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.scheme import DEFAULT, Scheme, scheme_label

SLOTS = [
    Slot(f"model.{stack}.layers.{layer}.{role}", stack, role, "linear")
    for stack, roles in ROLES.items()
    for layer in range(2)
    for role in roles
]
OTHERS = [
    Slot("model.encoder.conv1", "encoder", "conv", "convolution"),
    Slot("model.decoder.embed_tokens", "decoder", "embedding", "embedding"),
    Slot("proj_out", "decoder", "head", "head"),
    Slot("model.decoder.layers.0.self", "decoder", None, "kv_cache"),
]
NOTHING = dict.fromkeys(("bits", "group_size", "symmetric", "act_bits"), DEFAULT)


def scheme(
    *rules: Mapping[str, Any],
    recipe: list[Mapping[str, Any]] | None = None,
    **shorthands: Mapping[str, Any],
) -> Scheme:
    both = {"": shorthands.pop("both", {}), **shorthands}
    return Scheme.build(
        recipe or [], rules, {stack: {**NOTHING, **one} for stack, one in both.items()}
    )


def formats(made: Scheme) -> dict[str, TensorFormat]:
    return made.resolve([*SLOTS, *OTHERS])


def labels(made: Scheme) -> dict[str, str]:
    return {name: one.label for name, one in formats(made).items()}


def test_without_any_rule_weights_have_four_bits_a_channel() -> None:
    assert set(labels(scheme()).values()) == {"W4"}


def test_later_rules_win_and_leave_alone_what_they_do_not_name() -> None:
    made = labels(
        scheme(
            {"bits": 8, "act_bits": 8},
            {"role": "fc2", "bits": 4},
            recipe=[{"group_size": 16}],
            both={"bits": 3},
            decoder={"group_size": None},
        )
    )
    assert made["model.encoder.layers.0.fc2"] == "W3 g16 A8"
    assert made["model.decoder.layers.1.qkv"] == "W3 A8"


def test_the_order_is_recipe_then_named_then_shorthands() -> None:
    made = scheme({"bits": 5}, recipe=[{"bits": 6}], both={"bits": 7}, encoder={"bits": 2})
    assert [rule.assign["bits"] for rule in made.rules] == [6, 5, 7, 2]


def test_layers_can_stay_float_by_stack_role_or_name() -> None:
    made = labels(
        scheme(
            {"stack": "decoder", "bits": "float"},
            {"name": "*.encoder.layers.1.*", "bits": "float"},
            {"role": "fc1", "stack": "decoder", "bits": 8},
        )
    )
    assert made["model.decoder.layers.0.qkv"] == "float"
    assert made["model.decoder.layers.0.fc1"] == "W8"
    assert made["model.encoder.layers.1.out"] == "float"
    assert made["model.encoder.layers.0.out"] == "W4"


def test_a_shorthand_that_is_null_is_given() -> None:
    made = labels(scheme({"act_bits": 8, "group_size": 32}, both={"act_bits": None}))
    assert set(made.values()) == {"W4 g32"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"role": "cross_q", "stack": "encoder", "bits": 8}, "roles of the encoder are qkv"),
        ({"name": "nothing*", "bits": 8}, "matches no tensor"),
        ({"role": "fc3", "bits": 8}, "did you mean fc2"),
        ({"stack": "enc", "bits": 8}, "did you mean encoder"),
        ({"bitz": 8}, "did you mean bits"),
        ({"role": "fc1"}, "sets nothing"),
        ({"bits": 9}, "bits=9: allowed are 2 to 8"),
        ({"bits": "four"}, "bits='four': allowed are float"),
        ({"bits": 4.5}, "bits=4.5"),
        ({"bits": True}, "bits=True"),
        ({"symmetric": "ggml"}, "unsigned, signed, signed_scale"),
        ({"group_size": 0}, "group_size=0"),
        ({"act_symmetric": True}, "nothing quantizes activations"),
        ({"act_bits": 8, "act_granularity": "tensor"}, "give extreme or mean"),
        ({"act_bits": 8, "act_clip_ratio": 2.0}, "act_clip_ratio=2.0"),
        ({"kind": "embedding", "bits": 8, "act_bits": 8}, "give it to kind: head"),
        ({"kind": "convolution", "group_size": 8}, "nothing gives kind: convolution bits"),
        ({"kind": "kv_cache", "act_bits": 8}, "kv_cache stays floating point so far"),
        ({"kind": "bias", "bits": 8}, "known are attention"),
    ],
)
def test_a_bad_rule_is_one_clear_sentence(rule: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        formats(scheme(rule))
    assert "\n" not in str(caught.value)


def test_a_rule_is_judged_before_later_ones_shadow_it() -> None:
    with pytest.raises(UserError, match=r"scheme\.rules\[0\]: matches no tensor"):
        formats(scheme({"name": "no_such_layer", "bits": 8}, {"bits": 4}))
    assert set(labels(scheme({"role": "fc1", "bits": 8}, {"bits": 3})).values()) == {"W3"}


def test_a_bad_shorthand_is_named_as_it_was_typed() -> None:
    with pytest.raises(UserError, match=r"^encoder\.bits='x'"):
        scheme(encoder={"bits": "x"})
    with pytest.raises(UserError, match=r"^group_size='none'"):
        scheme(both={"group_size": "none"})


def test_kinds_that_stay_float_may_be_said_to() -> None:
    made = scheme({"kind": "embedding", "bits": "float"})
    assert set(labels(made).values()) == {"W4"}


def test_a_head_is_stored_as_the_embedding_unless_a_rule_says_otherwise() -> None:
    made = labels(scheme({"kind": "embedding", "bits": 8}, {"kind": "head", "act_bits": 8}))
    assert made["model.decoder.embed_tokens"] == "W8"
    assert made["proj_out"] == "W8 A8"
    made = labels(scheme({"kind": "embedding", "bits": 8}, {"kind": "head", "bits": "float"}))
    assert made["model.decoder.embed_tokens"] == "W8"
    assert "proj_out" not in made
    assert "model.encoder.conv1" not in made


def test_what_is_outside_of_blocks_is_told_in_the_label() -> None:
    made = scheme({"kind": "embedding", "bits": 8}, {"kind": "convolution", "bits": 6})
    label = scheme_label([*SLOTS, *OTHERS], formats(made))
    assert label == "W4, conv W6, embedding W8"
    made = scheme({"kind": "embedding", "bits": 4}, {"kind": "head", "act_bits": 8})
    label = scheme_label([*SLOTS, *OTHERS], formats(made))
    assert label == "W4, embedding W4, head W4 A8"


def test_a_part_that_cannot_serve_a_scheme_is_refused_before_there_is_a_model() -> None:
    hqq = Recipe.build({"range": {"name": "hqq"}, "rounding": {"name": "nearest"}})
    hqq.check(scheme(both={"bits": 3}))
    for refused in (
        scheme({"role": "fc1", "symmetric": True}),
        scheme({"name": "*layers.0*", "symmetric": "signed_scale"}),
        scheme(decoder={"symmetric": True}),
    ):
        with pytest.raises(UserError, match="symmetric=true with method/range=hqq"):
            hqq.check(refused)


def test_labels_of_simple_and_mixed_schemes() -> None:
    def label(made: Scheme) -> str:
        return scheme_label(SLOTS, formats(made))

    assert label(scheme()) == "W4"
    assert label(scheme({"bits": 4, "act_bits": 8})) == "W4 A8"
    assert label(scheme(both={"symmetric": "signed_scale", "group_size": 32})) == (
        "W4 g32 sym signed_scale"
    )
    assert label(scheme(encoder={"bits": 8})) == "W4, encoder W8"
    assert label(scheme({"role": "fc2", "bits": 8})) == "W4, fc2 W8"
    assert label(scheme({"role": "out", "stack": "encoder", "bits": 8})) == "W4, encoder.out W8"
    assert label(scheme({"name": SLOTS[0].name, "bits": 8})) == f"W4, {SLOTS[0].name} W8"


def test_equal_formats_have_one_label_however_they_were_given() -> None:
    shorthand = scheme(both={"bits": 4, "act_bits": 8})
    named = scheme({"bits": 4, "act_bits": 8})
    per_stack = scheme(encoder={"act_bits": 8}, decoder={"act_bits": 8})
    shadowed = scheme({"bits": 2}, {"bits": 4}, {"act_bits": 8})
    assert (
        len({scheme_label(SLOTS, formats(one)) for one in (shorthand, named, per_stack, shadowed)})
        == 1
    )


@given(
    st.lists(st.sampled_from([2, 3, 4, "float"]), min_size=len(SLOTS), max_size=len(SLOTS)),
    st.lists(st.sampled_from([2, 3, 4, "float"]), min_size=len(SLOTS), max_size=len(SLOTS)),
)
@settings(max_examples=150, deadline=None)
def test_different_formats_never_share_a_label(one: list[Any], other: list[Any]) -> None:
    made = [
        formats(
            scheme(
                *(
                    {"name": slot.name, "bits": bits}
                    for slot, bits in zip(SLOTS, widths, strict=True)
                )
            )
        )
        for widths in (one, other)
    ]
    first, second = (scheme_label(SLOTS, one) for one in made)
    assert (made[0] == made[1]) == (first == second)


def test_every_pair_of_single_layer_schemes_has_labels_of_its_own() -> None:
    made = {}
    for slots in itertools.combinations(SLOTS, 2):
        rules = [{"name": slot.name, "bits": 8} for slot in slots]
        made[scheme_label(SLOTS, formats(scheme(*rules)))] = slots
    assert len(made) == len(list(itertools.combinations(SLOTS, 2)))

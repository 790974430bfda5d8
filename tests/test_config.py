"""Settings: validated when built, with errors that name field, value and remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from options import composed

from edge_asr.config import CONF, check_choices
from edge_asr.errors import UserError
from edge_asr.experiments.identity import float_settings, folder_name, run_identity
from edge_asr.quant.formats import ActivationGrid
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.stages import corrections, outliers, ranges, roundings, transforms

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml") if path.stem != "float")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_buildable_recipe(method: str) -> None:
    settings = composed(f"method={method}", "bits=3", "group_size=64")
    Recipe.build(settings.method.stages)
    assert settings.grid.group_size == 64
    assert settings.grid.granularity == "group"


def test_every_stage_can_be_replaced_from_the_command_line() -> None:
    assert composed("method=rtn", "method/rounding=gptq").method.rounding["name"] == "gptq"


@pytest.mark.parametrize("path", sorted((CONF / "model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_file_makes_valid_settings(path: Path) -> None:
    extra = ["model.path=somewhere"] if path.stem == "custom" else []
    assert composed(f"model={path.stem}", *extra).model.path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bits=17", r"bits=17: allowed are 2 to 8"),
        ("bits=1", r"bits=1: allowed"),
        ("bits=three", r"bits='three'"),
        ("group_size=0", r"group_size=0: must be at least 1"),
        ("batch_size=0", r"batch_size=0: must be at least 1"),
        ("float_bits=8", r"float_bits=8: allowed are 16 and 32"),
        ("data.limit=0", r"data\.limit=0"),
        ("data.condition=loud", r"data\.condition='loud'"),
        ("data.path=x.jsonl", r"add data=manifest"),
        ("calibration.clips=0", r"calibration\.clips=0"),
        ("protocol.name=mine", r"mine"),
        ("protocol.resamples=1", r"protocol\.resamples=1"),
        ("model.tokens_per_second=-1", r"tokens_per_second=-1"),
        ("method/rounding=none", r"method=float"),
        ("method=float method/transform=awq", r"nothing is quantized"),
        ("act_bits=9", r"act_bits=9: allowed are 2 to 8"),
        ("act_bits=eight", r"act_bits='eight'"),
        ("activation.bits=1", r"activation\.bits=1: allowed are 2 to 8"),
        ("activation.granularity=channel", r"activation\.granularity='channel'"),
        ("activation.symmetric=true", r"activation\.symmetric=True.*add act_bits=8"),
        ("activation.clip_ratio=0.9", r"activation\.clip_ratio=0\.9.*add act_bits=8"),
    ],
)
def test_a_bad_value_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        composed(*override.split())


TOKEN8 = ActivationGrid(8)
STATIC8 = ActivationGrid(8, False, "tensor", "extreme")


@pytest.mark.parametrize(
    ("overrides", "grid"),
    [
        ([], None),
        (["activation=none"], None),
        (["act_bits=8"], TOKEN8),
        (["activation=int8"], TOKEN8),
        (["activation=int8", "act_bits=8"], TOKEN8),
        (["activation.bits=8"], TOKEN8),
        (["activation=int4"], ActivationGrid(4)),
        (["act_bits=4", "activation.symmetric=true"], ActivationGrid(4, symmetric=True)),
        (["act_bits=6", "activation.clip_ratio=0.9"], ActivationGrid(6, clip_ratio=0.9)),
        (["activation=int8_static"], STATIC8),
        (
            ["act_bits=8", "activation.granularity=tensor", "activation.static_range=extreme"],
            STATIC8,
        ),
        (
            ["activation=int8_static", "activation.bits=6", "activation.static_range=mean"],
            ActivationGrid(6, False, "tensor", "mean"),
        ),
    ],
)
def test_every_way_to_quantize_activations(
    overrides: list[str], grid: ActivationGrid | None
) -> None:
    assert composed(*overrides).activation_grid == grid


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["activation=int8", "act_bits=4"], "act_bits=4 contradicts activation=int8 with 8 bits"),
        (["activation=int8_static", "act_bits=6"], "activation.bits=6 instead of act_bits"),
        (["activation=int8", "activation.granularity=tensor"], "give extreme or mean"),
        (["act_bits=8", "activation.static_range=mean"], "null with token"),
        (["act_bits=8", "activation.clip_ratio=2"], "clip_ratio=2"),
    ],
)
def test_contradictions_about_activations_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        composed(*overrides)


def test_activations_are_part_of_a_quantized_runs_identity_alone() -> None:
    ways = (["act_bits=8"], ["activation=int8"], ["activation=int8", "act_bits=8"])
    eight, *others = {run_identity(composed("bits=4", *way)) for way in ways}
    assert not others
    different = (
        [],
        ["act_bits=4"],
        ["activation=int8_static"],
        ["act_bits=8", "activation.symmetric=true"],
    )
    ids = {run_identity(composed("bits=4", *way)) for way in different} | {eight}
    assert len(ids) == 5
    plain = run_identity(composed("method=float"))
    assert run_identity(composed("method=float", "act_bits=8")) == plain
    assert run_identity(float_settings(composed("activation=int8_static"))) == plain
    # Records made before activations could be quantized keep their names.
    assert composed("bits=4").identity()["activation"] == {"name": "none"}
    assert "act_bits" not in composed("bits=4").identity()


def test_folder_names_tell_activations_apart() -> None:
    names = [
        folder_name(composed("bits=4", *way), "0").name
        for way in ([], ["act_bits=8"], ["activation=int8_static", "group_size=32"])
    ]
    assert names == ["rtn-w4-0", "rtn-w4a8-0", "rtn-w4a8-static-g32-0"]


def test_a_misspelt_choice_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="method=gtpq: did you mean gptq"):
        check_choices(["method=gtpq", "bits=3"], CONF)
    with pytest.raises(UserError, match="method/rounding=nearst: did you mean nearest"):
        check_choices(["method/rounding=gptq,nearst"], CONF)
    with pytest.raises(UserError, match="method/rounding=nearst: did you mean nearest"):
        check_choices(["+method/rounding=nearst"], CONF)
    good = [
        "method=gptq,rtn", "method=gptq, rtn", "method=choice(gptq,rtn)", "bits=3",
        "hydra/launcher=anything", "data.limit=3", "+new=1", "+data.new=1", "bits.new=1",
        "method.rounding.act_order=true", "method.rounding=null", "data.where.set=any",
    ]  # fmt: skip
    check_choices(good, CONF)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("methd=gptq", "methd=gptq: no option methd; did you mean method"),
        ("bit=3", "did you mean bits"),
        ("metod.rounding.damping=0.1", "did you mean method"),
        ("method/rouding=gptq", "did you mean method/rounding"),
        ("quux=1", "no option quux; --help lists them all"),
        ("method.range.aug_los=true", "no option aug_los; did you mean aug_loss"),
        ("method.rouding.act_order=true", "no option rouding; did you mean rounding"),
        ("method.defaults=1", "no option defaults"),
        ("data.limt=3", "no option limt; did you mean limit"),
    ],
)
def test_a_misspelt_option_names_its_neighbour(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_choices([override], CONF)


def test_the_identity_ignores_what_cannot_change_a_number() -> None:
    base = run_identity(composed("bits=3"))
    for override in ("results=elsewhere", "threads=1", "rerun=true"):
        assert run_identity(composed("bits=3", override)) == base
    first, second = (run_identity(composed(f"device=cuda:{number}")) for number in (0, 1))
    assert first == second
    for override in (
        "bits=4", "batch_size=1", "method=gptq", "symmetric=true", "data.limit=3", "device=cuda",
    ):  # fmt: skip
        other = ["bits=3", override] if not override.startswith("bits") else [override]
        assert run_identity(composed(*other)) != base


def test_all_quantized_runs_on_the_same_clips_share_one_float_run() -> None:
    baselines = {
        run_identity(float_settings(composed(*overrides)))
        for overrides in (
            ["bits=3"],
            ["bits=2", "method=gptq"],
            ["calibration.clips=7", "group_size=32"],
            ["method=float"],
        )
    }
    assert len(baselines) == 1
    assert run_identity(float_settings(composed("batch_size=4"))) not in baselines


def test_changed_weights_or_manifest_make_another_run(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    manifest = tmp_path / "clips.jsonl"
    row = '{"audio": "a.wav", "text": "one"}\n'
    manifest.write_text(row)
    options = ["model=custom", f"model.path={model}", "data=manifest", f"data.path={manifest}"]
    ids = {run_identity(composed(*options))}
    (model / "README.md").write_text("a card changes no number")
    ids.add(run_identity(composed(*options)))
    assert len(ids) == 1
    (model / "model.safetensors").write_bytes(b"two")
    ids.add(run_identity(composed(*options)))
    manifest.write_text(row + row.replace("a.wav", "b.wav"))
    ids.add(run_identity(composed(*options)))
    assert len(ids) == 3


def test_a_changed_recipe_says_so() -> None:
    assert composed("method=gptq").method.label == "gptq"
    changed = composed("method=rtn", "method/rounding=gptq", "method.rounding.damping=0.05")
    assert changed.method.label == "rtn+rounding.damping=0.05+rounding=gptq"


def test_replaced_audio_makes_another_run(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"damaged")
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text('{"audio": "clip.wav", "text": "one"}\n')
    options = ["data=manifest", f"data.path={manifest}"]
    before = run_identity(composed(*options))
    assert run_identity(composed(*options)) == before
    clip.write_bytes(b"mended, and longer")
    assert run_identity(composed(*options)) != before


def test_folder_names_stay_inside_the_results_folder() -> None:
    settings = composed("model.name=../../evil", "method=gptq", "bits=3", "group_size=64")
    name = folder_name(settings, "0123456789ab")
    assert name.parts == ("-..-evil", "gptq-w3-g64-0123456789ab")


def test_help_has_a_sentence_for_every_option() -> None:
    template = yaml.safe_load((CONF / "hydra/help/edge_asr.yaml").read_text())["template"]
    described = {line.split()[0] for line in template.splitlines() if line.startswith("  ")}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain: Any = OmegaConf.to_container(compose("config", ["method=gptq"]))
    for name, value in plain.items():
        inner = value if isinstance(value, dict) and name != "method" else {}
        for option in [name, *(f"{name}.{key}" for key in inner if key != "name")]:
            assert option in described or f"{option}.FIELD" in described, option
    for stage in ("transform", "outliers", "range", "rounding", "correction"):
        assert f"method/{stage}" in described
    for path in (CONF / "method").glob("*/*.yaml"):
        for key in yaml.safe_load(path.read_text()):
            known = key in ("name", "defaults")
            assert known or f"method.{path.parent.name}.{key}" in described, path


def test_every_part_file_holds_all_settings_with_their_defaults() -> None:
    registries = {
        "transform": transforms,
        "outliers": outliers,
        "range": ranges,
        "rounding": roundings,
        "correction": corrections,
    }
    for path in (CONF / "method").glob("*/*.yaml"):
        stage, plain = path.parent.name, yaml.safe_load(path.read_text())
        if "defaults" in plain or plain["name"] == "none":
            continue  # another file's part with a recipe's own settings, or nothing to set
        registry: Any = registries[stage]
        part = registry.build(plain)
        assert part == registry.build({"name": plain["name"]}), path
        assert {field.name for field in dataclasses.fields(part)} == set(plain) - {"name"}, path

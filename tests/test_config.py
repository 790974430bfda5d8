"""Settings: validated when built, with errors that name field, value and remedy; what they key."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from options import composed
from safetensors.torch import load_file, save_file
from tiny import tiny_whisper

from edge_asr.config import CONF, check_choices
from edge_asr.errors import UserError
from edge_asr.experiments.plan import Plan, float_plan, make_plan
from edge_asr.quant.formats import ActivationGrid
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.scheme import Scheme
from edge_asr.quant.stages import STAGES
from edge_asr.store.artefacts import Store

METHODS = sorted(
    path.stem for path in (CONF / "method").glob("*.yaml") if path.stem not in ("float", "base")
)
Planned = Callable[..., Plan]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """The plan of a run with some overrides; nothing is loaded or made."""
    store = Store(tmp_path_factory.mktemp("store"))
    return lambda *overrides: make_plan(composed(*overrides), store)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_buildable_recipe(method: str) -> None:
    settings = composed(f"method={method}", "bits=3", "group_size=64")
    recipe = Recipe.build(settings.method.stages)
    scheme = Scheme.build(settings.method.rules, settings.scheme.rules, settings.shorthands)
    recipe.check(scheme)
    for formats in scheme.role_formats().values():
        for one in formats:
            assert one.weights is not None
            assert (one.weights.bits, one.weights.group_size) == (3, 64)
            assert one.weights.granularity == "group"


def test_every_stage_can_be_replaced_from_the_command_line() -> None:
    stages = composed("method=rtn", "method/rounding=gptq").method.stages
    assert stages["rounding"]["name"] == "gptq"


@pytest.mark.parametrize("path", sorted((CONF / "model").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_file_makes_valid_settings(path: Path) -> None:
    extra = ["model.path=somewhere"] if path.stem == "custom" else []
    assert composed(f"model={path.stem}", *extra).model.path


@pytest.mark.parametrize("path", sorted((CONF / "scheme").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_scheme_file_can_be_used(planned: Planned, path: Path) -> None:
    assert planned(f"scheme={path.stem}").settings.scheme.name == path.stem


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bits=17", r"bits=17: allowed are 2 to 8"),
        ("bits=1", r"bits=1: allowed"),
        ("bits=three", r"bits='three'"),
        ("encoder.bits=17", r"bits=17: allowed are 2 to 8"),
        ("decoder.bits=three", r"decoder\.bits='three'"),
        ("group_size=0", r"group_size=0: must be at least 1"),
        ("group_size=all", r"group_size='all'"),
        ("symmetric=maybe", r"symmetric='maybe'"),
        ("batch_size=0", r"batch_size=0: must be at least 1"),
        ("batch_size=many", r"batch_size='many'"),
        ("max_new_tokens=0", r"max_new_tokens=0: must be at least 1"),
        ("threads=0", r"threads=0: must be at least 1"),
        ("threads=2000", r"threads=2000: must be at most 1024"),
        ("float_bits=8", r"float_bits=8: allowed are 16, 32 and null"),
        ("data.limit=0", r"data\.limit=0"),
        ("data.condition=loud", r"data\.condition='loud'"),
        ("data.path=x.jsonl", r"add data=manifest"),
        ("calibration.clips=0", r"calibration\.clips=0"),
        ("calibration.batch_size=0", r"calibration\.batch_size=0"),
        ("calibration.seed=-1", r"calibration\.seed=-1"),
        ("protocol.name=mine", r"mine"),
        ("protocol.resamples=1", r"protocol\.resamples=1"),
        ("model.tokens_per_second=-1", r"tokens_per_second=-1"),
        ("method/rounding=none", r"method=float"),
        ("method=float method/transform=awq", r"nothing is quantized"),
        ("act_bits=9", r"act_bits=9: allowed are 2 to 8"),
        ("act_bits=eight", r"act_bits='eight'"),
        ("scheme.rules=[{act_bits:1}]", r"act_bits=1: allowed are 2 to 8"),
        (
            "scheme.rules=[{act_bits:8,act_granularity:channel}]",
            r"rules\[0\]\.act_granularity='channel'",
        ),
        ("scheme.rules=[{act_symmetric:true}]", r"act_symmetric=True.*add act_bits=8"),
        ("scheme.rules=[{act_clip_ratio:0.9}]", r"act_clip_ratio=0\.9.*add act_bits=8"),
        ("scheme.rules=[{role:fc3,bits:8}]", r"role=fc3: did you mean fc[12]"),
        ("scheme.rules=[{bit:8}]", r"rules\[0\]\.bit=8: did you mean bits"),
        ("scheme.rules=[{role:fc1}]", r"rules\[0\]: sets nothing"),
        ("scheme.rules=[{stack:encoder,role:cross_q,bits:8}]", r"matches no tensor.*qkv, out, fc1"),
        ("scheme.rules=[{kind:embedding,bits:8}]", r"embedding stays floating point"),
        ("runtime=torhc", r"runtime=torhc: did you mean torch"),
        ("store_cap=lots", r"store_cap=lots: give a size such as"),
        ("+unknown=1", r"unknown=1"),
    ],
)
def test_a_bad_value_is_named(planned: Planned, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(*override.split())


TOKEN8 = ActivationGrid(8)
STATIC8 = ActivationGrid(8, False, "tensor", "extreme")


@pytest.mark.parametrize(
    ("overrides", "grid"),
    [
        ([], None),
        (["act_bits=null"], None),
        (["act_bits=8"], TOKEN8),
        (["scheme=w8a8"], TOKEN8),
        (["scheme=w4a8", "act_bits=8"], TOKEN8),
        (["encoder.act_bits=8", "decoder.act_bits=8"], TOKEN8),
        (["scheme.rules=[{act_bits:8}]"], TOKEN8),
        (["scheme=w4a4"], ActivationGrid(4)),
        (["scheme=w4a4", "act_bits=null"], None),
        (["scheme=w4a8", "act_bits=4"], ActivationGrid(4)),
        (["act_bits=4", "scheme.rules=[{act_symmetric:true}]"], ActivationGrid(4, symmetric=True)),
        (["act_bits=6", "scheme.rules=[{act_clip_ratio:0.9}]"], ActivationGrid(6, clip_ratio=0.9)),
        (["scheme=a8_static"], STATIC8),
        (["scheme=a8_static", "act_bits=6"], ActivationGrid(6, False, "tensor", "extreme")),
        (
            ["act_bits=8", "scheme.rules=[{act_granularity:tensor,act_range:extreme}]"],
            STATIC8,
        ),
        (
            ["scheme.rules=[{act_bits:6,act_granularity:tensor,act_range:mean}]"],
            ActivationGrid(6, False, "tensor", "mean"),
        ),
    ],
)
def test_every_way_to_quantize_activations(
    planned: Planned, overrides: list[str], grid: ActivationGrid | None
) -> None:
    assert {one.inputs for one in planned(*overrides).formats.values()} == {grid}


def test_the_last_rule_wins_and_a_stack_has_its_own(planned: Planned) -> None:
    plan = planned(
        "scheme.rules=[{bits:8},{role:fc2,bits:6}]", "encoder.bits=5", "decoder.group_size=16"
    )
    found = {
        (slot.stack, slot.role): (one.weights.bits, one.weights.group_size)
        for name, slot in plan.slots.items()
        if (one := plan.formats[name]).weights is not None
    }
    assert found["encoder", "qkv"] == found["encoder", "fc2"] == (5, None)
    assert found["decoder", "cross_kv"] == found["decoder", "fc1"] == (8, 16)
    assert found["decoder", "fc2"] == (6, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["scheme=a8_static", "scheme.rules=[{act_bits:8,act_granularity:tensor}]"],
            "give extreme",
        ),
        (["act_bits=8", "scheme.rules=[{act_range:mean}]"], "null with token"),
        (["act_bits=8", "scheme.rules=[{act_clip_ratio:2}]"], "clip_ratio=2"),
    ],
)
def test_contradictions_about_activations_are_refused(
    planned: Planned, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        planned(*overrides)


def test_activations_are_part_of_a_quantized_runs_identity_alone(planned: Planned) -> None:
    ways = (["act_bits=8"], ["scheme=w4a8"], ["scheme.rules=[{act_bits:8}]"], ["scheme=w4a4"])
    eight, *others = {planned("bits=4", *way, "act_bits=8").run_id for way in ways}
    assert not others
    different: tuple[list[str], ...] = (
        [],
        ["act_bits=4"],
        ["scheme=a8_static"],
        ["act_bits=8", "scheme.rules=[{act_symmetric:true}]"],
        ["encoder.act_bits=8"],
    )
    ids = {planned("bits=4", *way).run_id for way in different} | {eight}
    assert len(ids) == 6
    plain = planned("method=float").run_id
    assert planned("method=float", "act_bits=8").run_id == plain
    assert float_plan(planned("scheme=a8_static")).run_id == plain


def test_folder_names_tell_formats_apart(planned: Planned) -> None:
    plans = [
        planned("bits=4", *way)
        for way in (
            [],
            ["act_bits=8"],
            ["scheme=a8_static", "group_size=32"],
            ["encoder.bits=8", "symmetric=true"],
        )
    ]
    names = [plan.folder.name.removesuffix(plan.run_id) for plan in plans]
    assert names == [
        "rtn-W4-", "rtn-W4-A8-", "rtn-W4-g32-A8-static-", "rtn-W8-sym-decoder-W4-sym-",
    ]  # fmt: skip


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
        ("encoder.bitz=3", "encoder.bitz=3: no option bitz; did you mean bits"),
    ],
)
def test_a_misspelt_option_names_its_neighbour(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_choices([override], CONF)


def test_the_identity_ignores_what_cannot_change_a_number(planned: Planned) -> None:
    base = planned("bits=3").run_id
    for same in (
        "results=elsewhere", "threads=1", "rerun=true", "store=elsewhere", "store_cap=1GB",
        "model.name=mine", "scheme.name=mine", "method.name=mine", "calibration.clips=7",
        "method/rounding=nearest", "encoder.bits=3", "act_bits=null", "scheme.rules=[{bits:8}]",
    ):  # fmt: skip
        assert planned("bits=3", same).run_id == base, same
    first, second = (planned(f"device=cuda:{number}").run_id for number in (0, 1))
    assert first == second
    ids = [base]
    for other in (
        "bits=4", "batch_size=1", "method=gptq", "symmetric=true", "data.limit=3", "device=cuda",
        "max_new_tokens=9", "float_bits=16", "protocol.seed=1", "protocol.resamples=100",
        "layer_errors=true", "encoder.bits=4", "group_size=32", "model.tokens_per_second=9",
        "model=moonshine_micro", "data.condition=clean",
    ):  # fmt: skip
        ids.append(planned(*([] if other.startswith("bits") else ["bits=3"]), other).run_id)
    assert len(set(ids)) == len(ids)


def test_calibration_is_part_of_the_identity_where_clips_are_looked_at(planned: Planned) -> None:
    ids = [
        planned("method=gptq", *more).run_id
        for more in (
            [],
            ["calibration.clips=7"],
            ["calibration.clips=7", "calibration.seed=1"],
            ["calibration.clips=7", "calibration.batch_size=3"],
        )
    ]
    assert len(set(ids)) == 4


def test_all_quantized_runs_on_the_same_clips_share_one_float_run(planned: Planned) -> None:
    plans = [
        planned(*overrides)
        for overrides in (
            ["bits=3"],
            ["bits=2", "method=gptq"],
            ["calibration.clips=7", "group_size=32"],
            ["method=float"],
        )
    ]
    assert len({float_plan(plan).run_id for plan in plans}) == 1
    assert len({plan.transcribe_float.key for plan in plans}) == 1
    assert float_plan(plans[0]).folder == plans[-1].folder
    assert plans[-1].transcribe == plans[-1].transcribe_float
    other = planned("batch_size=4")
    assert float_plan(other).run_id != plans[-1].run_id


def test_changed_weights_or_manifest_make_another_run(planned: Planned, tmp_path: Path) -> None:
    model = tiny_whisper(tmp_path / "model")
    manifest = tmp_path / "clips.jsonl"
    row = '{"audio": "a.wav", "text": "one"}\n'
    manifest.write_text(row)
    options = ["model=custom", f"model.path={model}", "data=manifest", f"data.path={manifest}"]
    ids = {planned(*options).run_id}
    (model / "README.md").write_text("a card changes no number")
    config = json.loads((model / "config.json").read_text())
    config = {"transformers_version": "of another day", **dict(sorted(config.items())[::-1])}
    (model / "config.json").write_text(json.dumps(config))
    ids.add(planned(*options).run_id)
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    ids.add(planned(*options, f"model.path={moved}").run_id)
    assert len(ids) == 1
    weights = load_file(model / "model.safetensors")
    weights["model.encoder.layer_norm.bias"][3] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    ids.add(planned(*options).run_id)
    tokens = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**tokens, "max_length": 20}))
    ids.add(planned(*options).run_id)
    manifest.write_text(row + row.replace("a.wav", "b.wav"))
    ids.add(planned(*options).run_id)
    manifest.write_text(row + row.replace("a.wav", "b.wav").replace("one", "two"))
    ids.add(planned(*options).run_id)
    assert len(ids) == 5


def test_a_changed_recipe_says_so(planned: Planned) -> None:
    assert planned("method=gptq").method_label == "gptq"
    assert planned("method=rtn", "method/rounding=gptq").method_label == "gptq"
    changed = planned("method=rtn", "method/rounding=gptq", "method.rounding.damping=0.05")
    assert changed.method_label == "gptq+rounding.damping=0.05"
    assert planned("method=float").method_label == "float"


def test_replaced_audio_makes_another_run(planned: Planned, tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"damaged")
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text('{"audio": "clip.wav", "text": "one"}\n')
    options = ["data=manifest", f"data.path={manifest}"]
    before = planned(*options).run_id
    assert planned(*options).run_id == before
    clip.write_bytes(b"mended, and longer")
    assert planned(*options).run_id != before
    clip.write_bytes(b"damaged")
    clip.touch()
    assert planned(*options).run_id == before, "the same audio, written later"


def test_folder_names_stay_inside_the_results_folder(planned: Planned) -> None:
    plan = planned("model.name=../../evil", "method=gptq", "bits=3", "group_size=64")
    parts = plan.folder.relative_to(plan.settings.results_folder).parts
    assert parts == ("-..-evil", f"gptq-W3-g64-{plan.run_id}")


def test_the_store_lies_beside_the_results_unless_given() -> None:
    assert composed("results=/a/b/runs").store_folder == Path("/a/b/.edge_asr")
    assert composed("results=/a/b/runs", "store=/c").store_folder == Path("/c")
    assert composed("store_cap=1.5GB").store_cap_bytes == 1_500_000_000


def help_template() -> str:
    text: str = yaml.safe_load((CONF / "hydra/help/edge_asr.yaml").read_text())["template"]
    return text


def test_help_has_a_sentence_for_every_option() -> None:
    described = {line.split()[0] for line in help_template().splitlines() if line.startswith("  ")}
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


def test_help_describes_no_option_that_is_not_there() -> None:
    options = re.findall(r"^  (\S+)  +\S", help_template(), flags=re.MULTILINE)
    assert len(options) > 80
    for option in options:
        if option.endswith(".FIELD"):
            continue
        try:
            check_choices([f"{option}=null"], CONF)
        except UserError as error:
            pytest.fail(str(error))


def test_every_part_file_holds_all_settings_with_their_defaults() -> None:
    for path in (CONF / "method").glob("*/*.yaml"):
        stage, plain = path.parent.name, yaml.safe_load(path.read_text())
        if "defaults" in plain or plain["name"] == "none":
            continue  # another file's part with a recipe's own settings, or nothing to set
        registry: Any = STAGES[stage]
        part = registry.build(plain)
        assert part == registry.build({"name": plain["name"]}), path
        assert {field.name for field in dataclasses.fields(part)} == set(plain) - {"name"}, path

"""Settings: validated when built, with errors that name field, value and remedy; what they key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from options import composed
from safetensors.torch import load_file, save_file
from tiny import tiny_whisper

from edge_asr.config import CONF
from edge_asr.errors import UserError
from edge_asr.experiments.plan import Plan, float_plan, make_plan
from edge_asr.quant.formats import ActivationGrid
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.scheme import Scheme
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
        ("bits=17", r"bits=17: must be a whole number from 2 to 8 or one of float, default"),
        ("bits=1", r"bits=1: must be"),
        ("bits=three", r"bits=three: must be"),
        ("encoder.bits=17", r"encoder\.bits=17: must be"),
        ("decoder.bits=three", r"decoder\.bits=three: must be"),
        ("group_size=0", r"group_size=0: must be a whole number from 1"),
        ("group_size=all", r"group_size=all: must be"),
        ("symmetric=maybe", r"symmetric=maybe: must be true or false or one of unsigned"),
        ("batch_size=0", r"batch_size=0: must be a whole number from 1"),
        ("batch_size=many", r"batch_size=many: must be a whole number"),
        ("max_new_tokens=0", r"max_new_tokens=0: must be a whole number from 1"),
        ("threads=0", r"threads=0: must be a whole number from 1 to 1024, or null"),
        ("threads=2000", r"threads=2000: must be a whole number from 1 to 1024"),
        ("float_bits=8", r"float_bits=8: must be one of 16, 32, or null"),
        ("data.limit=0", r"data\.limit=0"),
        ("data.condition=loud", r"data\.condition=loud: must be one of all, clean, noisy"),
        ("data.path=x.jsonl", r"data=embedded has no option path; data=manifest has it"),
        ("calibration.clips=0", r"calibration\.clips=0"),
        ("calibration.batch_size=0", r"calibration\.batch_size=0"),
        ("calibration.seed=-1", r"calibration\.seed=-1"),
        ("protocol.name=mine", r"choose with protocol=mine"),
        ("protocol.resamples=1", r"protocol\.resamples=1"),
        ("model.tokens_per_second=-1", r"tokens_per_second=-1"),
        ("method/rounding=none", r"method=float"),
        ("method=float method/transform=awq", r"nothing is quantized"),
        ("act_bits=9", r"act_bits=9: must be a whole number from 2 to 8"),
        ("act_bits=eight", r"act_bits=eight: must be"),
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
        ("scheme.rules=[{kind:attention,act_bits:8}]", r"attention stays floating point"),
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
        (["act_bits=8", "scheme.rules=[{act_range:mean}]"], "act_range=null"),
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


def test_the_identity_ignores_what_cannot_change_a_number(planned: Planned) -> None:
    base = planned("bits=3").run_id
    for same in (
        "results=elsewhere", "threads=1", "rerun=true", "store=elsewhere", "store_cap=1GB",
        "model.name=mine", "calibration.clips=7",
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
    assert len({plan.data_sets[0].transcribe_float.key for plan in plans}) == 1
    assert float_plan(plans[0]).folder == plans[-1].folder
    (own,) = plans[-1].data_sets
    assert own.transcribe == own.transcribe_float
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
    # Of recipes with as many other parts, the one with the fewest changes.
    assert planned("method=best", "method/transform=none").method_label == "best+transform=none"


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

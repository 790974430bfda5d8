"""Targets: what they set, what they refuse, and that the remedy they name is taken."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from export.models import WIDTHS
from tiny import tiny_whisper

from edge_asr.cli.compose import compose_settings
from edge_asr.config import CONF, Settings, target_named
from edge_asr.errors import UserError
from edge_asr.experiments.plan import check_settings, make_plan
from edge_asr.models.tensors import Slot
from edge_asr.quant.formats import ActivationGrid, Grid, TensorFormat
from edge_asr.quant.target import Target
from edge_asr.store.artefacts import Store

NAMES = sorted(path.stem for path in (CONF / "target").glob("*.yaml"))
# Of matrix layers of both families, tiny to small.
BLOCKS = (32, 64, 128, 256)
LAYER = Slot("layer", "encoder", "fc1", "linear")
Q8 = ActivationGrid(8, True, "group", group_size=32, half_scales=True)


def formats(settings: Settings) -> set[TensorFormat]:
    return {one for own in settings.rules().role_formats().values() for one in own}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("none", "W4"),
        ("ggml_q4_0", "W4 g32 sym signed_scale A8 g32 sym half"),
        ("ggml_q4_1", "W4 g32 minimum A8 g32 sym half"),
        ("ggml_q5_0", "W5 g32 sym signed_scale A8 g32 sym half"),
        ("ggml_q5_1", "W5 g32 minimum A8 g32 sym half"),
        ("ggml_q8_0", "W8 g32 sym signed A8 g32 sym half"),
        ("onnx_nbits", "W4 g32"),
        ("onnx_nbits_a8", "W4 g32 A8 g32 sym"),
        ("onnx_dynamic", "W8 sym signed A8 tensor"),
        ("ctranslate2_int8", "W8 sym signed A8 sym"),
        ("compressed_tensors", "W4 g32 sym signed_scale"),
    ],
)
def test_a_target_sets_what_nobody_set(name: str, label: str) -> None:
    (found,) = formats(compose_settings("method=gptq", f"target={name}"))
    assert found.label == label


def test_all_targets_are_tested() -> None:
    assert len(NAMES) == 11
    assert all(compose_settings(f"target={name}").target == target_named(name) for name in NAMES)
    assert all(target_named(name).name == name for name in NAMES)


REFUSED = [
    (["target=ggml_q4_0", "bits=3"], "has bits=3; its runtime has kernels for 4 bits"),
    (["target=onnx_nbits", "bits=3"], "kernels for 4, 8, 2 bits"),
    (["target=onnx_nbits", "encoder.bits=6"], "encoder.qkv has bits=6"),
    (["target=ggml_q4_0", "group_size=64"], "has group_size=64; its runtime holds 32"),
    (["target=onnx_nbits", "group_size=null"], "group_size=null"),
    (["target=ctranslate2_int8", "group_size=128"], "its runtime holds null"),
    (["target=ggml_q8_0", "symmetric=false"], "has symmetric=false; its runtime holds signed"),
    (["target=ggml_q4_0", "symmetric=true"], "has symmetric=unsigned"),
    (["target=ctranslate2_int8", "act_bits=null"], "is to read floats; its runtime reads A8 sym"),
    (["target=onnx_nbits", "act_bits=8"], "is to read A8; its runtime reads floats"),
    (["target=compressed_tensors", "act_bits=4"], "reads floats or A8"),
    (["target=ggml_q4_0", "method=quarot"], "no operations between layers"),
    (["target=ggml_q4_0", "method=best"], "no operations between layers"),
    (["target=ggml_q4_0", "method=awq"], "no operations between layers"),
    (["target=onnx_nbits", "method=spqr"], "no weights of a layer apart"),
    (["target=onnx_nbits", "method=hqq"], "has zero points between the steps"),
    (["target=onnx_nbits", "scheme=a8_static"], "is to read A8 static; its runtime reads floats"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_it_cannot_hold_is_refused_with_a_remedy_that_helps(
    words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        check_settings(compose_settings("method=gptq", *words))
    text = str(refused.value)
    assert text.startswith(words[0])
    remedy = re.search(r"(?:set|use) (\S+?=.*?)(?:,? or method=gptq)?$", text)
    assert remedy is not None
    word = remedy[1]
    if word.startswith("scheme.rules="):
        word = word.replace(": ", ":")
    kept = [one for one in words if one.partition("=")[0] != word.partition("=")[0]]
    if "leave act_bits and scheme= out" in text or "and leave out scheme=" in text:
        kept = [one for one in kept if not one.startswith(("act_bits=", "scheme="))]
        word = word.removesuffix(" and leave out scheme= and other act_ settings")
    kept = [one for one in kept if not (one == "encoder.bits=6" and word.startswith("bits="))]
    check_settings(compose_settings("method=gptq", *kept, *word.split(" and ")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["symmetric=true"],
            "zero_point=minimum with symmetric=true: .*set symmetric=false, or leave zero_point",
        ),
        (["method/range=mse_double_quant"], "in float16.*; use method/range=mse"),
        (["method=spqr"], "no weights of a layer apart; use method=gptq and method/outliers=none"),
        (
            ["scheme.rules=[{zero_point: integer}]"],
            "has whole zero points; its runtime holds minima.*leave zero_point out of rules",
        ),
    ],
)
def test_what_has_no_minimum_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(compose_settings("method=gptq", "target=ggml_q4_1", *words))


def test_hqq_moves_the_minimum() -> None:
    composed = compose_settings("method=hqq", "target=ggml_q5_1")
    check_settings(composed)
    (found,) = formats(composed)
    assert found.label == "W5 g32 minimum A8 g32 sym half"


@pytest.mark.parametrize("name", ["ctranslate2_int8", "onnx_nbits_a8", "onnx_dynamic"])
def test_what_stays_float_reads_floats(name: str) -> None:
    words = ["method=gptq", f"target={name}", "decoder.bits=float"]
    with pytest.raises(UserError, match=r"decoder\.\w+ keeps its weights in floating point"):
        compose_settings(*words)
    compose_settings(*words, "decoder.act_bits=null")


def test_groups_of_weights_that_have_none_are_refused() -> None:
    with pytest.raises(UserError, match="act_group_size=weights with group_size=null"):
        compose_settings("method=gptq", "target=onnx_nbits_a8", "group_size=null")


def test_groups_of_inputs_follow_those_of_weights() -> None:
    words = ["method=gptq", "target=onnx_nbits_a8", "group_size=64"]
    (found,) = formats(compose_settings(*words))
    assert found.inputs == ActivationGrid(8, True, "group", group_size=64)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["ggml_q4_0", "onnx_nbits", "compressed_tensors"])
def test_groups_that_do_not_divide_a_width(name: str, block: int, columns: int) -> None:
    target = compose_settings(f"target={name}").target
    symmetric = name.startswith("ggml")
    grid = Grid(
        4, symmetric=symmetric, signed=symmetric, signed_scale=symmetric,
        granularity="group", group_size=block,
    )  # fmt: skip
    format = TensorFormat(grid, Q8 if symmetric else None)
    held = name == "onnx_nbits" or columns % block == 0
    held &= block in (target.group_sizes or ())
    if held:
        target.refuse(LAYER, format, columns)
        return
    with pytest.raises(UserError, match=r"group_size=|groups of") as refused:
        target.refuse(LAYER, format, columns)
    better = re.search(r"set group_size=(\d+)", str(refused.value))
    assert better is not None
    if name == "ggml_q4_0":
        assert better[1] == "32"


def test_a_width_without_any_group_is_left_float_or_refused() -> None:
    target = compose_settings("target=ggml_q4_0").target
    grid = Grid(
        4, symmetric=True, signed=True, signed_scale=True, granularity="group", group_size=32
    )
    with pytest.raises(UserError, match=r"divide the 144 columns.*use target=onnx_nbits"):
        target.refuse(LAYER, TensorFormat(grid, Q8), 144)
    with pytest.raises(UserError, match="holds all matrices in one format"):
        target.refuse(LAYER, TensorFormat(None, None), 144)
    any_layers = replace(target, layers="either")
    with pytest.raises(UserError, match=r"divide the 144 columns.*bits: float, act_bits: null"):
        any_layers.refuse(LAYER, TensorFormat(grid, Q8), 144)
    any_layers.refuse(LAYER, TensorFormat(None, None), 144)


@pytest.mark.parametrize("kind", ["embedding", "convolution"])
def test_what_a_target_prefers_can_be_turned_off(kind: str, tmp_path: Path) -> None:
    rule = f"scheme.rules=[{{kind: {kind}, bits: float}}]"
    settings = compose_settings(
        "model=whisper_micro", "method=rtn", "target=ctranslate2_int8", rule
    )
    plan = make_plan(settings, Store(tmp_path))
    label = {"embedding": "embedding", "convolution": "conv"}[kind]
    assert f"{label} W8" not in plan.label
    other = {"embedding": "conv", "convolution": "embedding"}[kind]
    assert f"{other} W8" in plan.label


def test_one_kind_alone_can_be_quantized(tmp_path: Path) -> None:
    words = ("model=whisper_micro", "bits=float", "act_bits=null", "target=ctranslate2_int8")
    check_and_plan(tmp_path, *words, "scheme.rules=[{kind: embedding, bits: float}]")
    check_and_plan(tmp_path, *words, "scheme.rules=[{kind: convolution, bits: float}]")


def test_what_must_be_quantized_cannot_be_turned_off(tmp_path: Path) -> None:
    model = tiny_whisper(tmp_path / "model", width=96, inner=384)
    words = ("model=custom", f"model.path={model}", "target=ggml_q4_0")
    check_and_plan(tmp_path, *words)
    for rule in ("{kind: embedding, bits: float}", "{role: fc2, bits: float, act_bits: null}"):
        with pytest.raises(UserError, match="holds all matrices in one format"):
            check_and_plan(tmp_path, *words, f"scheme.rules=[{rule}]")


def check_and_plan(folder: Path, *words: str) -> None:
    settings = compose_settings("method=rtn", *words)
    check_settings(settings)
    make_plan(settings, Store(folder / "store"))


def test_a_family_that_a_runtime_does_not_run_is_refused(tmp_path: Path) -> None:
    for name in ("ggml_q4_0", "ctranslate2_int8"):
        with pytest.raises(UserError, match=r"runs whisper alone.*use target=onnx_nbits"):
            check_and_plan(tmp_path, "model=moonshine_micro", f"target={name}")


def test_scales_that_are_no_halves_are_refused(tmp_path: Path) -> None:
    for name in ("ggml_q8_0", "ctranslate2_int8"):
        with pytest.raises(UserError, match=r"in float16.*use method/range=mse"):
            check_and_plan(tmp_path, f"target={name}", "method/range=minmax_double_quant")


def test_a_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    settings = compose_settings("model=whisper_micro", "method=gptq", "target=ggml_q4_0")
    with pytest.raises(UserError, match="groups of 32 do not divide the 144 columns"):
        make_plan(settings, Store(tmp_path))
    dynamic = compose_settings("model=moonshine_micro", "method=gptq", "target=onnx_dynamic")
    with pytest.raises(UserError, match="set batch_size=1"):
        make_plan(dynamic, Store(tmp_path))


def test_a_bad_policy_names_its_entry() -> None:
    with pytest.raises(UserError, match=r"target\.inputs\[0\]\.act_bit"):
        Target(inputs=({"act_bit": 8},))
    with pytest.raises(UserError, match=r"target\.inputs\[0\]\.role: says nothing of inputs"):
        Target(inputs=({"role": "fc2"},))


@pytest.mark.parametrize("field", ["bits", "symmetric", "group_sizes", "inputs"])
def test_an_empty_policy_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=rf"target\.{field}=\[\]: give at least one"):
        Target(**{field: ()})


def test_a_file_is_run_by_what_knows_it() -> None:
    words = ["method=rtn", "runtime=onnxruntime"]
    for more in ([], ["target=ggml_q4_0"]):
        with pytest.raises(UserError, match="target=onnx_nbits, onnx_nbits_a8, onnx_dynamic"):
            check_settings(compose_settings(*words, *more))
    check_settings(compose_settings(*words, "target=onnx_nbits"))
    check_settings(compose_settings("method=float", "runtime=onnxruntime"))


def test_what_a_runtime_cannot_compute_is_said_before_the_work(tmp_path: Path) -> None:
    words = ["method=rtn", "runtime=onnxruntime", "target=onnx_nbits", "decoder.dtype=bfloat16"]
    with pytest.raises(UserError, match="computes in float32"):
        make_plan(compose_settings(*words), Store(tmp_path))

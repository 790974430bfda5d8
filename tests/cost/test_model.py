from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from edge_asr.cost.model import bit_operations, cost_of, macs, memory_io, model_size
from edge_asr.cost.records import (
    AttentionRecord,
    LayerRecord,
    ModelSummary,
    RuntimeOpRecord,
    Workload,
)

PHASES = ("encoder", "prefill", "decode")


def layer(
    name: str, stack: str, role: str, shape: tuple[int, ...], axis: str, **fields: Any
) -> LayerRecord:
    bits = fields.pop("bits_per_weight", 32)
    stored = fields.pop("weight_bits", bits * math.prod(shape))
    return LayerRecord(name, stack, role, shape, axis, stored, bits, **fields)  # type: ignore[arg-type]


def small_summary(
    weight: float = 4, activation: int = 8, key_value: int = 16, scales: float = 64
) -> ModelSummary:
    """One layer of every kind the formulas tell apart."""

    def quantized(
        name: str, stack: str, role: str, shape: tuple[int, ...], axis: str, **more: Any
    ) -> LayerRecord:
        return layer(
            name, stack, role, shape, axis,
            bits_per_weight=weight, weight_bits=weight * math.prod(shape) + scales,
            input_bits=activation, output_bits=activation, **more,
        )  # fmt: skip

    return ModelSummary(
        layers=(
            layer("conv", "encoder", "conv", (6, 3, 5), "half", bias_bits=6 * 32, stride=2),
            quantized(
                "enc.fc1", "encoder", "fc1", (8, 6), "frame",
                bias_bits=256, runtime_op_macs=7, runtime_op_bits=40,
            ),
            layer("embed", "decoder", "embedding", (10, 6), "token"),
            quantized(
                "dec.q", "decoder", "qkv", (6, 6), "token",
                runtime_op_macs=5, float_columns=2, float_column_bits=min(weight, 16),
            ),
            quantized("dec.cross_k", "decoder", "cross_kv", (6, 6), "frame", runtime_op_macs=3),
            layer("head", "decoder", "head", (10, 6), "token", tied_to="embed", bias_bits=320),
        ),
        attentions=(
            AttentionRecord("enc.self", "encoder", "self", 2, 3, None, activation, key_value),
            AttentionRecord("dec.self", "decoder", "self", 2, 3, None, activation, key_value),
            AttentionRecord("dec.cross", "decoder", "cross", 2, 3, None, activation, key_value),
        ),
        other_parameters=11,
        other_parameter_bits=11 * 32,
        runtime_ops=(
            RuntimeOpRecord("enc.rotation", "encoder", "frame", 36, 8 * 36),
            RuntimeOpRecord("dec.rotation", "decoder", "token", 24, 8 * 24),
        ),
    )  # fmt: skip


def simulate(summary: ModelSummary, workload: Workload) -> dict[str, dict[str, float]]:
    """Run the model token by token and write every event down, by no formula of the cost model."""
    seen: dict[str, dict[str, float]] = {phase: defaultdict(float) for phase in PHASES}
    stored = {one.name: one.weight_bits for one in summary.layers}

    def run(one: LayerRecord, phase: str, positions: int) -> None:
        spent = seen[phase]
        if one.role != "embedding":
            spent["weights"] += (stored[one.tied_to or one.name] + one.bias_bits) / 8
            spent["weights"] += one.runtime_op_bits / 8
        for _ in range(positions):
            spent["runtime_ops"] += one.runtime_op_macs
            spent["bops"] += one.runtime_op_macs * summary.float_bits * summary.float_bits
            if one.role == "embedding":
                spent["weights"] += one.weight_bits / one.weight_shape[0] / 8
                spent["activations"] += one.weight_shape[1] * one.output_bits / 8
                continue
            spent["macs"] += one.weights
            for column in range(one.weight_shape[1]):
                weights = one.weights // one.weight_shape[1]
                widths = (one.bits_per_weight, one.input_bits)
                if column < one.float_columns:
                    widths = (one.float_column_bits, summary.float_bits)
                spent["bops"] += weights * widths[0] * widths[1]
                spent["activations"] += one.stride * widths[1] / 8
            spent["activations"] += one.weight_shape[0] * one.output_bits / 8

    def attend(one: AttentionRecord, phase: str, queries: int, keys: int, written: int) -> None:
        spent, width = seen[phase], one.heads * one.head_dim
        for _ in itertools.product(range(queries), range(keys)):
            spent["attention"] += width + width
            spent["bops"] += 2 * width * one.query_bits * one.key_value_bits
        spent["key_value"] += (keys + written) * 2 * width * one.key_value_bits / 8
        spent["activations"] += queries * 2 * width * one.query_bits / 8

    def between(one: RuntimeOpRecord, phase: str, positions: int) -> None:
        seen[phase]["weights"] += one.bits / 8
        seen[phase]["runtime_ops"] += one.macs * positions
        seen[phase]["bops"] += one.macs * positions * summary.float_bits**2

    frames = workload.positions["frame"]
    for extra in summary.runtime_ops:
        if extra.axis != "token":
            between(extra, "encoder", workload.positions[extra.axis])
    for one in summary.layers:
        if one.axis != "token":
            phase = "encoder" if one.stack == "encoder" else "prefill"
            run(one, phase, workload.positions[one.axis])
    for record in summary.attentions:
        if record.stack == "encoder":
            attend(record, "encoder", frames, frames, 0)
    cached = 0
    for turn in range(workload.generated_tokens):
        phase, fed = ("decode", 1) if turn else ("prefill", workload.prompt_tokens)
        cached += fed
        for extra in summary.runtime_ops:
            if extra.axis == "token":
                between(extra, phase, fed)
        for one in summary.layers:
            if one.axis == "token":
                run(one, phase, fed)
        for record in summary.attentions:
            if record.stack == "decoder" and record.kind == "self":
                attend(record, phase, fed, cached, fed)
            elif record.stack == "decoder":
                attend(record, phase, fed, frames, 0 if turn else frames)
    return seen


workloads = st.builds(
    lambda frames, prompt, generated: Workload(
        frames / 5, {"frame": frames, "half": 2 * frames}, prompt, generated
    ),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(1, 6),
)


@settings(deadline=None)
@given(workloads)
def test_formulas_agree_with_a_token_by_token_simulation(workload: Workload) -> None:
    summary = small_summary()
    counted, operations = macs(summary, workload), bit_operations(summary, workload)
    traffic = memory_io(summary, workload)
    for phase, seen in simulate(summary, workload).items():
        spent, moved = getattr(counted, phase), getattr(traffic, phase)
        assert spent.layers == pytest.approx(seen["macs"])
        assert spent.attention == pytest.approx(seen["attention"])
        assert spent.runtime_ops == pytest.approx(seen["runtime_ops"])
        assert getattr(operations, phase) == pytest.approx(seen["bops"])
        assert moved.weights == pytest.approx(seen["weights"])
        assert moved.key_value == pytest.approx(seen["key_value"])
        assert moved.activations == pytest.approx(seen["activations"])


def test_counts_worked_out_by_hand() -> None:
    workload = Workload(2.0, {"frame": 4, "half": 8}, prompt_tokens=2, generated_tokens=3)
    summary = small_summary()
    counted = macs(summary, workload)
    # conv 90 weights x 8, fc1 48 x 4; attention 2 x 6 wide x 4 x 4.
    assert (counted.encoder.layers, counted.encoder.attention) == (720 + 192, 192)
    # q 36 x 2, head 60 x 2, cross key 36 x 4; self 12 x 2 x 2, cross 12 x 2 x 4.
    assert (counted.prefill.layers, counted.prefill.attention) == (72 + 120 + 144, 48 + 96)
    # Two steps: q and head; self over 3 then 4 keys, cross over 4 each.
    assert (counted.decode.layers, counted.decode.attention) == (192, 12 * 7 + 12 * 8)
    # Two steps of 5 before q and 24 before the head; 4 frames of 7 and of 36.
    assert (counted.decode.runtime_ops, counted.encoder.runtime_ops) == (2 * 29, 4 * 43)
    traffic = memory_io(summary, workload)
    # conv 90 x 32 + 192 bits; fc1 48 x 4 + 64 scales + 256 bias + 40 of its op; rotation 8 x 36.
    assert traffic.encoder.weights == (2880 + 192 + 192 + 64 + 256 + 40 + 288) / 8
    # q 36 x 4 + 64 and the whole tied table 1920 + 320, then two rows of 192; cross key 208; the
    # rotation 8 x 24.
    assert traffic.prefill.weights == (208 + 2240 + 384 + 208 + 192) / 8
    assert traffic.decode.weights == 2 * (208 + 2240 + 192 + 192) / 8
    # conv reads 3 x 2 and writes 6, at 8 positions; fc1 reads 6 and writes 8 of 8 bits; attention.
    assert traffic.encoder.activations == (8 * 12 * 32 + 4 * 14 * 8 + 4 * 12 * 8) / 8
    # Two steps: rows of 6 floats; q reads 4 x 8 and 2 x 32 bits, writes 6 x 8; head 6 + 10 floats;
    # two attentions 12 x 8.
    assert traffic.decode.activations == 2 * (192 + 32 + 64 + 48 + 512 + 192) / 8
    # 16-bit keys and values of 6: self reads 2 and writes 2, cross reads 4 and writes 4.
    assert traffic.prefill.key_value == 24 * (4 + 8)
    # Self reads 3 + 4 and writes 2, cross reads 4 twice.
    assert traffic.decode.key_value == 24 * (9 + 8)
    assert bit_operations(summary, workload).encoder == (
        720 * 32 * 32 + 192 * 4 * 8 + (28 + 144) * 32 * 32 + 192 * 8 * 16
    )
    # Two steps: q 24 weights of 4 x 8 bits and 12 of float columns 4 x 32, head 60; runtime ops;
    # self over 3 then 4 keys, cross over 4.
    assert bit_operations(summary, workload).decode == (
        2 * (24 * 4 * 8 + 12 * 4 * 32 + 60 * 32 * 32 + 29 * 32 * 32) + 12 * (7 + 8) * 8 * 16
    )


def test_size_stores_a_tied_table_once() -> None:
    size = model_size(small_summary())
    bits = 2880 + 192 + (192 + 64 + 256 + 40) + 1920 + 208 + 208 + 320 + 352 + 288 + 192
    parameters = 90 + 6 + 48 + 8 + 60 + 36 + 36 + 10 + 11
    assert size.bytes == bits // 8
    assert size.parameters == parameters
    assert size.bits_per_parameter == pytest.approx(bits / parameters)
    assert size.bits_per_parameter_without_embeddings == pytest.approx(
        (bits - 1920) / (parameters - 60)
    )


def test_an_embedding_tied_to_its_head_is_one_table_too() -> None:
    table = layer("head", "decoder", "head", (10, 6), "token", bits_per_weight=4)
    lookup = layer("embed", "decoder", "embedding", (10, 6), "token", tied_to="head")
    summary = ModelSummary((table, lookup), (), 5, 160)
    size = model_size(summary)
    assert (size.bytes, size.parameters) == ((240 + 160) // 8, 65)
    assert size.bits_per_parameter_without_embeddings == 32
    # The row is as wide as the table that stores it.
    traffic = memory_io(summary, Workload(1, {"frame": 1}, 1, 1))
    assert traffic.prefill.weights == (240 + 24) / 8


def test_an_untied_head_is_no_embedding() -> None:
    summary = ModelSummary(
        (
            layer("embed", "decoder", "embedding", (10, 6), "token"),
            layer("head", "decoder", "head", (10, 6), "token", bits_per_weight=4),
        ),
        (),
        0,
        0,
    )
    assert model_size(summary).bits_per_parameter_without_embeddings == 4
    assert model_size(summary).bits_per_parameter == 18


@settings(deadline=None)
@given(
    workloads,
    st.tuples(st.integers(1, 32), st.integers(1, 32), st.integers(1, 32), st.integers(1, 500)),
    st.tuples(st.integers(0, 31), st.integers(0, 31), st.integers(0, 31), st.integers(0, 500)),
)
def test_fewer_bits_never_raise_anything(
    workload: Workload, widths: tuple[int, int, int, int], cuts: tuple[int, int, int, int]
) -> None:
    wide = small_summary(*widths)
    fewer = (max(1, width - cut) for width, cut in zip(widths, cuts, strict=True))
    narrow = small_summary(*fewer)
    assert macs(narrow, workload) == macs(wide, workload)
    for measure in (bit_operations, memory_io):
        for phase in PHASES:
            less, more = (getattr(measure(one, workload), phase) for one in (narrow, wide))
            pairs = zip(_numbers(less), _numbers(more), strict=True)
            assert all(low <= high for low, high in pairs)
    assert model_size(narrow).bytes <= model_size(wide).bytes
    assert model_size(narrow).parameters == model_size(wide).parameters


def _numbers(value: Any) -> list[float]:
    return [value] if isinstance(value, float) else list(dataclasses.astuple(value))


@settings(deadline=None)
@given(st.lists(workloads, min_size=1, max_size=5))
def test_data_set_cost_is_the_mean_of_its_utterances(several: list[Workload]) -> None:
    summary = small_summary()
    cost = cost_of(summary, several)
    totals = [memory_io(summary, workload).total for workload in several]
    operations = [bit_operations(summary, workload).total for workload in several]
    assert cost.memory_io.total == pytest.approx(sum(totals) / len(several))
    assert cost.bit_operations.total == pytest.approx(sum(operations) / len(several))
    assert cost.macs.total == pytest.approx(
        sum(macs(summary, workload).total for workload in several) / len(several)
    )
    seconds = sum(workload.seconds for workload in several)
    assert cost.bytes_per_second == pytest.approx(sum(totals) / seconds)
    assert cost.bit_operations_per_second == pytest.approx(sum(operations) / seconds)
    assert (cost.utterances, cost.size) == (len(several), model_size(summary))


def whisper_summary(model: WhisperForConditionalGeneration) -> ModelSummary:
    """Every module with a matrix of the small model below, by the ends of its name."""
    layers = []
    for name, module in model.named_modules():
        stack = "decoder" if "decoder" in name or name == "proj_out" else "encoder"
        axis = "token" if stack == "decoder" else "frame"
        if isinstance(module, torch.nn.Conv1d):
            axis = "stem" if name.endswith("conv1") else "frame"
            weight = tuple(module.weight.shape)
            stride = module.stride[0]
            layers.append(layer(name, stack, "conv", weight, axis, stride=stride))
        elif isinstance(module, torch.nn.Linear):
            cross = "encoder_attn" in name and name.endswith(("k_proj", "v_proj"))
            role = "cross_kv" if cross else "head" if name == "proj_out" else "fc"
            shape = tuple(module.weight.shape)
            layers.append(layer(name, stack, role, shape, "frame" if cross else axis))
    config = model.config
    dim = config.d_model // config.encoder_attention_heads
    kinds = [("encoder", "self")] * config.encoder_layers
    kinds += [("decoder", "self"), ("decoder", "cross")] * config.decoder_layers
    attentions = tuple(
        AttentionRecord(str(i), stack, kind, config.encoder_attention_heads, dim)  # type: ignore[arg-type]
        for i, (stack, kind) in enumerate(kinds)
    )
    return ModelSummary(tuple(layers), attentions, 1, 32)


@torch.no_grad()
def test_macs_equal_those_counted_in_a_real_forward_pass() -> None:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=50,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=20,
        max_target_positions=30,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation="eager",
    )
    model = WhisperForConditionalGeneration(config).eval()
    # 40 mel frames become 20 encoder frames; 4 prompt tokens, 5 generated.
    workload = Workload(0.4, {"frame": 20, "stem": 40}, prompt_tokens=4, generated_tokens=5)
    expected = macs(whisper_summary(model), workload)
    with FlopCounterMode(display=False) as encoder:
        states = model.model.encoder(torch.randn(1, 8, 40))
    with FlopCounterMode(display=False) as prefill:
        ids = torch.tensor([[3, 4, 5, 6]])
        output = model(decoder_input_ids=ids, encoder_outputs=states, use_cache=True)
    with FlopCounterMode(display=False) as decode:
        for _ in range(4):
            output = model(
                decoder_input_ids=torch.tensor([[7]]),
                encoder_outputs=states,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
    assert encoder.get_total_flops() == 2 * expected.encoder.total
    assert prefill.get_total_flops() == 2 * expected.prefill.total
    assert decode.get_total_flops() == 2 * expected.decode.total


def test_a_missing_axis_is_named() -> None:
    with pytest.raises(ValueError, match="'half'"):
        macs(small_summary(), Workload(1, {"frame": 2}, 1, 1))
    with pytest.raises(ValueError, match="'frame'"):
        macs(small_summary(), Workload(1, {"half": 2}, 1, 1))


def test_no_workload_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        cost_of(small_summary(), [])


def test_unsound_summaries_are_refused() -> None:
    first = layer("a", "decoder", "head", (2, 2), "token")
    with pytest.raises(ValueError, match="share a name"):
        ModelSummary((first, first), (), 0, 0)
    with pytest.raises(ValueError, match="'b' stores no weight"):
        ModelSummary((dataclasses.replace(first, tied_to="b"),), (), 0, 0)
    with pytest.raises(ValueError, match="no cross-attention"):
        AttentionRecord("a", "encoder", "cross", 1, 1)
    with pytest.raises(ValueError, match="float_columns 3 of 2"):
        dataclasses.replace(first, float_columns=3)
    with pytest.raises(ValueError, match="runtime op is negative"):
        dataclasses.replace(first, runtime_op_bits=-1)
    with pytest.raises(ValueError, match="belongs to the decoder"):
        RuntimeOpRecord("a", "encoder", "token", 1)
    with pytest.raises(ValueError, match="macs or bits"):
        RuntimeOpRecord("a", "encoder", "frame", -1)
    with pytest.raises(ValueError, match="end token"):
        Workload(1, {"frame": 1}, 1, 0)

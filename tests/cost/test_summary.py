"""The summary of real models: parameters counted once, MACs as PyTorch counts them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from tiny import tone
from torch.utils.flop_counter import FlopCounterMode

from edge_asr.cost.model import cost_of, macs, model_size
from edge_asr.cost.records import Workload
from edge_asr.cost.summary import StoredWeight, runtime_op_record, summarize_model
from edge_asr.cost.usage import PHASES
from edge_asr.models.loading import Checkpoint

WORKLOAD = Workload(
    seconds=1.0,
    positions={"mel": 100, "conv1": 248, "conv2": 80, "frame": 50},
    prompt_tokens=2,
    generated_tokens=7,
)


def counted_macs(run: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()  # type: ignore[operator]
    return counter.get_total_flops() / 2


def padded(checkpoint: Checkpoint, multiple: int) -> Checkpoint:
    """The same Moonshine with heads padded, as the published ones are."""
    model: Any = copy.deepcopy(checkpoint.model)
    model.config.pad_head_dim_to_multiple_of = multiple
    twin = type(model)(model.config).eval()
    twin.load_state_dict(model.state_dict())
    twin.generation_config = model.generation_config
    return dataclasses.replace(checkpoint, model=twin)


@pytest.mark.parametrize(("samples", "generated"), [(16_000, 6), (25_000, 1)])
def test_macs_are_those_of_a_real_forward_pass(
    checkpoint: Checkpoint, samples: int, generated: int
) -> None:
    assert_macs_as_counted(checkpoint, samples, generated)


@pytest.mark.parametrize("multiple", [5, 8])
def test_macs_of_padded_heads_are_those_of_a_real_forward_pass(
    moonshine: Checkpoint, multiple: int
) -> None:
    """Heads of 10 stay as they are, or multiply 16 values."""
    assert_macs_as_counted(padded(moonshine, multiple), 16_000, 6)


def test_padding_enlarges_products_and_no_traffic(moonshine: Checkpoint) -> None:
    plain, wide = (
        cost_of(summarize_model(one.model, one.architecture), [WORKLOAD])
        for one in (moonshine, padded(moonshine, 8))
    )
    assert wide.memory_io == plain.memory_io
    for phase in PHASES:
        more, less = (getattr(cost.macs, phase) for cost in (wide, plain))
        assert (more.layers, more.attention) == (less.layers, pytest.approx(1.6 * less.attention))
        extra = (more.attention - less.attention) * 32 * 32
        bops = [getattr(cost.bit_operations, phase) for cost in (wide, plain)]
        assert bops[0] - bops[1] == pytest.approx(extra)


def assert_macs_as_counted(checkpoint: Checkpoint, samples: int, generated: int) -> None:
    architecture = checkpoint.architecture
    model = copy.deepcopy(checkpoint.model)
    # Fused attention hides its products from the counter.
    model.set_attn_implementation("eager")
    prompt = list(architecture.prompt(model))
    inputs = architecture.model_inputs(checkpoint.feature_extractor, [tone(2.0)[:samples]])
    encoder = model.get_submodule(architecture.encoder_module)
    memory: list[object] = []
    encoder_macs = counted_macs(lambda: memory.append(encoder(**inputs)))

    def decode(tokens: list[int], cache: object) -> object:
        return model(
            encoder_outputs=memory[0],
            decoder_input_ids=torch.tensor([tokens]),
            past_key_values=cache,
            use_cache=True,
        ).past_key_values

    caches: list[object] = []
    prefill_macs = counted_macs(lambda: caches.append(decode(prompt, None)))

    def steps() -> None:
        cache = caches[0]
        for _ in range(generated - 1):
            cache = decode([5], cache)

    decode_macs = counted_macs(steps)
    workload = Workload(
        seconds=samples / 16_000,
        positions=architecture.positions(model.config, samples),
        prompt_tokens=len(prompt),
        generated_tokens=generated,
    )
    ours = macs(summarize_model(model, architecture), workload)
    assert ours.encoder.total == pytest.approx(encoder_macs, rel=1e-3)
    assert ours.prefill.total == pytest.approx(prefill_macs, rel=1e-3)
    assert ours.decode.total == pytest.approx(decode_macs, rel=1e-3)


def test_every_parameter_is_stored_once(checkpoint: Checkpoint) -> None:
    summary = summarize_model(checkpoint.model, checkpoint.architecture)
    size = model_size(summary)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    assert size.parameters == parameters
    assert size.bytes == 4 * parameters
    assert size.bits_per_parameter == 32


def test_half_precision_halves_the_float_size(checkpoint: Checkpoint) -> None:
    half = model_size(summarize_model(checkpoint.model, checkpoint.architecture, float_bits=16))
    full = model_size(summarize_model(checkpoint.model, checkpoint.architecture))
    assert 2 * half.bytes == full.bytes


def test_half_precision_halves_traffic_and_quarters_bit_operations(checkpoint: Checkpoint) -> None:
    half, full = (
        cost_of(
            summarize_model(checkpoint.model, checkpoint.architecture, float_bits=bits), [WORKLOAD]
        )
        for bits in (16, 32)
    )
    for phase in PHASES:
        ours, theirs = (getattr(cost.memory_io, phase) for cost in (half, full))
        for part in ("weights", "key_value", "activations"):
            assert 2 * getattr(ours, part) == getattr(theirs, part)
        ours, theirs = (getattr(cost.bit_operations, phase) for cost in (half, full))
        assert 4 * ours == theirs


def test_quantized_weights_are_charged_as_stored(checkpoint: Checkpoint) -> None:
    name = checkpoint.architecture.encoder_block(0).layers[0]
    plain = summarize_model(checkpoint.model, checkpoint.architecture)
    kept = {name: StoredWeight(bits_per_weight=3, weight_bits=1234.0)}
    packed = summarize_model(checkpoint.model, checkpoint.architecture, stored=kept)
    (layer,) = (layer for layer in packed.layers if layer.name == name)
    assert (layer.bits_per_weight, layer.weight_bits) == (3, 1234.0)
    saved = model_size(plain).bytes - model_size(packed).bytes
    assert saved == pytest.approx((layer.weights * 32 - 1234) / 8, abs=1)


def test_what_a_layer_reads_is_charged_as_quantized(checkpoint: Checkpoint) -> None:
    architecture = checkpoint.architecture
    name = architecture.encoder_block(0).layers[0]
    kept = StoredWeight(
        4, 1000.0, input_bits=8, float_columns=3, float_column_bits=16, runtime_op_macs=7,
        runtime_op_bits=50.0,
    )  # fmt: skip
    summary = summarize_model(checkpoint.model, architecture, stored={name: kept})
    (layer,) = (layer for layer in summary.layers if layer.name == name)
    assert (layer.input_bits, layer.output_bits) == (8, 32)
    assert (layer.float_columns, layer.float_column_bits) == (3, 16)
    assert (layer.runtime_op_macs, layer.runtime_op_bits) == (7, 50.0)
    others = [layer for layer in summary.layers if layer.name != name]
    assert {layer.input_bits for layer in others} == {32}
    assert {record.query_bits for record in summary.attentions} == {32}


def test_runtime_ops_between_layers_are_counted_where_they_run(checkpoint: Checkpoint) -> None:
    architecture = checkpoint.architecture
    extra = [
        runtime_op_record(architecture, f"{place}.rotation", macs_per_row=100, stored_bits=800.0)
        for place in (architecture.encoder_block(0).module, architecture.head)
    ]
    plain, rotated = (
        cost_of(summarize_model(checkpoint.model, architecture, runtime_ops=ops), [WORKLOAD])
        for ops in ((), extra)
    )
    assert rotated.macs.encoder.runtime_ops == 50 * 100
    assert rotated.macs.prefill.runtime_ops == 2 * 100
    assert rotated.macs.decode.runtime_ops == 6 * 100
    assert rotated.size.bytes - plain.size.bytes == 200
    assert rotated.size.parameters == plain.size.parameters
    more = rotated.memory_io.total - plain.memory_io.total
    assert more == pytest.approx(8 * 100)


def test_a_name_outside_the_map_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(KeyError, match="elsewhere"):
        summarize_model(
            checkpoint.model, checkpoint.architecture, stored={"elsewhere": StoredWeight(4, 4)}
        )


def test_tied_head_is_stored_with_the_embedding(checkpoint: Checkpoint) -> None:
    summary = summarize_model(checkpoint.model, checkpoint.architecture)
    (head,) = (layer for layer in summary.layers if layer.role == "head")
    assert head.tied_to == checkpoint.architecture.embedding

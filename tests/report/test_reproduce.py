"""The command in a record's page composes to the settings of the record."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace

import pytest
from options import composed

from edge_asr.report.reproduce import COMMAND, command_of, words_of
from edge_asr.store.record import Record

RecordMaker = Callable[..., Record]
COMMANDS = [
    "",
    "method=gptq bits=3 group_size=32 symmetric=true",
    "method=awq method/rounding=gptq method.rounding.damping=0.5",
    "method=spqr method/range=mse_double_quant bits=2",
    "method=spqr method/rounding=nearest",
    "method=quarot scheme=w4a4 model=moonshine_micro encoder.bits=8 decoder.act_bits=null",
    "method=rtn 'scheme.rules=[{role: fc2, bits: 8}, {name: \"*.0.*\", bits: float}]'",
    "method=gptq target=ggml_q4_0",
    "method=rtn target=onnx_nbits_a8 group_size=64",
    "method=rtn target=onnx_nbits 'target.bits=[8,4]' target.runtime_ops=false",
    "method=rtn 'target.bits=[8]'",
    "model=custom 'model.path=a folder/with (spaces), é' model.name=mine data.limit=7",
    "data=manifest 'data.path=it'\"'\"'s.jsonl' data.where.set=a data.where.speaker=1688",
    "data=manifest data.path=a.jsonl 'data.where.set=[a,b]' data.split_by=set protocol=plain",
    "method=float batch_size=1 max_new_tokens=3 decode.language=de float_bits=16 device=cuda:0",
    "calibration=hf calibration.path=owner/name calibration.revision=94e0102 protocol.seed=2",
]


@pytest.mark.parametrize("typed", COMMANDS)
def test_the_command_gives_the_settings_again(typed: str) -> None:
    settings = composed(*shlex.split(typed)).provenance()
    words = words_of(settings)
    again = shlex.split(" ".join(shlex.quote(word) for word in words))
    assert composed(*again).provenance() == settings


def test_the_command_names_the_commit_and_is_none_of_an_older_record(
    make_record: RecordMaker,
) -> None:
    record = make_record(config=composed("method=gptq", "bits=3").provenance())
    assert command_of(record) == (
        f"git checkout abc123\n{COMMAND} model=whisper_micro method=gptq scheme=default "
        "data=embedded calibration=embedded protocol=open_asr_2024 bits=3"
    )
    assert command_of(replace(record, schema_version=3)) is None

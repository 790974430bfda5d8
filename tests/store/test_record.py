from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.cost.model import cost_of
from edge_asr.cost.records import LayerRecord, ModelSummary, Workload
from edge_asr.errors import UserError
from edge_asr.quant.formats import ActivationGrid
from edge_asr.store.environment import current_environment
from edge_asr.store.files import write_text_atomically
from edge_asr.store.fingerprint import fingerprint
from edge_asr.store.phases import PhaseSeconds
from edge_asr.store.record import (
    Average,
    CostSection,
    DataSection,
    Interval,
    LayerSection,
    MethodSection,
    ModelSection,
    Record,
    Result,
    Stage,
    find_records,
    now,
    read_record,
    write_record,
)


def full_record(**changes: Any) -> Record:
    layer = LayerRecord("l", "decoder", "head", (4, 4), "token", 64, 4, runtime_op_macs=3)
    cost = cost_of(ModelSummary((layer,), (), 1, 32), [Workload(1.5, {"frame": 3}, 2, 3)])
    interval = Interval(10.0, 9.0, 11.5)
    record = Record(
        run_id="0123456789ab",
        created=now(),
        config={"model": {"name": "tiny"}, "bits": 4, "sets": ["a"], "none": None},
        environment=current_environment("cpu", 2),
        model=ModelSection("tiny", "embedded", "whisper", 17, 32, "ff"),
        method=MethodSection(
            "awq",
            4,
            32,
            False,
            (LayerSection("l", "decoder", "head", 16, 4, 4.5, 0.2, 0.1, "W4 g32 A8 sym"),),
            activation=dataclasses.asdict(ActivationGrid(8, True)),
            scheme="W4 g32 A8 sym",
            parts={"transform": {"name": "awq", "version": 1, "n_grid": 20}},
        ),
        results=(
            Result(
                "speech",
                "open_asr_2024",
                9,
                30.5,
                wer=10.0,
                interval=interval,
                float_wer=9.0,
                difference=Interval(1.0, -0.5, 2.0),
                damaged=("clip <&> 3",),
            ),
        ),
        batch_size=1,
        averages=(Average("open_asr_2024", interval),),
        cost=CostSection(cost, cost),
        stages=(Stage("quantize", 1.25, 1 << 20, stored=True), Stage("score", 0.5)),
        seeds={"bootstrap": 0},
        warnings=("Übergröße",),
        keys={"transcribe": "ab" * 16},
        data=(
            DataSection(
                "speech",
                9,
                "cd" * 16,
                {"split": "test"},
                "MODEL_a_DATASET_b.jsonl",
                PhaseSeconds(0.1, 0.2, 0.3, 0.4, 0.5),
                7.5,
            ),
        ),
    )
    return dataclasses.replace(record, **changes)


def edited(tmp_path: Path, edit: Any) -> Path:
    path = write_record(tmp_path, full_record())
    plain = json.loads(path.read_text())
    edit(plain)
    path.write_text(json.dumps(plain))
    return path


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    record = full_record()
    path = write_record(tmp_path / "new" / "folder", record)
    assert path.name == "record.json"
    assert read_record(path) == record
    assert list(path.parent.iterdir()) == [path]


def test_numpy_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    config: dict[str, Any] = {"count": np.int64(3), "rate": np.float32(0.5)}
    back = read_record(write_record(tmp_path, full_record(config=config)))
    assert back.config == {"count": 3, "rate": 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_do_not_exist_become_null(value: float, tmp_path: Path) -> None:
    result = dataclasses.replace(full_record().results[0], wer=value)
    path = write_record(tmp_path, full_record(results=(result,), config={"x": [value]}))
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    back = read_record(path)
    assert back.results[0].wer is None
    assert back.config == {"x": [None]}


def test_a_record_that_would_not_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stages\[0\].seconds"):
        write_record(tmp_path, full_record(stages=(Stage("quantize", math.nan),)))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_record(tmp_path: Path) -> None:
    path = write_record(tmp_path, full_record())
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "half a record \ud800")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _write_often(path: Path, text: str) -> None:
    for _ in range(30):
        write_text_atomically(path, text)


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = ["a" * 200_000, "b" * 100_000]
    write_text_atomically(path, texts[0])
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, text)) for text in texts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda plain: plain.pop("model"), "model: is missing"),
        (lambda plain: plain["model"].pop("family"), "model.family: is missing"),
        (lambda plain: plain["results"][0].update(wer="10"), r"results\[0\].wer='10': .* number"),
        (
            lambda plain: plain["results"][0].update(utterances=True),
            r"results\[0\].utterances=True",
        ),
        (lambda plain: plain["results"][0].update(wer=math.nan), r"wer=nan: .* finite"),
        (lambda plain: plain["results"][0].update(utterances=9.0), r"utterances=9.0: .* integer"),
        (lambda plain: plain["stages"][0].update(seconds=None), r"stages\[0\].seconds=None: "),
        (lambda plain: plain["stages"][0].update(seconds=True), r"stages\[0\].seconds=True: "),
        (lambda plain: plain["results"][0].update(wre=1.0), r"results\[0\].wre=1.0: is no field"),
        (lambda plain: plain["seeds"].update(a=0.5), r"seeds.a=0.5: .* integer"),
        (lambda plain: plain.update(results={}), r"results={}: .* array"),
        (
            lambda plain: plain.update(schema_version=0),
            r"schema_version: 0 is none of \(1, 2, 3, 4, 5\)",
        ),
        (
            lambda plain: plain.update(schema_version=6),
            r"schema_version: 6 is none of \(1, 2, 3, 4, 5\)",
        ),
        (lambda plain: plain.update(schema_version=True), "schema_version=True: "),
        (lambda plain: plain.update(schema_version=[1]), r"schema_version: \[1\] is none of"),
        (lambda plain: plain.pop("schema_version"), "schema_version: None is none of"),
        (lambda plain: plain["keys"].update(a=1), r"keys.a=1: .* string"),
        (lambda plain: plain["method"].update(activation=8), r"method.activation=8: .* object"),
        (lambda plain: plain["method"].update(name=["x" * 999]), r"name=\['x{58}: .* string"),
        (lambda plain: plain.update({"a\nb\x1b": 1}), r"json: a\\nb\\x1b=1: is no field"),
        (lambda plain: plain.update(batch_size=0), "batch_size=0: .* greater than or equal to 1"),
        (lambda plain: plain.update(created="2026-01-01"), "no time zone"),
        (lambda plain: plain.update(created="now"), "'now'"),
        (lambda plain: plain["results"][0]["interval"].update(low=99.0), "low 99.0 is above"),
        (lambda plain: plain["results"][0]["interval"].update(level=95), "interval.level=95: "),
        (lambda plain: macs_of(plain).update(layers=-1), "macs.encoder.layers=-1: "),
        (lambda plain: macs_of(plain).update(online=3.0), "macs.encoder.online=3.0: is no field"),
    ],
)
def test_a_bad_field_is_named_with_its_file(edit: Any, message: str, tmp_path: Path) -> None:
    path = edited(tmp_path, edit)
    with pytest.raises(UserError, match=message) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def macs_of(plain: Any) -> Any:
    return plain["cost"]["quantized"]["macs"]["encoder"]


def test_a_file_that_is_no_record_is_a_user_error(tmp_path: Path) -> None:
    path = write_record(tmp_path, full_record())
    whole = path.read_bytes()
    bad = (
        b"", b"3", b"null", b"[]", b"[" + whole + b"]", whole[:-20], whole + b"{",
        b"\xef\xbb\xbf" + whole, b'"\xff"', b'"\\ud800"', b"9" * 10_000, b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"name": "another program", "version": "1.0"}',
        b'{"name": "another program", "schema_version": 1}',
    )  # fmt: skip
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"record\.json: ") as caught:
            read_record(path)
        (line,) = str(caught.value).splitlines()
        assert len(line) < 500
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="cannot be read as a run record") as caught:
            read_record(absent)
        assert len(str(caught.value).splitlines()) == 1


def test_characters_that_json_lacks_are_written_as_they_are_escaped(tmp_path: Path) -> None:
    """As of a path that is no UTF-8."""
    config = {"path": "caf\udce9", "\udce9": 1}
    back = read_record(write_record(tmp_path, full_record(config=config)))
    assert back.config == {"path": r"caf\udce9", r"\udce9": 1}


def test_defaults_may_be_missing(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda plain: plain.pop("averages"))
    assert read_record(path).averages == ()
    path = edited(tmp_path, lambda plain: plain["method"].pop("activation"))
    assert read_record(path).method.activation is None


NEW_IN_2 = {
    (): ("keys", "data"),
    ("method",): ("scheme", "parts"),
    ("method", "layers", 0): ("format",),
    ("stages", 0): ("stored",),
    ("stages", 1): ("stored",),
}


def test_a_record_of_schema_4_has_no_phases(tmp_path: Path) -> None:
    def as_before(plain: Any) -> None:
        plain["schema_version"] = 4
        for name in ("seconds", "rtfx"):
            del plain["data"][0][name]

    (data,) = read_record(edited(tmp_path, as_before)).data
    assert (data.seconds, data.rtfx) == (None, None)


@pytest.mark.parametrize("version", [1, 2])
def test_a_record_of_an_earlier_schema_is_read(version: int, tmp_path: Path) -> None:
    def as_before(plain: Any) -> None:
        plain["schema_version"] = version
        for cost, phase in product(("quantized", "baseline"), ("encoder", "prefill", "decode")):
            macs = plain["cost"][cost]["macs"][phase]
            macs["online"] = macs.pop("runtime_ops")
        for place, names in NEW_IN_2.items() if version == 1 else ():
            section = plain
            for step in place:
                section = section[step]
            for name in names:
                del section[name]

    record = read_record(edited(tmp_path, as_before))
    if version == 1:
        assert (record.keys, record.data, record.method.parts) == ({}, (), {})
        assert (record.method.scheme, record.method.layers[0].format) == (None, None)
        assert not any(stage.stored for stage in record.stages)
    new = full_record(created=record.created)
    assert record.results == new.results
    assert record.cost == new.cost
    assert record.cost is not None
    assert record.cost.quantized.macs.decode.runtime_ops == 6
    assert record.method.activation == new.method.activation
    # It stays what it was.
    again = read_record(write_record(tmp_path, record))
    assert again == record
    assert again.schema_version == version


def test_records_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b", "a/deep", "c"):
        write_record(tmp_path / name, full_record())
    found = [str(path.parent.relative_to(tmp_path)) for path in find_records(tmp_path)]
    assert found == ["a/deep", "b", "c"]
    with pytest.raises(UserError, match="not a folder"):
        find_records(tmp_path / "absent")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
configs = st.dictionaries(st.text(), json_values, max_size=4)


@settings(deadline=None)
@given(configs, st.randoms())
def test_a_fingerprint_ignores_the_order_of_keys(config: dict[str, Any], random: Any) -> None:
    items = list(config.items())
    random.shuffle(items)
    found = fingerprint(config)
    assert fingerprint(dict(items)) == found
    assert len(found) == 32
    assert set(found) <= set("0123456789abcdef")


def test_a_fingerprint_depends_on_values_and_order_of_lists() -> None:
    values: list[Any] = [
        {}, [], None, 4, 3, True, "4", 0.5, math.inf, -math.inf, [1, 2], [2, 1], {"a": 1}, {"b": 1},
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)


def test_a_fingerprint_refuses_what_has_no_exact_form() -> None:
    for value in (Path("a"), {1, 2}, object()):
        with pytest.raises(TypeError, match="no place in a fingerprint"):
            fingerprint({"x": value})


def test_effective_bits_weigh_layers_by_their_weights() -> None:
    layers = (
        LayerSection("a", "encoder", "fc1", 300, 4, 4.5),
        LayerSection("b", "encoder", "fc2", 100, 8, 8.5),
    )
    assert MethodSection("rtn", 4, 64, True, layers).effective_bits == 5.5
    assert MethodSection("float", 32, None, None).effective_bits == 32


def test_environment_names_versions_but_not_the_machine() -> None:
    environment = current_environment("cpu", 2)
    assert set(environment.libraries) >= {"torch", "transformers", "numpy"}
    assert environment.platform.count(" ") == 1
    assert environment.git_commit is None or len(environment.git_commit) >= 40


def test_output_error_ratio_is_of_sums_and_needs_every_layer() -> None:
    layers = (
        LayerSection("a", "encoder", "fc1", 10, 4, 4.5, 8.0, 2.0),
        LayerSection("b", "encoder", "fc2", 10, 4, 4.5, 2.0, 3.0),
    )
    assert MethodSection("gptq", 4, None, False, layers).output_error_ratio == 0.5
    assert MethodSection("gptq", 4, None, False, layers).output_error == 5.0
    unknown = (*layers, LayerSection("c", "encoder", "fc1", 10, 4, 4.5))
    assert MethodSection("gptq", 4, None, False, unknown).output_error_ratio is None
    assert MethodSection("float", 32, None, None).output_error_ratio is None

"""What is left of a sweep, from records of runs already made."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from edge_asr.experiments.estimate import Work, estimate, read_records, steps_of
from edge_asr.store.record import Record

PUBLISHED = Path(__file__).parents[2] / "results/test_other_100_common_voice_100"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return read_records(PUBLISHED)


def work(record: Record, step: str, key: str, clips: int, method: str = "float") -> Work:
    model = record.model
    return Work(step, key, model.weights_sha256, model.parameters, method, clips)


def test_the_steps_behind_a_record(records: list[Record]) -> None:
    record = next(one for one in records if one.method.name == "gptq")
    seconds = {stage.name: stage.seconds for stage in record.stages}
    transcribed = sum(value for name, value in seconds.items() if name.startswith("transcribe"))
    found = {one.step: (one.method, one.clips, one.seconds) for one in steps_of(record)}
    assert found == {
        "calibrate": ("float", 64, seconds["calibrate"]),
        "quantize": ("gptq", 64, seconds["quantize"]),
        "transcribe": ("float", 200, transcribed),
        "score": ("float", 200, seconds["score"]),
    }


def test_it_is_what_the_same_took_on_the_same_model(records: list[Record]) -> None:
    own = [one for one in records if one.model.name == "moonshine-tiny"]
    gptq = [one for one in own if one.method.name == "gptq"]
    made = [one for record in gptq for one in steps_of(record) if one.step == "quantize"]
    left = estimate([work(own[0], "quantize", "a", 128, "gptq")], records)
    assert left.seconds == pytest.approx(128 / 64 * median(one.seconds for one in made))
    sizes = [one.cost.quantized.size.bytes for one in own if one.cost and one.method.layers]
    assert left.bytes == round(median(sizes))
    peaks = [s.peak_memory_bytes for one in own for s in one.stages if s.peak_memory_bytes]
    assert left.memory_bytes == max(peaks)
    assert left.unknown == 0


def test_each_step_counts_once_and_finished_ones_do_not(records: list[Record]) -> None:
    one = work(records[0], "transcribe", "a", 100)
    done = Work(**{**vars(one), "key": "b", "done": True})
    assert estimate([one, one, done], records) == estimate([one], records)
    assert estimate([done], records).seconds == 0


def test_of_another_model_it_is_in_proportion_to_parameters(records: list[Record]) -> None:
    double = Work("transcribe", "a", "another", 2 * records[0].model.parameters, "float", 100)
    only = [records[0]]
    same = estimate([work(records[0], "transcribe", "a", 100)], only)
    assert estimate([double], only).seconds == pytest.approx(2 * same.seconds)


def test_of_what_nobody_has_made_it_says_so(records: list[Record], tmp_path: Path) -> None:
    new = work(records[0], "quantize", "a", 64, "omniquant")
    assert estimate([new], records).unknown == 1
    nothing = estimate([new], read_records(tmp_path / "none"))
    assert (nothing.seconds, nothing.unknown, nothing.memory_bytes) == (0, 1, None)
    assert nothing.bytes == 2 * records[0].model.parameters

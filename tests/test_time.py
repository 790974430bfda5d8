"""`python -m edge_asr.time`: what it measures, in which order, and what it says of mistakes.

No test looks at how long anything took.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import soundfile
from export.models import GROUPS, SIGNED, quantized
from tiny import tiny_moonshine, tiny_whisper, tone

from edge_asr.audio import SAMPLE_RATE
from edge_asr.errors import FailedRuns, UserError
from edge_asr.export.exported import EXPORT
from edge_asr.export.write import export
from edge_asr.models.files import find_files
from edge_asr.models.loading import load_checkpoint
from edge_asr.quant.formats import Grid
from edge_asr.quant.target import Target
from edge_asr.store.phases import PhaseSeconds
from edge_asr.store.plain_json import parse
from edge_asr.time import main
from edge_asr.timing.candidates import Comparison, candidates, names_of
from edge_asr.timing.measure import measure_all, measure_alone, turns, write_clips
from edge_asr.timing.results import Candidate, ClipTimes, Job, Measured, Times
from edge_asr.timing.table import ms_per_token, number, rtfx

pytest.importorskip("onnxruntime")

SHORT = ("--repeats", "1", "--threads", "1", "--seconds", "0.5,1")
BUILD = {"whisper": tiny_whisper, "moonshine": tiny_moonshine}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whisper` and `moonshine`, float checkpoints, and `NAME-4bit`, what was exported of them."""
    folder = tmp_path_factory.mktemp("work")
    for name, build in BUILD.items():
        own = load_checkpoint(str(build(folder / name)))
        blocks = quantized(own, Grid(4, granularity="group", group_size=16))
        export(blocks, Target(name="onnx_nbits"), folder / f"{name}-4bit")
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a mistake."""
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_a_table_and_all_repeats(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "times.json"
    words = [str(work / "moonshine-4bit"), *SHORT, "--repeats", "2", "--out", str(out)]
    words += ["--against", "float,torch"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    headings = " ".join(shown.split("\n")[1:3]).split()
    for word in ("model", "threads", "disk", "load", "encoder", "0.5", "1", "decoder", "ms/token"):
        assert word in headings
    for word in ("RTFx", "peak", "MB", "measured on"):
        assert word in shown
    times = parse(Times, out.read_bytes(), out)
    order = [(one.repeat, one.candidate) for one in times.measurements]
    names = ["moonshine-4bit", "moonshine float", "moonshine float32"]
    assert order == [(repeat, name) for repeat in (1, 2) for name in names]
    for one in times.measurements:
        measured = one.measured
        assert [clip.audio_seconds for clip in measured.clips] == [0.5, 1]
        assert min(clip.steps for clip in measured.clips) >= 1
        for seconds in (clip.seconds for clip in measured.clips):
            assert min(seconds.features, seconds.encoder, seconds.decoder) > 0
        assert measured.load_seconds > 0
        assert measured.peak_memory_bytes is not None
        assert measured.memory_before_bytes is not None
        assert measured.peak_memory_bytes > measured.memory_before_bytes > 0
    by_name = {one.name: one for one in times.candidates}
    for name in names:
        assert name in shown
    # In floats the runtimes hear the same.
    texts = {
        one.candidate: [clip.text for clip in one.measured.clips] for one in times.measurements
    }
    assert texts["moonshine float"] == texts["moonshine float32"]
    assert by_name["moonshine-4bit"].formats == "W4 g16"
    weights = by_name["moonshine float32"].sha256["model.safetensors"]
    assert len(weights) == len(by_name["moonshine-4bit"].sha256["encoder.onnx"]) == 64
    assert times.command.startswith("python -m edge_asr.time ")
    assert times.machine.processors >= 1
    assert "onnxruntime" in times.environment.libraries


def test_audio_is_heard_and_a_window_is_no_longer_than_it_is(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav = tmp_path / "clip.wav"
    soundfile.write(wav, tone(0.4), SAMPLE_RATE)
    out = tmp_path / "times.json"
    words = [work / "whisper-4bit", *SHORT, "--against", "torch_bf16", "--audio", wav]
    assert main([*map(str, words), "--out", str(out)]) == 0
    times = parse(Times, out.read_bytes(), out)
    assert [one.candidate for one in times.measurements] == ["whisper-4bit", "whisper bfloat16"]
    assert times.candidates[1].dtype == "bfloat16"
    assert times.audio.name == str(wav)
    capsys.readouterr()
    assert main([*map(str, words), "--seconds", "3"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: --seconds=3: whisper-4bit hears 2 s at once; give at most that"


def test_every_candidate_comes_once_before_any_comes_again() -> None:
    order = list(turns(["a", "b", "c"], [1, 2], 2))
    assert order[:6] == [
        (1, 1, "a"),
        (1, 1, "b"),
        (1, 1, "c"),
        (1, 2, "a"),
        (1, 2, "b"),
        (1, 2, "c"),
    ]
    assert [(2, *one[1:]) for one in order[:6]] == order[6:]


def test_mistakes_in_options_are_one_line(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = work / "moonshine-4bit"
    for words, message in (
        (("--against", "torhc"), "--against=torhc: did you mean torch?"),
        (("--threads", "0"), "--threads=0: give numbers from 1 to"),
        (("--threads", "1000"), "--threads=1000: give numbers from 1 to"),
        (("--threads", "1.5"), "--threads=1.5: give"),
        (("--seconds", "5,ten"), "--seconds=ten: give numbers from 0.1 to 600"),
        (("--repeats", "1,2"), "--repeats=1,2: give one number"),
        (("--audio", tmp_path / "no.wav"), "cannot be heard"),
        (("--checkpoint", work / "whisper"), "is not what"),
    ):
        assert message in told(capsys, folder, *words), message


def test_folders_that_cannot_be_timed_are_one_line(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{tmp_path}: has no {EXPORT}" in told(capsys, tmp_path)
    assert "holds a model whose quantization is simulated" in told(capsys, _saved(work, tmp_path))
    broken = tmp_path / "broken"
    shutil.copytree(work / "moonshine-4bit", broken)
    (broken / "decoder.onnx").write_bytes(b"")
    assert "decoder.onnx: has 0 bytes" in told(capsys, broken)
    packed = tmp_path / "packed"
    own = load_checkpoint(str(work / "moonshine"))
    export(quantized(own, Grid(4, **SIGNED, **GROUPS)), Target(name="compressed_tensors"), packed)
    said = told(capsys, packed)
    assert "is exported for compressed_tensors, which no runtime here runs" in said
    assert "onnx_nbits" in said


def _saved(work: Path, folder: Path) -> Path:
    from edge_asr.quant.model_folder import save_model

    saved = folder / "saved"
    saved.mkdir()
    own = load_checkpoint(str(work / "moonshine"))
    save_model(saved, quantized(own, Grid(4, granularity="group", group_size=16)))
    return saved


def test_missing_packages_and_checkpoints_are_told(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    folder = work / "whisper-4bit"
    said = told(capsys, folder, "--against", "faster_whisper")
    assert "needs faster_whisper, which is not installed; pip install" in said
    comparison = Comparison(None, (find_files(str(work / "whisper")),), tmp_path)
    found = candidates([folder], comparison)
    assert [one.runtime for one in found] == ["onnxruntime", "onnxruntime", "torch", "torch"]
    assert any("needs faster_whisper" in one for one in comparison.left_out)
    # Nobody says where the float model is, and it is not where it was.
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    plain = json.loads((moved / EXPORT).read_text())
    (moved / EXPORT).write_text(json.dumps(plain | {"source": "somebody/whisper"}))
    comparison = Comparison(None, (), tmp_path)
    assert [one.name for one in candidates([moved], comparison)] == ["moved"]
    assert "name it with --checkpoint" in comparison.left_out[0]
    assert "name it with --checkpoint" in told(capsys, moved, "--against", "torch")
    # It is there, and another one.
    other = str(work / "moonshine")
    (moved / EXPORT).write_text(json.dumps(plain | {"source": other}))
    said = told(capsys, moved, "--against", "torch")
    assert f"{other!r} is not what it was made of, config.json has another" in said
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "needs onnxruntime, which is not installed" in told(capsys, folder)


def test_nothing_is_measured_twice(work: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(work / "moonshine-4bit", again)
    comparison = Comparison(None, (), tmp_path)
    found = candidates([work / "moonshine-4bit", again], comparison)
    assert [one.name for one in found] == [
        "moonshine-4bit", "again", "moonshine float", "moonshine float32", "moonshine bfloat16",
    ]  # fmt: skip
    assert set(comparison.left_out) == {"faster_whisper: knows Whisper only, not moonshine"}
    assert names_of([Path("a/x"), Path("b/x")]) == ["a/x", "b/x"]


def test_a_process_that_fails_is_told(work: Path, tmp_path: Path) -> None:
    write_clips(None, [0.5], tmp_path / "clips.npz")
    folder = str(work / "moonshine-4bit")
    job = Job(Candidate("x", "nothing", "", folder, 0, {}), 1, str(tmp_path / "clips.npz"))
    with pytest.raises(UserError, match="runtime=nothing"):
        measure_alone(job, tmp_path)


def test_what_fails_takes_nothing_else_with_it(work: Path, tmp_path: Path) -> None:
    write_clips(None, [0.5], tmp_path / "clips.npz")
    exported = str(work / "moonshine-4bit")
    sound = Candidate("sound", "onnxruntime", "", exported, 0, {})
    broken = Candidate("broken", "torch", "", exported, 0, {}, weights=str(tmp_path / "nothing"))
    said: list[str] = []
    order = list(turns(["broken", "sound"], [1], 2))
    found = measure_all([broken, sound], order, tmp_path / "clips.npz", said.append)
    assert [(one.candidate, one.repeat) for one in (next(found), next(found))] == [
        ("sound", 1),
        ("sound", 2),
    ]
    with pytest.raises(FailedRuns, match="1 of what was to be measured failed"):
        next(found)
    assert said[1].startswith("broken: the process that measured it ended with 1: ")
    assert [line for line in said if "broken, threads" in line] == [
        "1 of 4: broken, threads 1, repeat 1"
    ]


def test_a_series_goes_on_where_it_was(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder" / "times.json"
    words = [str(work / "moonshine-4bit"), "--threads", "1", "--seconds", "0.5"]
    words += ["--against", "float", "--out", str(out)]
    same = [str(work / ".." / work.name / "moonshine-4bit"), *words[1:]]
    assert main([*words, "--repeats", "1"]) == 0
    first = parse(Times, out.read_bytes(), out)
    # As if it had been stopped before the last one.
    plain = json.loads(out.read_text())
    del plain["measurements"][-1]
    out.write_text(json.dumps(plain))
    capsys.readouterr()
    assert main([*same, "--repeats", "2"]) == 0
    shown = capsys.readouterr()
    assert "1 are measured already; remove it to measure anew" in shown.err
    assert "1 of 3: moonshine float, threads 1, repeat 1" in shown.err
    assert "Medians of 2 processes" in shown.out
    times = parse(Times, out.read_bytes(), out)
    assert [(one.candidate, one.repeat) for one in times.measurements] == [
        ("moonshine-4bit", 1), ("moonshine float", 1),
        ("moonshine-4bit", 2), ("moonshine float", 2),
    ]  # fmt: skip
    assert times.measurements[0] == first.measurements[0]
    other = [str(work / "whisper-4bit"), *words[1:]]
    said = told(capsys, *other)
    assert f"--out={out}: holds measurements with another candidates.moonshine float; give" in said
    assert parse(Times, out.read_bytes(), out) == times
    assert f"--out={tmp_path}: is no file" in told(capsys, *words[:-1], tmp_path)
    assert f"--out={out / 'x'}: is no file" in told(capsys, *words[:-1], out / "x")


@pytest.mark.parametrize("older", [False, True])
def test_faster_whisper_hears_as_greedily(work: Path, tmp_path: Path, older: bool) -> None:
    pytest.importorskip("faster_whisper")
    folder = work / "whisper"
    if older:  # its tokenizer is in two files
        folder = tmp_path / "older"
        shutil.copytree(work / "whisper", folder)
        tokenizer = load_checkpoint(str(folder)).tokenizer
        tokenizer.backend_tokenizer.model.save(str(folder))
        (folder / "tokenizer.json").unlink()
    files = find_files(str(folder))
    comparison = Comparison(("faster_whisper",), (files,), tmp_path)
    _, own = candidates([work / "whisper-4bit"], comparison)
    write_clips(None, [0.5, 1], tmp_path / "clips.npz")
    found = measure_alone(Job(own, 1, str(tmp_path / "clips.npz")), tmp_path)
    assert min(clip.steps for clip in found.clips) >= 1
    assert min(clip.seconds.encoder for clip in found.clips) > 0
    assert own.bytes == sum(path.stat().st_size for path in Path(str(own.weights)).iterdir())


def test_figures_of_what_was_measured() -> None:
    clips = tuple(
        ClipTimes(audio, PhaseSeconds(0.0, 0.1, 0.2, decoder, 0.1), steps, "")
        for audio, decoder, steps in ((5.0, 0.3, 4), (10.0, 0.5, 6))
    )
    measured = Measured(1.0, None, None, clips)
    assert ms_per_token(measured) == pytest.approx(80)
    assert rtfx(measured) == pytest.approx(15 / 1.6)
    nothing = dataclasses.replace(measured, clips=(dataclasses.replace(clips[0], steps=0),))
    assert ms_per_token(nothing) is None
    assert [number(one) for one in (1234.5, 12.34, 1.234)] == ["1234", "12.3", "1.23"]

"""whisper.cpp: a model hears through its file what it hears in the simulation."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from export.models import GGML, READ_IN_BLOCKS, WIDTHS, for_ggml
from options import composed
from shared import shared
from tiny import tone
from torch import Tensor, nn

from edge_asr.config import target_named
from edge_asr.errors import UserError
from edge_asr.experiments.plan import check_settings, make_plan
from edge_asr.export.formats.ggml import MODEL, packed_blocks, read_whole
from edge_asr.export.write import export, write_for
from edge_asr.models.decoding import StackDtypes
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.activation import InputQuantizer
from edge_asr.quant.grid import minimum_of
from edge_asr.quant.range.minmax import minmax_parameters
from edge_asr.quant.weight import QuantizedWeight, round_nearest
from edge_asr.runtimes.base import Transcript
from edge_asr.runtimes.torch_greedy import TorchRuntime
from edge_asr.runtimes.whisper_cpp import WhisperCpp
from edge_asr.runtimes.whisper_library import WhisperLibrary
from edge_asr.store.artefacts import Store

low_level = pytest.importorskip("_pywhispercpp")
pytest.importorskip("gguf")
TOKENS = [3, 5, 7, 4, 250]
CLIPS = [tone(seconds, 200.0 * seconds) for seconds in (0.7, 1.3, 1.0)]
KINDS = {"ggml_q4_0": 2, "ggml_q4_1": 3, "ggml_q5_0": 6, "ggml_q5_1": 7, "ggml_q8_0": 8}


class Memory(ctypes.Structure):
    """`ggml_init_params` of ggml.h."""

    _fields_ = (("size", ctypes.c_size_t), ("at", ctypes.c_void_p), ("no_data", ctypes.c_bool))


def product_of_ggml(kind: int, packed: np.ndarray, rows: int, states: Tensor) -> Tensor:
    """The product [tokens, rows] of ggml itself, on the processor."""
    ggml = ctypes.CDLL(low_level.__file__)
    names = ("ggml_new_tensor_2d", "ggml_mul_mat", "ggml_new_graph", "ggml_get_data", "ggml_init")
    for name in names:
        getattr(ggml, name).restype = ctypes.c_void_p
    ggml.ggml_init.argtypes = [Memory]
    context = ctypes.c_void_p(ggml.ggml_init(Memory(1 << 24, None, False)))

    def tensor(kind: int, count: int, values: np.ndarray) -> ctypes.c_void_p:
        sizes = (ctypes.c_int64(states.shape[1]), ctypes.c_int64(count))
        made = ctypes.c_void_p(ggml.ggml_new_tensor_2d(context, kind, *sizes))
        data = np.ascontiguousarray(values)
        pointer = ctypes.c_void_p(ggml.ggml_get_data(made))
        ctypes.memmove(pointer, data.ctypes.data, data.nbytes)
        return made

    weight, inputs = tensor(kind, rows, packed), tensor(0, len(states), states.numpy())
    product = ctypes.c_void_p(ggml.ggml_mul_mat(context, weight, inputs))
    graph = ctypes.c_void_p(ggml.ggml_new_graph(context))
    ggml.ggml_build_forward_expand(graph, product)
    assert ggml.ggml_graph_compute_with_ctx(context, graph, 1) == 0
    found = torch.empty(len(states), rows)
    data = ctypes.c_void_p(ggml.ggml_get_data(product))
    ctypes.memmove(found.data_ptr(), data, 4 * found.numel())
    ggml.ggml_free(context)
    return found


def computed_by_ggml(states: Tensor, weight: QuantizedWeight) -> Tensor:
    """Codes of inputs by the scale before that is rounded to float16; minima are multiplied by the
    sum of a block, which is rounded to float16 as well."""
    blocks = states.unflatten(1, (-1, 32))
    scale = blocks.abs().amax(2, keepdim=True) / 127
    codes = (blocks * (1 / scale)).round()
    read = codes * scale.half().float()
    exact = nn.functional.linear(read.flatten(1), weight.dequantize())
    if weight.grid.zero_point != "minimum":
        return exact
    rounded = (scale * codes.sum(2, keepdim=True)).half().float() - read.sum(2, keepdim=True)
    minima = minimum_of(weight.parameters.zero, weight.parameters.scale, weight.grid)
    return exact + nn.functional.linear(rounded.flatten(1), minima)


@pytest.mark.parametrize("target", list(GGML))
@pytest.mark.parametrize("columns", WIDTHS)
def test_a_layer_computes_what_is_simulated(target: str, columns: int) -> None:
    torch.manual_seed(columns)
    values, states, grid = torch.randn(24, columns), torch.randn(7, columns), GGML[target]
    weight = round_nearest(values, minmax_parameters(values, grid), grid)
    found = product_of_ggml(KINDS[target], packed_blocks(weight), len(values), states)
    simulated, floats = (
        nn.functional.linear(read, weight.dequantize())
        for read in (InputQuantizer(READ_IN_BLOCKS)(states), states)
    )
    torch.testing.assert_close(found, computed_by_ggml(states, weight), rtol=1e-4, atol=1e-4)
    # The simulation divides by the scale, which gives a few codes another neighbour, and does not
    # round the sum of a block.
    assert float((found - simulated).norm()) < 0.5 * float((found - floats).norm())


def heard(own: Checkpoint, folder: Path | None = None) -> tuple[list[Transcript], list[Transcript]]:
    """Through the file and in the simulation, at most eight tokens a clip."""
    limits = [8] * len(CLIPS)
    return (
        WhisperCpp(own, exported=folder).transcribe(CLIPS, limits),
        TorchRuntime(own).transcribe(CLIPS, limits),
    )


def test_a_float_model_hears_the_same(wide_whisper: Checkpoint) -> None:
    found, expected = heard(wide_whisper)
    assert found == expected
    assert len({one.tokens for one in found}) > 1


@pytest.mark.parametrize("target", list(GGML))
def test_a_quantized_model_hears_the_same_through_its_file(
    wide_whisper: Checkpoint, tmp_path: Path, target: str
) -> None:
    own = for_ggml(wide_whisper, target)
    found, expected = heard(own, export(own, target_named(target), tmp_path / "out"))
    assert [one.tokens for one in found] == [one.tokens for one in expected]


@pytest.mark.parametrize("target", [None, *GGML])
def test_logits_are_those_of_the_model(
    wide_whisper: Checkpoint, tmp_path: Path, target: str | None
) -> None:
    own = wide_whisper if target is None else for_ggml(wide_whisper, target)
    write_for("whisper_cpp", own, tmp_path)
    model = WhisperLibrary(tmp_path / MODEL, 1)
    inputs = own.architecture.model_inputs(own.feature_extractor, [CLIPS[1]])
    with torch.no_grad():
        expected = own.model(**inputs, decoder_input_ids=torch.tensor([TOKENS])).logits[0]
    found = []
    for _ in range(2):  # a second clip starts anew
        model.encode(inputs["input_features"][0].numpy())
        found.append(torch.from_numpy(np.stack([model.step(token) for token in TOKENS])))
    assert torch.equal(found[0], found[1])
    error = float((found[0] - expected).norm() / expected.norm())
    # Codes of 8 bits fall on the other side where halves change what a layer reads.
    assert error < (0.003 if target is None else 0.03)


def test_limits_and_ends_are_kept(wide_whisper: Checkpoint) -> None:
    limits = [1, 3, 12]
    runtime = WhisperCpp(wide_whisper)
    found = runtime.transcribe(CLIPS, limits)
    assert [one.steps for one in found] == limits
    assert all(one.hit_limit for one in found)
    token = found[2].tokens[4]
    runtime._tokens = type(runtime._tokens)(runtime._tokens.prompt, {token})
    (ended,) = runtime.transcribe(CLIPS[2:], limits[2:])
    first = found[2].tokens.index(token)
    assert (ended.tokens, ended.steps) == (found[2].tokens[:first], first + 1)
    assert not ended.hit_limit


def test_it_says_nothing(wide_whisper: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    WhisperCpp(wide_whisper).warm_up()
    assert capfd.readouterr() == ("", "")


def test_whisper_cpp_reads_the_same_file(wide_whisper: Checkpoint, tmp_path: Path) -> None:
    """By its own interface: type, sizes and the text of every token."""
    own = for_ggml(wide_whisper, "ggml_q5_0")
    write_for("whisper_cpp", own, tmp_path)
    WhisperLibrary(tmp_path / MODEL, 1)  # which leaves it silent
    parameters = low_level.whisper_context_default_params()
    parameters.use_gpu = False
    context = low_level.whisper_init_from_file_with_params(str(tmp_path / MODEL), parameters)
    content = read_whole(tmp_path / MODEL)
    assert low_level.whisper_model_ftype(context) == 8
    assert low_level.whisper_model_n_audio_ctx(context) == content.dimensions.frames
    assert low_level.whisper_model_n_text_ctx(context) == content.dimensions.positions
    assert low_level.whisper_n_vocab(context) == own.model.config.vocab_size
    for number, token in enumerate(content.tokens):
        text = low_level.whisper_token_to_bytes(context, number)
        assert text == token.split(b"\0")[0]  # a text of C ends there
    low_level.whisper_free(context)


def test_what_whisper_cpp_cannot_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"no such file, and long enough to be looked at")
    with pytest.raises(UserError, match=r"cannot load it \(.*bad magic\)\); export it again"):
        WhisperLibrary(tmp_path / MODEL, 1)


def test_other_dtypes_are_refused(wide_whisper: Checkpoint) -> None:
    with pytest.raises(UserError, match=r"computes in its own types on the processor; leave out"):
        WhisperCpp(wide_whisper, StackDtypes("bfloat16", "float32"))


def test_another_family_is_refused_before_the_work(tmp_path: Path) -> None:
    words = ["method=rtn", "target=ggml_q8_0", "runtime=whisper_cpp", "model=moonshine_micro"]
    with pytest.raises(UserError, match=r"runtime=whisper_cpp: runs whisper alone.*moonshine"):
        make_plan(composed(*words), Store(tmp_path))


def test_it_runs_its_own_targets() -> None:
    with pytest.raises(UserError, match="target=" + ", ".join(GGML)):
        check_settings(composed("method=rtn", "runtime=whisper_cpp", "target=onnx_nbits"))
    check_settings(composed("method=float", "runtime=whisper_cpp"))


@pytest.mark.parametrize("target", [None, "ggml_q8_0"])
def test_a_published_model_writes_the_same_texts(target: str | None) -> None:
    own = load_checkpoint(str(shared("checkpoints", "whisper-tiny.en")))
    own = own if target is None else for_ggml(own, target)
    root = shared("speech")
    rows = [json.loads(line) for line in (root / "manifest.jsonl").open(encoding="utf-8")]
    short = [row for row in rows if row["sampling_rate"] == 16000 and row["duration"] < 4][:1]
    clips = [soundfile.read(root / row["audio"], dtype="float32")[0] for row in short]
    runtime = WhisperCpp(own)
    limits = [runtime.token_limit(len(clip)) for clip in clips]
    found, expected = runtime.transcribe(clips, limits), TorchRuntime(own).transcribe(clips, limits)
    assert [one.text for one in found] == [one.text for one in expected]
    assert all(one.text for one in found)

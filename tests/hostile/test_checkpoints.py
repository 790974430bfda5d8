"""Checkpoint folders with one thing wrong in them: one line that names the file and the field."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_asr.errors import UserError
from edge_asr.models.files import INDEX, WEIGHTS, embedded_folder, find_files
from edge_asr.models.loading import load_checkpoint, read_config

CONFIG, GENERATION, PROCESSOR = "config.json", "generation_config.json", "processor_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
FILES = (CONFIG, GENERATION, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG)
GONE = object()  # in place of a field's value
HUGE, LAYERS = 10**12, 100_000
SECONDS = 20

Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """What hangs fails; a model that is far too large would first fill the memory."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def folder_of(family: str, folder: Path) -> Path:
    """The embedded checkpoint of a family; its weights a link, for they are large."""
    source = embedded_folder(f"{family}-micro")
    folder.mkdir()
    for path in source.iterdir():
        if path.name == WEIGHTS:
            (folder / WEIGHTS).symlink_to(path)
        else:
            shutil.copy(path, folder)
    return folder


def replace(folder: Path, name: str, content: bytes | str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def edit(folder: Path, file: str, field: str, value: object) -> None:
    """Change a field of a JSON file; that of the feature extractor in a processor's file."""
    plain = json.loads((folder / file).read_text())
    fields = plain["feature_extractor"] if file == PROCESSOR else plain
    fields[field] = value
    if value is GONE:
        del fields[field]
    replace(folder, file, json.dumps(plain))


def refusal(folder: Path) -> str:
    """What a user reads: one line that names the folder."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"model.path={str(folder)!r}")
    return message.replace(str(folder), "")


def expanded(
    table: dict[tuple[str, str, str], list[object]],
) -> list[tuple[str, str, str, object]]:
    """Family, file, field and value of every case."""
    return [(*key, value) for key, values in table.items() for value in values]


def name_of(value: object) -> str:
    return "gone" if value is GONE else f"{value}"[:24]


NAN = float("nan")
WHISPER_SIZES = (
    "d_model", "vocab_size", "encoder_layers", "decoder_layers", "encoder_ffn_dim",
    "decoder_ffn_dim", "num_mel_bins", "max_source_positions", "max_target_positions",
    "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
MOONSHINE_SIZES = (
    "hidden_size", "vocab_size", "encoder_num_hidden_layers", "decoder_num_hidden_layers",
    "intermediate_size", "encoder_num_attention_heads", "decoder_num_attention_heads",
)  # fmt: skip
ROTARY: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.9,
}

# Every one is refused in a line with the file and the field.
REFUSED: dict[tuple[str, str, str], list[object]] = {
    **{("whisper", CONFIG, name): [HUGE, 0, -1, None, "7"] for name in WHISPER_SIZES},
    **{("moonshine", CONFIG, name): [HUGE, 0, -1, None, "7"] for name in MOONSHINE_SIZES},
    ("whisper", CONFIG, "activation_function"): ["evil", "", None, 3, []],
    ("whisper", CONFIG, "dropout"): [NAN, -1, "x", None],
    ("whisper", CONFIG, "attention_dropout"): [2.0],
    ("whisper", CONFIG, "return_dict"): [False],
    ("whisper", CONFIG, "is_encoder_decoder"): [False, "x"],
    ("whisper", CONFIG, "num_labels"): [HUGE],
    ("whisper", CONFIG, "pad_token_id"): [HUGE, -2, "x", [500], GONE],
    ("whisper", CONFIG, "model_type"): ["evil", None, 3, [], "bert", GONE],
    ("whisper", CONFIG, "quantization_config"): [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "of a later version"},
        [],
        "x",
    ],
    ("moonshine", CONFIG, "encoder_hidden_act"): ["evil", None],
    ("moonshine", CONFIG, "decoder_hidden_act"): ["evil"],
    ("moonshine", CONFIG, "encoder_num_key_value_heads"): [0, 3, "4"],
    ("moonshine", CONFIG, "pad_head_dim_to_multiple_of"): [0, -1, HUGE, "8"],
    ("moonshine", CONFIG, "max_position_embeddings"): [0, -1, 2, None],
    ("whisper", GENERATION, "decoder_start_token_id"): ["x", -1, HUGE, 1.5, True, [501]],
    ("whisper", GENERATION, "eos_token_id"): [None, "x", -1, HUGE, [], ["x"], [None], {}, GONE],
    ("whisper", GENERATION, "bos_token_id"): ["x", -1, HUGE, [1, 2]],
    ("whisper", GENERATION, "pad_token_id"): ["x", -1, HUGE, [500]],
    ("whisper", GENERATION, "no_timestamps_token_id"): [None, "x", -1, HUGE, 1.5, [508], GONE],
    ("whisper", GENERATION, "suppress_tokens"): ["x", ["x"], [None], list(range(509))],
    ("whisper", GENERATION, "begin_suppress_tokens"): ["x", 3, [1.5]],
    ("whisper", GENERATION, "is_multilingual"): ["x", 3],
    ("whisper", GENERATION, "cache_implementation"): ["evil/evil"],
    ("whisper", GENERATION, "max_new_tokens"): [-1],
    ("whisper", PROCESSOR, "sampling_rate"): [8000, 0, None, "16000", 16000.0],
    ("whisper", PROCESSOR, "feature_size"): [128, 0, None, "80", HUGE],
    ("whisper", PROCESSOR, "hop_length"): [0, None, "160", -160, 80],
    ("whisper", PROCESSOR, "n_fft"): [10, 0, None, HUGE],
    ("whisper", PROCESSOR, "chunk_length"): [0, None, "5", HUGE],
    ("whisper", PROCESSOR, "dither"): [1.0, None, "x", NAN],
    ("whisper", PROCESSOR, "padding_side"): ["left", "x", 3],
    ("whisper", PROCESSOR, "padding_value"): [1.0, NAN, None, "x"],
    ("moonshine", PROCESSOR, "sampling_rate"): [8000, None],
    ("moonshine", PROCESSOR, "feature_size"): [80, 0],
    ("moonshine", PROCESSOR, "do_normalize"): [True, "x", None],
    ("moonshine", PROCESSOR, "padding_side"): ["left"],
}


@pytest.mark.parametrize(("family", "file", "field", "value"), expanded(REFUSED), ids=name_of)
def test_a_field_is_named(
    tmp_path: Path, family: str, file: str, field: str, value: object
) -> None:
    folder = folder_of(family, tmp_path / "model")
    edit(folder, file, field, value)
    message = refusal(folder)
    assert field in message
    assert file in message
    assert "restore" in message or field in ("model_type", "quantization_config")


# The file is named, and what is wrong.
SAID: dict[str, tuple[str, str, str, object, str]] = {
    "layers": ("whisper", CONFIG, "encoder_layers", LAYERS, "encoder_layers 100000.*hold 4"),
    "layers by another name": ("whisper", CONFIG, "num_hidden_layers", LAYERS, "hold 4"),
    "vocabulary": ("whisper", CONFIG, "vocab_size", HUGE, "vocab_size 1000000000000.*has 509"),
    "heads": ("whisper", CONFIG, "encoder_attention_heads", 7, "7 does not divide the width 144"),
    "no heads": ("whisper", CONFIG, "encoder_attention_heads", GONE, "heads is missing"),
    "no heads there": ("moonshine", CONFIG, "decoder_num_attention_heads", GONE, "is missing"),
    "width in quotes": ("whisper", CONFIG, "d_model", "144", "'d_model' expected int, got str"),
    "code": ("whisper", CONFIG, "dtype", "os.system", "os.system"),
    "no sizes": ("whisper", CONFIG, "d_model", GONE, "d_model 384.*has 144"),
    "window": ("whisper", PROCESSOR, "chunk_length", 1, "nb_max_frames 100.*needs 500"),
    "longer window": ("whisper", PROCESSOR, "chunk_length", 30, "nb_max_frames 3000.*needs 500"),
    "another class": (
        "whisper", PROCESSOR, "feature_extractor_type", "Wav2Vec2FeatureExtractor",
        "is a Wav2Vec2FeatureExtractor, not a WhisperFeatureExtractor",
    ),
    "another class there": (
        "moonshine", PROCESSOR, "feature_extractor_type", "WhisperFeatureExtractor",
        "is a WhisperFeatureExtractor, not a Wav2Vec2FeatureExtractor",
    ),
    "no class": ("whisper", PROCESSOR, "feature_extractor_type", "os.system", "cannot be used"),
    "a word for silence": ("whisper", GENERATION, "no_timestamps_token_id", 3, "notimestamps"),
    "rotary kind": ("moonshine", CONFIG, "rope_parameters", ROTARY | {"rope_type": "evil"}, "evil"),
    "rotary base": ("moonshine", CONFIG, "rope_parameters", ROTARY | {"rope_theta": 0}, "theta 0"),
    "rotary not a number": (
        "moonshine", CONFIG, "rope_parameters", ROTARY | {"rope_theta": NAN}, "theta nan",
    ),
    "rotary part": (
        "moonshine", CONFIG, "rope_parameters", ROTARY | {"partial_rotary_factor": 5.0},
        "partial_rotary_factor 5.0",
    ),
    "tokenizer's length": ("whisper", TOKENIZER_CONFIG, "model_max_length", "x", "cannot be used"),
    "tokenizer's side": ("whisper", TOKENIZER_CONFIG, "padding_side", "x", "cannot be used.*side"),
    "tokenizer's token": ("whisper", TOKENIZER_CONFIG, "eos_token", 3, "cannot be used.*eos_token"),
    "tokenizer's task": ("whisper", TOKENIZER_CONFIG, "task", 3, "cannot be used.*task"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_is_wrong_is_told(tmp_path: Path, name: str) -> None:
    family, file, field, value, said = SAID[name]
    folder = folder_of(family, tmp_path / "model")
    edit(folder, file, field, value)
    assert file in refusal(folder) or name == "a word for silence"
    with pytest.raises(UserError, match=said):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("field", ["vocab_size", "encoder_layers", "num_labels"])
def test_a_plan_is_made_of_no_such_configuration(tmp_path: Path, field: str) -> None:
    """Before anything is loaded, a plan counts every layer."""
    folder = folder_of("whisper", tmp_path / "model")
    edit(folder, CONFIG, field, HUGE)
    with pytest.raises(UserError, match=field):
        read_config(find_files(str(folder)))


# What changes nothing, for it is neither run, fetched nor obeyed.
HARMLESS: dict[tuple[str, str, str], list[object]] = {
    ("whisper", CONFIG, "attn_implementation"): ["kernels-community/flash-attn", "evil", 3],
    ("whisper", CONFIG, "_attn_implementation"): ["kernels-community/flash-attn"],
    ("whisper", CONFIG, "auto_map"): [{"AutoConfig": "evil.Evil"}],
    ("whisper", CONFIG, "architectures"): [["evil"], None, GONE],
    ("whisper", CONFIG, "dtype"): ["float16", None],
    ("whisper", CONFIG, "unknown"): [NAN, 10**400, "x" * 10_000],
    ("whisper", CONFIG, "transformers_version"): ["999.0", 3],
    ("whisper", GENERATION, "custom_generate"): ["evil/evil"],
    ("whisper", GENERATION, "forced_decoder_ids"): ["x", [1], {}],
    ("whisper", GENERATION, "lang_to_id"): [[], "x", {"<|en|>": 3}],
    ("whisper", GENERATION, "max_length"): ["x", 0, HUGE],
    ("whisper", GENERATION, "suppress_tokens"): [[-1], [], [HUGE]],
    ("whisper", PROCESSOR, "n_samples"): [0, HUGE],
    ("whisper", PROCESSOR, "auto_map"): [{"AutoFeatureExtractor": "evil.Evil"}],
    ("whisper", TOKENIZER_CONFIG, "auto_map"): [{"AutoTokenizer": ["evil.Evil", None]}],
    ("whisper", TOKENIZER_CONFIG, "tokenizer_class"): ["os.system"],
}


@pytest.mark.parametrize(("family", "file", "field", "value"), expanded(HARMLESS), ids=name_of)
def test_a_field_is_not_obeyed(
    tmp_path: Path, family: str, file: str, field: str, value: object
) -> None:
    folder = folder_of(family, tmp_path / "model")
    edit(folder, file, field, value)
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.warnings == ()
    assert checkpoint.architecture.prompt(checkpoint.model) == (501, 508)
    assert checkpoint.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("field", "value"), [("language", "german"), ("language", 3), ("task", "translate")]
)
def test_a_language_of_an_english_model_is_told(tmp_path: Path, field: str, value: object) -> None:
    folder = folder_of("whisper", tmp_path / "model")
    edit(folder, GENERATION, field, value)
    (warning,) = load_checkpoint(str(folder)).warnings
    assert f"{field}={value}" in warning


def directory(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("kind", [directory, pipe, loop, device, nowhere])
@pytest.mark.parametrize("name", [*FILES, WEIGHTS, INDEX, "preprocessor_config.json", "merges.txt"])
def test_what_is_no_file_is_named(
    tmp_path: Path, name: str, kind: Callable[[Path], object]
) -> None:
    folder = folder_of("whisper", tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    kind(folder / name)
    assert f"{name} is no regular file" in refusal(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
@pytest.mark.parametrize("name", [*FILES, WEIGHTS])
def test_what_may_not_be_read_is_named(tmp_path: Path, name: str) -> None:
    folder = folder_of("whisper", tmp_path / "model")
    replace(folder, name, "{}")
    (folder / name).chmod(0)
    message = refusal(folder)
    assert f"{name} cannot be read" in message
    assert "ermission denied" in message


CONTENTS: dict[str, bytes | str] = {
    "list": "[]",
    "null": "null",
    "nothing": "",
    "torn": '{"a": ',
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "long number": '{"a": ' + "1" * 10_000 + "}",
    "zeros": b"\0" * 100,
    "no text": b"\xff\xfe\x00\x01",
    "byte-order mark": b"\xef\xbb\xbf{}",
    "LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
    "HTML": "<html>404</html>",
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", [*FILES, INDEX])
def test_what_is_no_json_object_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = folder_of("whisper", tmp_path / "model")
    replace(folder, name, CONTENTS[content])
    assert name in refusal(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["{}", '{"a": NaN}', '{"a": "\\ud83d"}', '{"a": 1, "a": 2}'])
def test_an_object_without_what_is_needed_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = folder_of("whisper", tmp_path / "model")
    replace(folder, name, content)
    if name == TOKENIZER_CONFIG:  # all of it is in the other file
        load_checkpoint(str(folder))
    else:
        assert name.partition("_")[0].partition(".")[0] in refusal(folder)


@pytest.mark.parametrize("name", [CONFIG, GENERATION, PROCESSOR, TOKENIZER, WEIGHTS])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = folder_of("whisper", tmp_path / "model")
    (folder / name).unlink()
    said = {PROCESSOR: "preprocessor_config.json", TOKENIZER: "tokenizer"}.get(name, name)
    assert said in refusal(folder)


BAD_WEIGHTS: dict[str, tuple[Change, str]] = {
    "empty": (lambda folder: replace(folder, WEIGHTS, b""), "model.safetensors cannot be read"),
    "short": (lambda folder: replace(folder, WEIGHTS, b"\x10" + b"\0" * 7 + b"{"), "cannot be"),
    "huge header": (lambda folder: replace(folder, WEIGHTS, b"\xff" * 8 + b"{}"), "cannot be"),
    "pickle": (lambda folder: replace(folder, WEIGHTS, b"PK\x03\x04" + b"x" * 99), "cannot be"),
    "LFS": (lambda folder: replace(folder, WEIGHTS, CONTENTS["LFS"]), "cannot be read"),
    "half": (
        lambda folder: replace(folder, WEIGHTS, (folder / WEIGHTS).read_bytes()[:1_000_000]),
        "model.safetensors cannot be read",
    ),
    "no tensors": (lambda folder: weights(folder, lambda held: held.clear()), "holds no tensors"),
    "another's": (lambda folder: another(folder), "weights hold 0 of model.encoder.layers"),
    "all zero": (lambda folder: each(folder, torch.zeros_like), "conv1.weight is zero throughout"),
    "all NaN": (lambda folder: each(folder, lambda one: one * NAN), "conv1.weight .*no finite"),
    "all infinite": (lambda folder: each(folder, lambda one: one / 0), "no finite numbers"),
    "all 1e38": (lambda folder: each(folder, lambda one: one * 0 + 1e38), "up to 1e"),
    "all int8": (lambda folder: each(folder, lambda one: one.to(torch.int8)), "is I8"),
    "all complex": (lambda folder: each(folder, lambda one: one.to(torch.complex64)), "is C64"),
    "all float64": (lambda folder: each(folder, lambda one: one.double()), "is F64"),
    "all bool": (lambda folder: each(folder, lambda one: one.bool()), "is BOOL"),
    "no rows": (lambda folder: each(folder, lambda one: one[:0].clone()), "only 0 values"),
    "flat": (lambda folder: each(folder, lambda one: one.flatten().clone()), "has 73296"),
}


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    held = load_file(folder / WEIGHTS)
    change(held)
    (folder / WEIGHTS).unlink()
    save_file(held, folder / WEIGHTS, metadata={"format": "pt"})


def each(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights(folder, lambda held: held.update({name: change(one) for name, one in held.items()}))


def another(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    save_file({"x": torch.ones(10**4)}, folder / WEIGHTS)


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights_are_named(tmp_path: Path, name: str) -> None:
    change, said = BAD_WEIGHTS[name]
    folder = folder_of("whisper", tmp_path / "model")
    change(folder)
    refusal(folder)
    with pytest.raises(UserError, match=said):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("named", ["pytorch_model.bin", "../x.safetensors", "x.safetensors", "", 3])
def test_an_index_may_name_only_weights_beside_it(tmp_path: Path, named: object) -> None:
    folder = folder_of("whisper", tmp_path / "model")
    replace(folder, INDEX, json.dumps({"weight_map": {"proj_out.weight": named}}))
    assert INDEX in refusal(folder)


PATHS = [
    "n" * 300,
    "~nobody-here/model",
    "a\0b",
    "/dev/zero",
    "/proc/self/mem",
    "owner/" + "n" * 300,
]


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_path_that_leads_nowhere_is_one_line(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"model\.path=") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)

"""Checkpoints by name, folder and hub id; what a user reads when they are not there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny import Family, tiny_moonshine, tiny_whisper, tone
from transformers import pipeline

from edge_asr.errors import UserError
from edge_asr.models.files import EMBEDDED, INDEX, WEIGHTS, embedded_folder, find_files, locate
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.runtimes.torch_greedy import greedy

BUILD: dict[Family, Callable[[Path], Path]] = {
    "whisper": tiny_whisper,
    "moonshine": tiny_moonshine,
}


def test_a_folder_loads_in_float32_and_evaluation_mode(tmp_path: Path) -> None:
    for build in (tiny_whisper, tiny_moonshine):
        folder = build(tmp_path / build.__name__)
        checkpoint = load_checkpoint(str(folder), name="mine")
        assert checkpoint.name == "mine"
        assert checkpoint.files.source == "folder"
        assert not checkpoint.model.training
        assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_models_load_and_work_in_the_library_pipeline(name: str) -> None:
    checkpoint = load_checkpoint(name)
    assert checkpoint.files.source == "embedded"
    recognise = pipeline("automatic-speech-recognition", model=str(embedded_folder(name)))
    clip = embedded_folder(name).parent / "calibration" / "0000.opus"

    samples, rate = soundfile.read(clip, dtype="float32")
    text = recognise({"raw": samples, "sampling_rate": rate})["text"]
    assert len(text.split()) > 1


def test_an_unreachable_hub_id_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"nobody/nothing.*hf download.*whisper_micro"):
        load_checkpoint("nobody/nothing")


@pytest.mark.parametrize("reference", ["./nowhere", "/no/such/folder", "whisper-mirco"])
def test_a_path_that_leads_nowhere_is_no_hub_id(reference: str) -> None:
    with pytest.raises(UserError, match=r"embedded names are|did you mean 'whisper-micro'"):
        locate(reference)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="folder without a complete checkpoint"):
        load_checkpoint(str(folder))


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForSpeechSeq2Seq": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UserError):
        load_checkpoint(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_generation_config_without_the_prompt_is_refused(tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "model")
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text())
    del generation["no_timestamps_token_id"]
    path.write_text(json.dumps(generation))
    with pytest.raises(UserError, match=r"no_timestamps_token_id"):
        load_checkpoint(str(folder))


def test_the_digest_tells_weights_apart(tmp_path: Path) -> None:
    first = tiny_whisper(tmp_path / "first")
    shutil.copytree(first, tmp_path / "copy")
    second = tiny_whisper(tmp_path / "second", seed=1)
    digests = [
        load_checkpoint(str(folder)).files.weights_fingerprint
        for folder in (first, tmp_path / "copy", second)
    ]
    assert digests[0] == digests[1] != digests[2]


def weights_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return dict(checkpoint.model.named_parameters())


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.encoder.layer_norm.weight"), "missing: model.encoder.layer_norm"),
        (lambda w: w.update(stray=torch.ones(2)), "unexpected: stray"),
        (
            lambda w: w.update({"model.encoder.layer_norm.weight": torch.ones(3)}),
            r"of another shape: model.encoder.layer_norm.weight \(3,\) instead of \(40,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_model_are_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    folder = tiny_moonshine(tmp_path)
    change_weights(folder, change)
    with pytest.raises(UserError, match=rf"model\.path=.*{message}.*restore"):
        load_checkpoint(str(folder))


def test_many_missing_weights_are_counted(tmp_path: Path) -> None:
    folder = tiny_moonshine(tmp_path)
    change_weights(folder, lambda weights: [weights.pop(name) for name in sorted(weights)[:5]])
    with pytest.raises(UserError, match="and 2 more"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("family", BUILD)
def test_a_tied_head_may_be_missing_or_present(tmp_path: Path, family: Family) -> None:
    folder = BUILD[family](tmp_path)
    plain = weights_of(load_checkpoint(str(folder)))
    assert "proj_out.weight" not in load_file(folder / "model.safetensors")
    table = "model.decoder.embed_tokens.weight"
    change_weights(folder, lambda weights: weights.update({"proj_out.weight": weights[table] + 0}))
    found = weights_of(load_checkpoint(str(folder)))
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_damaged_safetensors_are_named(tmp_path: Path) -> None:
    weights = tiny_whisper(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read.*download it again"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("gone", [("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")])
@pytest.mark.parametrize("family", BUILD)
def test_a_folder_without_its_tokenizer_is_refused(
    tmp_path: Path, family: Family, gone: tuple[str, ...]
) -> None:
    folder = BUILD[family](tmp_path)
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"tokenizer"):
        load_checkpoint(str(folder))


def test_a_tokenizer_that_cannot_write_english_is_refused(tmp_path: Path) -> None:
    path = tiny_moonshine(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "fox"}, "content": "dog"}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"brown dog.*restore the tokenizer\.json"):
        load_checkpoint(str(tmp_path))


def test_an_unreadable_tokenizer_is_named(tmp_path: Path) -> None:
    (tiny_whisper(tmp_path) / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be used.*restore the published tokenizer\.json"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("device", "message"),
    [("foo", "is no device"), ("cuda", "no CUDA GPU"), ("meta", "cannot be used")],
)
def test_a_device_that_is_not_here_is_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"^device={device}: .*{message}.*device=cpu"):
        load_checkpoint("nobody/nothing", device=device)


def test_the_cap_on_tokens_is_the_familys_unless_given(tmp_path: Path) -> None:
    whisper, moonshine = (str(build(tmp_path / name)) for name, build in BUILD.items())
    assert load_checkpoint(whisper).tokens_per_second is None
    assert load_checkpoint(moonshine).tokens_per_second == 6.5
    assert load_checkpoint(moonshine, tokens_per_second=20).tokens_per_second == 20


def test_the_revision_of_a_cached_hub_id_is_its_commit(tmp_path: Path) -> None:
    """In the cache's own layout, and in a process of its own: the library reads the place once."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    shutil.copy(embedded_folder("whisper-micro") / "config.json", snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    script = (
        "from edge_asr.models.files import find_files; print(find_files('owner/name').revision)"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == commit


CHECKPOINT_FILES = "config.json", "generation_config.json", "processor_config.json"
CONFIG, GENERATION, PROCESSOR = CHECKPOINT_FILES
MATRIX: dict[Family, str] = {
    "whisper": "model.decoder.layers.1.fc2.weight",
    "moonshine": "model.decoder.layers.1.mlp.fc2.weight",
}
# Clips on which the tiny models repeat themselves, so that a penalty would show.
OUTPUTS = [tone(0.5), tone(1.1, 300.0)]


def edit(folder: Path, name: str, *, drop: Collection[str] = (), **changes: Any) -> None:
    """Change fields of a JSON file; those of the feature extractor in a processor's file."""
    plain = json.loads((folder / name).read_text())
    fields = plain["feature_extractor"] if name == PROCESSOR else plain
    fields.update(changes)
    for field in drop:
        del fields[field]
    (folder / name).write_text(json.dumps(plain))


def refusal(folder: Path) -> str:
    """What a user reads when the checkpoint in `folder` is refused: one line that names it."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    return message


def texts(checkpoint: Checkpoint) -> list[str]:
    return [row.text for row in greedy(checkpoint, OUTPUTS, [12, 12])]


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight[0].fill_(float("nan")), "no finite numbers"),
        (lambda weight: weight[-1, -1].fill_(float("inf")), "no finite numbers"),
        (lambda weight: weight[-1, -1].fill_(-float("inf")), "no finite numbers"),
        (lambda weight: weight[0, 0].fill_(1e38), r"1e\+38"),
        (lambda weight: weight[0, 0].fill_(-1e38), r"1e\+38"),
        (lambda weight: weight.zero_(), "zero throughout"),
        (lambda weight: weight.to(torch.int8), "I8"),
        (lambda weight: weight.to(torch.complex64), "C64"),
        (lambda weight: weight.to(torch.float64), "F64"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "F8"),
        (lambda weight: (weight * float("nan")).to(torch.bfloat16), "no finite numbers"),
    ],
)
def test_weights_that_are_no_usable_numbers_are_named(
    tmp_path: Path, family: Family, change: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    folder, name = BUILD[family](tmp_path), MATRIX[family]

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        changed = change(weights[name])
        if changed.shape == weights[name].shape:
            weights[name] = changed

    change_weights(folder, spoil)
    assert re.search(rf"tensor {re.escape(name)} .*{said}", refusal(folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", BUILD)
def test_narrow_weights_are_loaded_and_remembered(
    tmp_path: Path, family: Family, dtype: torch.dtype
) -> None:
    folder = BUILD[family](tmp_path)
    change_weights(
        folder, lambda weights: weights.update({k: v.to(dtype) for k, v in weights.items()})
    )
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.model.dtype == torch.float32
    assert checkpoint.stored_dtype(MATRIX[family]) == dtype
    assert checkpoint.files.float_bits == 16


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "of a later version"},
        {},
        "int8",
    ],
)
def test_a_quantized_checkpoint_is_refused(
    tmp_path: Path, family: Family, quantization: object
) -> None:
    folder = BUILD[family](tmp_path)
    edit(folder, CONFIG, quantization_config=quantization)
    assert "quantization_config" in refusal(folder)


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("whisper", {"feature_size": 128}, "feature_size 128"),
        (
            "whisper",
            {"chunk_length": 30, "n_samples": 480_000, "nb_max_frames": 3000},
            "(nb_max_frames 3000|n_samples 480000|chunk_length 30)",
        ),
        ("whisper", {"sampling_rate": 8000}, "sampling_rate 8000"),
        ("moonshine", {"sampling_rate": 8000}, "sampling_rate 8000"),
        ("whisper", {"dither": 1.0}, r"dither 1\.0"),
        ("whisper", {"n_fft": 10}, "n_fft 10"),
        ("whisper", {"hop_length": 80}, "hop_length 80"),
        ("moonshine", {"feature_size": 128}, "feature_size 128"),
    ],
)
def test_features_that_the_model_cannot_hear_are_named(
    tmp_path: Path, family: Family, changes: dict[str, Any], named: str
) -> None:
    folder = BUILD[family](tmp_path)
    edit(folder, PROCESSOR, **changes)
    assert re.search(rf"feature extractor .*{named}", refusal(folder))


@pytest.mark.parametrize("family", BUILD)
def test_a_token_beyond_the_embedding_is_named(tmp_path: Path, family: Family) -> None:
    folder = BUILD[family](tmp_path)
    rows = json.loads((folder / CONFIG).read_text())["vocab_size"]
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    token = {"id": rows, "content": "Xylograd", "special": False, "normalized": False}
    content["added_tokens"].append(
        token | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    )
    path.write_text(json.dumps(content))
    assert re.search(rf"tokenizer .*{rows}.*Xylograd.*{rows} rows", refusal(folder))


@pytest.mark.parametrize(
    "names", [("tokenizer.json", "tokenizer_config.json"), ("tokenizer.json",)], ids=len
)
@pytest.mark.parametrize(("own", "other"), [EMBEDDED, EMBEDDED[::-1]], ids=EMBEDDED)
def test_the_tokenizer_of_another_model_is_refused(
    tmp_path: Path, own: str, other: str, names: Collection[str]
) -> None:
    folder = tmp_path / own
    shutil.copytree(embedded_folder(own), folder)
    for name in names:
        shutil.copy(embedded_folder(other) / name, folder / name)
    assert "tokenizer" in refusal(folder)


def write_index(folder: Path, file_of: Callable[[str], object], names: Collection[str]) -> None:
    mapping = {name: file_of(name) for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapping}))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "named",
    [
        "pytorch_model.bin",
        "../x.safetensors",
        "sub/x.safetensors",
        "/x.safetensors",
        "absent.safetensors",
        ".hidden.safetensors",
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(
    tmp_path: Path, named: str, *, beside: bool
) -> None:
    """With whole weights beside it or not; what it names is there, but for one."""
    folder = tiny_whisper(tmp_path / "model")
    (folder / "sub").mkdir()
    if named.startswith(("..", "sub", ".hidden")):
        shutil.copy(folder / WEIGHTS, folder / named)
    if named.endswith(".bin"):
        torch.save(load_file(folder / WEIGHTS), folder / named)
    write_index(folder, lambda _: named, load_file(folder / WEIGHTS))
    if not beside:
        (folder / WEIGHTS).unlink()
    message = refusal(folder)
    assert INDEX in message
    assert repr(named) in message


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{"])
def test_an_index_without_content_is_refused(tmp_path: Path, content: str) -> None:
    folder = tiny_whisper(tmp_path)
    (folder / INDEX).write_text(content)
    assert INDEX in refusal(folder)


def shard(folder: Path) -> None:
    """The weights of `folder` in three files, with an index."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    shards = {f"model-{n + 1:05}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file, chosen in shards.items():
        own = {name: weights[name].clone() for name in chosen}
        save_file(own, folder / file, metadata={"format": "pt"})
    place = {name: file for file, chosen in shards.items() for name in chosen}
    write_index(folder, place.__getitem__, names)
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("family", BUILD)
def test_shards_are_the_same_checkpoint(tmp_path: Path, family: Family) -> None:
    folder = BUILD[family](tmp_path)
    whole = load_checkpoint(str(folder))
    fingerprint = whole.files.weights_fingerprint
    shard(folder)
    sharded = load_checkpoint(str(folder))
    assert len(sharded.files.weights) == 3
    assert sharded.files.weights_fingerprint == fingerprint
    assert sharded.files.parameters == whole.files.parameters
    found, wanted = weights_of(sharded), weights_of(whole)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert texts(sharded) == texts(whole)


def test_a_fingerprint_is_of_the_weights_that_are_loaded(tmp_path: Path) -> None:
    """Of whole weights beside shards that hold others, too."""
    folder = tiny_whisper(tmp_path / "model")
    plain = find_files(str(folder)).weights_fingerprint
    whole = load_file(folder / WEIGHTS)
    others = {name: 1.5 * weight for name, weight in whole.items()}
    save_file(others, folder / "other.safetensors", metadata={"format": "pt"})
    write_index(folder, lambda _: "other.safetensors", others)
    checkpoint = load_checkpoint(str(folder))
    name = MATRIX["whisper"]
    loaded = weights_of(checkpoint)[name]
    is_whole = torch.equal(loaded, whole[name])
    assert is_whole or torch.equal(loaded, others[name])
    assert (checkpoint.files.weights_fingerprint == plain) == is_whole


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("whisper", {"activation_function": "evil"}, "evil"),
        ("whisper", {"encoder_attention_heads": 0}, "heads"),
        ("whisper", {"decoder_attention_heads": 0}, "heads"),
        ("whisper", {"decoder_attention_heads": 5}, "heads"),
        ("whisper", {"d_model": "48"}, "d_model"),
        ("whisper", {"d_model": "many"}, "d_model"),
        ("whisper", {"num_mel_bins": 128}, r"model\.encoder\.conv1\.weight"),
        ("whisper", {"encoder_layers": 3}, r"encoder_layers 3.*hold 2"),
        ("moonshine", {"encoder_hidden_act": "evil"}, "evil"),
        ("moonshine", {"encoder_num_attention_heads": 0}, "heads"),
        ("moonshine", {"hidden_size": "40"}, "hidden_size"),
    ],
)
def test_a_configuration_that_makes_no_model_is_named(
    tmp_path: Path, family: Family, changes: dict[str, Any], named: str
) -> None:
    folder = BUILD[family](tmp_path)
    edit(folder, CONFIG, **changes)
    message = refusal(folder)
    assert CONFIG in message
    assert re.search(named, message)


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_configuration_that_is_no_json_is_named(
    tmp_path: Path, family: Family, name: str
) -> None:
    folder = BUILD[family](tmp_path)
    (folder / name).write_text("{")
    assert name in refusal(folder)


@pytest.mark.parametrize("start", ["one", -1, 10**6])
@pytest.mark.parametrize("family", BUILD)
def test_a_start_token_that_is_none_is_refused(
    tmp_path: Path, family: Family, start: object
) -> None:
    folder = BUILD[family](tmp_path)
    edit(folder, GENERATION, decoder_start_token_id=start)
    refusal(folder)


@pytest.mark.parametrize("family", BUILD)
def test_the_start_token_is_taken_from_the_configuration(tmp_path: Path, family: Family) -> None:
    folder = BUILD[family](tmp_path)
    plain = load_checkpoint(str(folder))
    start = plain.architecture.prompt(plain.model)[0]
    edit(folder, CONFIG, decoder_start_token_id=start)
    edit(folder, GENERATION, drop=["decoder_start_token_id"])
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.architecture.prompt(checkpoint.model)[0] == start
    assert texts(checkpoint) == texts(plain)
    assert checkpoint.warnings == ()


def multilingual(folder: Path, drop: Collection[str] = (), **changes: Any) -> Path:
    """A tiny Whisper that knows English and German, its generation config changed."""
    tiny_whisper(folder, multilingual=True)
    edit(folder, GENERATION, drop=drop, **changes)
    return folder


def ids_of(folder: Path) -> dict[str, int]:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return {token["content"]: token["id"] for token in added}


def prompt_of(folder: Path) -> list[str]:
    """The prompt in words, after decoding something, which begins with it or fails."""
    checkpoint = load_checkpoint(str(folder))
    assert texts(checkpoint)
    prompt = checkpoint.architecture.prompt(checkpoint.model)
    words: list[str] = checkpoint.tokenizer.convert_ids_to_tokens(list(prompt))
    return words


def prompt(language: str, task: str = "transcribe") -> list[str]:
    return ["<|startoftranscript|>", f"<|{language}|>", f"<|{task}|>", "<|notimestamps|>"]


@pytest.mark.parametrize("language", ["german", "German", "de", "<|de|>"])
def test_the_published_language_is_decoded(tmp_path: Path, language: str) -> None:
    folder = multilingual(tmp_path, language=language, task="transcribe")
    assert prompt_of(folder) == prompt("de")


def test_a_published_task_is_done(tmp_path: Path) -> None:
    folder = multilingual(tmp_path, language="german", task="translate")
    assert prompt_of(folder) == prompt("de", "translate")


def test_the_forced_language_is_decoded(tmp_path: Path) -> None:
    folder = multilingual(tmp_path)
    ids = ids_of(folder)
    words = ("<|de|>", "<|translate|>", "<|notimestamps|>")
    forced = [[place, ids[word]] for place, word in enumerate(words, 1)]
    edit(folder, GENERATION, forced_decoder_ids=forced)
    assert prompt_of(folder) == prompt("de", "translate")


@pytest.mark.parametrize("named", [{"language": "<|de|>"}, {"language": "german"}, {}])
def test_the_only_known_language_is_decoded(tmp_path: Path, named: dict[str, str]) -> None:
    folder = multilingual(tmp_path, **named)
    edit(folder, GENERATION, lang_to_id={"<|de|>": ids_of(folder)["<|de|>"]})
    assert prompt_of(folder) == prompt("de")


@pytest.mark.parametrize(("named", "language"), [({}, "en"), ({"language": "german"}, "de")])
def test_a_checkpoint_without_language_ids_takes_the_tokenizers(
    tmp_path: Path, named: dict[str, str], language: str
) -> None:
    folder = multilingual(tmp_path, drop=["lang_to_id", "task_to_id"], **named)
    assert prompt_of(folder) == prompt(language)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"language": "french"}, "language 'french'"),
        ({"language": "evil"}, "language 'evil'"),
        ({"task": "sing"}, "task=sing"),
    ],
)
def test_a_language_or_task_without_a_token_is_named(
    tmp_path: Path, changes: dict[str, str], named: str
) -> None:
    assert named in refusal(multilingual(tmp_path, **changes))


def test_an_organisation_that_moved_is_found_under_its_old_name(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--UsefulSensors--moonshine-tiny"
    shutil.copytree(embedded_folder("moonshine-micro"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    program = (
        "import sys; from edge_asr.models.files import find_files\n"
        "found = find_files('moonshine-ai/moonshine-tiny')\n"
        "print(found.reference, found.revision)\n"
        "find_files('moonshine-ai/moonshine-base')"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == f"moonshine-ai/moonshine-tiny {commit}", done.stderr
    assert "model.path='moonshine-ai/moonshine-base' could not be fetched" in done.stderr

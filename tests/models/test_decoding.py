"""What the user wants decoded, what a checkpoint asks for, and what is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from shared import shared
from tiny import Family, ListCorpus, tiny_moonshine, tiny_whisper, tone
from transformers import (
    AutoProcessor,
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from edge_asr.audio import SAMPLE_RATE
from edge_asr.calibration.batches import calibration_batches
from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding
from edge_asr.models.families.generation import KEPT, NEUTRAL, NO_TEXT
from edge_asr.models.families.whisper import Whisper
from edge_asr.models.files import EMBEDDED, embedded_folder
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.runtimes.torch_greedy import greedy

BUILD: dict[Family, Callable[[Path], Path]] = {"whisper": tiny_whisper, "moonshine": tiny_moonshine}
CONFIG, GENERATION = "config.json", "generation_config.json"
# Clips on which the tiny models repeat themselves, so that a penalty would show.
CLIPS = [tone(0.5), tone(1.1, 300.0)]
LIMIT = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family, and a Whisper that knows English and German."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {family: build(root / family) for family, build in BUILD.items()}
    return {**made, "multilingual": tiny_whisper(root / "multilingual", multilingual=True)}


@pytest.fixture
def changed(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of one of them with fields of a JSON file changed."""

    def change(kind: str, file: str = GENERATION, **fields: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(folders[kind], folder)
        plain = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**plain, **fields}))
        return folder

    return change


def loaded(folder: Path, **options: Any) -> Checkpoint:
    return load_checkpoint(str(folder), decoding=Decoding(**options))


def texts(checkpoint: Checkpoint) -> list[str]:
    return [row.text for row in greedy(checkpoint, CLIPS, [LIMIT] * len(CLIPS))]


def prompt(checkpoint: Checkpoint) -> list[str]:
    """The prompt in words, after decoding something, which begins with it or fails."""
    texts(checkpoint)
    tokens = checkpoint.architecture.prompt(checkpoint.model)
    words: list[str] = checkpoint.tokenizer.convert_ids_to_tokens(list(tokens))
    return words


def words_of(language: str, task: str = "transcribe") -> list[str]:
    return ["<|startoftranscript|>", f"<|{language}|>", f"<|{task}|>", "<|notimestamps|>"]


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_one_language_is_one_setting() -> None:
    words = ("de", "DE", "german", "German", "<|de|>", "deu", "de-AT")
    assert {Decoding(language=word) for word in words} == {Decoding(language="de")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"language": "greman"}, r"^decode\.language=greman: .*did you mean german\?"),
        ({"language": ""}, r"^decode\.language=: is no known language"),
        ({"language": "xx"}, r"^decode\.language=xx: is no known language"),
        ({"task": "sing"}, r"^decode\.task=sing: must be one of transcribe, translate"),
        ({"suppression": "all"}, r"^decode\.suppression=all: must be one of library, none"),
        ({"too_long": "drop"}, r"^decode\.too_long=drop: must be one of cut, error"),
    ],
)
def test_what_cannot_be_decoded_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Decoding(**options)


@pytest.mark.parametrize("published", [{}, {"language": "german", "task": "translate"}])
@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_the_users_language_and_task_come_first(
    changed: Callable[..., Path], published: dict[str, str], language: str, task: str
) -> None:
    checkpoint = loaded(changed("multilingual", **published), language=language, task=task)
    assert prompt(checkpoint) == words_of(language, task)
    assert (checkpoint.language, checkpoint.task) == (language, task)


def test_languages_and_tasks_are_other_texts(folders: dict[str, Path]) -> None:
    """What the prompt says reaches the decoder."""
    made = {
        tuple(texts(loaded(folders["multilingual"], language=language, task=task)))
        for language in ("en", "de")
        for task in ("transcribe", "translate")
    }
    assert len(made) == 4


@pytest.mark.parametrize("file", [GENERATION, CONFIG])
def test_a_forced_language_comes_before_english(
    folders: dict[str, Path], changed: Callable[..., Path], file: str
) -> None:
    """In config.json, too, where older checkpoints have it."""
    ids = json.loads((folders["multilingual"] / GENERATION).read_text())
    forced = [[1, ids["lang_to_id"]["<|de|>"]], [2, ids["task_to_id"]["translate"]]]
    folder = changed("multilingual", **({"forced_decoder_ids": None} if file == CONFIG else {}))
    plain = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**plain, "forced_decoder_ids": forced}))
    checkpoint = loaded(folder)
    assert prompt(checkpoint) == words_of("de", "translate")
    assert checkpoint.warnings == ()
    assert prompt(loaded(folder, language="english")) == words_of("en", "translate")


def test_a_language_that_the_model_does_not_know_is_refused(
    folders: dict[str, Path], changed: Callable[..., Path]
) -> None:
    message = refusal(folders["multilingual"], language="french")
    assert "decode.language=fr: the model has no token for it" in message
    assert message.endswith("choose one it knows: de, en")
    ids = json.loads((folders["multilingual"] / GENERATION).read_text())["lang_to_id"]
    german = changed("multilingual", lang_to_id={"<|de|>": ids["<|de|>"]})
    assert refusal(german, language="en").endswith("choose one it knows: de")


@pytest.mark.parametrize("folder", ["whisper", *EMBEDDED[:1]])
def test_an_english_model_transcribes_english(folders: dict[str, Path], folder: str) -> None:
    place = folders.get(folder) or embedded_folder(folder)
    assert "decode.language=de: the model knows English only" in refusal(place, language="de")
    assert "decode.task=translate: " in refusal(place, task="translate")
    for options in ({}, {"language": "English", "task": "transcribe"}):
        checkpoint = loaded(place, **options)
        assert (checkpoint.language, checkpoint.task) == ("en", "transcribe")
        assert len(checkpoint.architecture.prompt(checkpoint.model)) == 2


def test_moonshines_language_is_declared(folders: dict[str, Path]) -> None:
    """It changes no text, but the cap where words take more tokens."""
    plain = loaded(folders["moonshine"])
    assert (plain.language, plain.task, plain.tokens_per_second) == ("en", "transcribe", 6.5)
    for language, cap in (("ja", 13.0), ("ko", 13.0), ("vi", 13.0), ("es", 6.5), ("en", 6.5)):
        declared = loaded(folders["moonshine"], language=language)
        assert (declared.language, declared.tokens_per_second) == (language, cap)
        assert texts(declared) == texts(plain)
        assert declared.warnings == ()
    own = load_checkpoint(
        str(folders["moonshine"]), tokens_per_second=20, decoding=Decoding(language="ja")
    )
    assert own.tokens_per_second == 20
    assert "decode.task=translate: " in refusal(folders["moonshine"], task="translate")


def test_a_language_in_moonshines_file_is_told(changed: Callable[..., Path]) -> None:
    folder = changed("moonshine", language="japanese")
    (warning,) = loaded(folder).warnings
    assert "'japanese'" in warning
    assert "decode.language" in warning
    assert loaded(folder, language="ja").warnings == ()


@pytest.mark.parametrize(("tokens", "language"), [(51_864, None), (51_865, "de"), (51_866, "de")])
def test_where_the_file_does_not_tell_the_vocabulary_does(
    folders: dict[str, Path], tokens: int, language: str | None
) -> None:
    """Sizes of tiny.en, tiny and large-v3."""
    known = loaded(folders["multilingual"])
    generation = GenerationConfig.from_pretrained(folders["multilingual"])
    del generation.is_multilingual, generation.forced_decoder_ids
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=tokens, decoder_layers=1))
    model.generation_config = generation
    decoding = Decoding(language=language)
    assert Whisper().settle_generation(model, known.tokenizer, decoding) == []
    assert len(Whisper().prompt(model)) == (2 if language is None else 4)


@pytest.mark.parametrize(
    "options", [{}, {"language": "de"}, {"language": "de", "task": "translate"}]
)
def test_calibration_has_the_same_prompt(folders: dict[str, Path], options: dict[str, Any]) -> None:
    checkpoint = loaded(folders["multilingual"], **options)
    corpus = ListCorpus([(tone(0.5), "the fox"), (tone(0.7), "")])
    (batch,) = calibration_batches(checkpoint, corpus, 2, 2, 0)
    wanted = list(checkpoint.architecture.prompt(checkpoint.model))
    assert batch.decoder_input_ids[:, : len(wanted)].tolist() == [wanted, wanted]


# Something else than nothing, for every setting of the library's that can change a text.
ASKED: dict[str, Any] = {
    "max_length": 5,
    "max_new_tokens": 2,
    "min_length": 9,
    "min_new_tokens": 9,
    "early_stopping": True,
    "max_time": 1e-6,
    "stop_strings": ["e"],
    "do_sample": True,
    "num_beams": 3,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "length_penalty": 3.0,
    "use_mtp": True,
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "max_cache_len": 7,
    "temperature": 0.1,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.2,
    "top_h": 0.5,
    "typical_p": 0.3,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "repetition_penalty": 1.8,
    "encoder_repetition_penalty": 1.8,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "bad_words_ids": [[40], [41]],
    "force_words_ids": [[40]],
    "constraints": [1],
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "forced_bos_token_id": 44,
    "forced_eos_token_id": 44,
    "exponential_decay_length_penalty": [2, 5.0],
    "sequence_bias": [[[40], 9.0]],
    "token_healing": True,
    "guidance_scale": 2.0,
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 9.0},
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "low_memory": True,
    "prefill_chunk_size": 2,
    "is_assistant": True,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "assistant_lookbehind": 3,
    "assistant_early_exit": 1,
    "assistant_ensemble_weight": 0.5,
    "target_lookbehind": 3,
    "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 2,
    "speculation_type": "x",
    "continuous_batching_config": {"block_size": 8},
}
ASKED_OF_WHISPER: dict[str, Any] = {
    "return_timestamps": True,
    "return_token_timestamps": True,
    "condition_on_prev_tokens": True,
    "prompt_condition_type": "all-segments",
    "prompt_ids": [40, 41],
    "logprob_threshold": -0.1,
    "no_speech_threshold": 0.01,
    "compression_ratio_threshold": 0.1,
    "temperature": [0.0, 0.5, 1.0],
    "forced_decoder_ids": [[5, 40]],
}
# Of this one alone the library itself makes no generation config.
ALONE = "num_return_sequences"
FIELDS = sorted({*vars(GenerationConfig())} - {*KEPT, *NO_TEXT, ALONE})


def is_told(folder: Path, plain: Checkpoint, field: str) -> None:
    """The texts are the plain checkpoint's, and what it asks for is said in one line."""
    checkpoint = loaded(folder)
    assert texts(checkpoint) == texts(plain)
    (warning,) = checkpoint.warnings
    assert f"{field}=" in warning
    assert "\n" not in warning


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("field", FIELDS)
def test_no_setting_of_a_checkpoint_changes_a_text(
    folders: dict[str, Path], changed: Callable[..., Path], family: Family, field: str
) -> None:
    is_told(changed(family, **{field: ASKED.get(field, "new")}), loaded(folders[family]), field)


@pytest.mark.parametrize("kind", ["whisper", "multilingual"])
@pytest.mark.parametrize("field", ASKED_OF_WHISPER)
def test_nor_does_one_of_whispers_own(
    folders: dict[str, Path], changed: Callable[..., Path], kind: str, field: str
) -> None:
    is_told(changed(kind, **{field: ASKED_OF_WHISPER[field]}), loaded(folders[kind]), field)


def test_a_setting_that_the_library_refuses_is_named(changed: Callable[..., Path]) -> None:
    assert ALONE in refusal(changed("whisper", **{ALONE: 2}))


@pytest.mark.parametrize("family", BUILD)
def test_all_that_is_asked_for_is_one_sentence(
    folders: dict[str, Path], changed: Callable[..., Path], family: Family
) -> None:
    asked = {"num_beams": 5, "num_return_sequences": 3, "repetition_penalty": 1.3}
    checkpoint = loaded(changed(family, **asked))
    assert texts(checkpoint) == texts(loaded(folders[family]))
    listed = "num_beams=5, repetition_penalty=1.3, num_return_sequences=3"
    assert checkpoint.warnings == (
        f"generation_config.json asks for {listed}; decoding is greedy without",
    )


@pytest.mark.parametrize("family", BUILD)
def test_settings_that_do_nothing_are_not_told(
    changed: Callable[..., Path], family: Family
) -> None:
    shown = {"return_dict_in_generate": True, "output_scores": True, "use_cache": False}
    folder = changed(family, **NEUTRAL, **shown)
    assert loaded(folder).warnings == ()
    assert texts(loaded(folder))


@pytest.mark.parametrize("family", BUILD)
def test_a_penalty_would_show(folders: dict[str, Path], family: Family) -> None:
    """With the library's own decoding the texts are others: the tests above can fail."""
    checkpoint = loaded(folders[family])
    inputs = checkpoint.architecture.model_inputs(checkpoint.feature_extractor, CLIPS)
    found = [
        checkpoint.model.generate(**inputs, max_new_tokens=LIMIT, **asked).tolist()  # type: ignore[operator]
        for asked in ({}, {"repetition_penalty": 1.8})
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_checkpoints_ask_for_nothing(name: str) -> None:
    assert load_checkpoint(name).warnings == ()


@pytest.mark.parametrize("name", ["whisper-tiny.en", "moonshine-tiny"])
def test_published_checkpoints_ask_for_nothing(name: str) -> None:
    checkpoint = load_checkpoint(str(shared("checkpoints", name)))
    assert (checkpoint.language, checkpoint.task, checkpoint.warnings) == ("en", "transcribe", ())


def suppressing(folder: Path) -> Path:
    """The embedded Whisper, which publishes no suppressed tokens, with some that it writes."""
    shutil.copytree(embedded_folder("whisper-micro"), folder)
    (row,) = greedy(load_checkpoint("whisper-micro"), embedded_clips(1), [LIMIT])
    plain = json.loads((folder / GENERATION).read_text())
    plain |= {"suppress_tokens": [row.tokens[2]], "begin_suppress_tokens": [row.tokens[0]]}
    (folder / GENERATION).write_text(json.dumps(plain))
    return folder


def embedded_clips(count: int) -> list[np.ndarray]:
    paths = sorted((embedded_folder("whisper-micro").parent / "calibration").glob("*.opus"))
    return [soundfile.read(path, dtype="float32")[0] for path in paths[:count]]


def published_clips(count: int) -> list[np.ndarray]:
    root = shared("speech")
    rows = [json.loads(line) for line in (root / "manifest.jsonl").open(encoding="utf-8")]
    read = (soundfile.read(root / row["audio"], dtype="float32") for row in rows)
    plain = (samples for samples, rate in read if rate == SAMPLE_RATE)
    return [samples for samples, _ in zip(plain, range(count), strict=False)]


def of_the_library(folder: Path, clips: list[np.ndarray], **options: Any) -> list[str]:
    """Texts by the library alone: its model, its processor, its decoding."""
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    features = processor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    tokens = model.generate(features["input_features"], max_new_tokens=40, **options)
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def check_suppression(folder: Path, clips: list[np.ndarray]) -> None:
    # As the open ASR leaderboard's transformers/run_eval.py has it since 2026-04-28.
    nothing: dict[str, Any] = {
        "suppress_tokens": [], "begin_suppress_tokens": [], "forced_decoder_ids": None,
    }  # fmt: skip
    for suppression, options in (("library", {}), ("none", nothing)):
        own = greedy(loaded(folder, suppression=suppression), clips, [40] * len(clips))
        assert [row.text for row in own] == of_the_library(folder, clips, **options)


def test_suppression_is_the_librarys(tmp_path: Path) -> None:
    folder = suppressing(tmp_path / "model")
    check_suppression(folder, embedded_clips(4))
    (suppressed,), (free,) = (
        greedy(loaded(folder, suppression=one), embedded_clips(1), [LIMIT])
        for one in ("library", "none")
    )
    (plain,) = greedy(load_checkpoint("whisper-micro"), embedded_clips(1), [LIMIT])
    assert free == plain != suppressed


def test_suppression_of_a_published_model_is_the_librarys() -> None:
    check_suppression(shared("checkpoints", "whisper-tiny.en"), published_clips(2))

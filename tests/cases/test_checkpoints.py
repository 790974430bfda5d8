"""Checkpoints that went wrong in public reports, made from the embedded models by
`_tools/make_ckpt.py` of ../shared/cases: what each comes to. The rest of each kind is in
tests/models and tests/hostile."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from shared import shared

from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding
from edge_asr.models.files import embedded_folder
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.runtimes.torch_greedy import greedy

CHECKOUT = Path(__file__).parents[2]
CLIPS = sorted((embedded_folder("whisper-micro").parent / "calibration").glob("*.opus"))[:3]


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the checkpoint of a case."""
    tool = shared("cases", "_tools", "make_ckpt.py")

    def make(name: str) -> Path:
        folder = tmp_path / name
        monkeypatch.setattr("sys.argv", [str(tool), name, str(folder), str(CHECKOUT)])
        with torch.random.fork_rng():
            runpy.run_path(str(tool))
        return folder

    return make


def texts(checkpoint: Checkpoint) -> list[str]:
    clips = [soundfile.read(path, dtype="float32")[0] for path in CLIPS]
    return [row.text for row in greedy(checkpoint, clips, [20] * len(clips))]


# Language and task of the prompt, as the checkpoint wants them.
LANGUAGES = {
    "language-german": "<|de|>",
    "forced-german": "<|de|>",
    "only-german-known": "<|de|>",
    "legacy-multilingual": "<|en|>",
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_language_is_the_checkpoints(case: Callable[[str], Path], name: str) -> None:
    checkpoint = load_checkpoint(str(case(name)))
    texts(checkpoint)  # asserts that the library starts on the prompt
    tokens = list(checkpoint.architecture.prompt(checkpoint.model))
    start, language, task, silent = checkpoint.tokenizer.convert_ids_to_tokens(tokens)
    assert (start, silent) == ("<|startoftranscript|>", "<|notimestamps|>")
    assert (language, task) == (LANGUAGES[name], "<|transcribe|>")
    assert f"<|{checkpoint.language}|>" == language
    assert checkpoint.warnings == ()


@pytest.mark.parametrize("name", ["language-german", "forced-german", "legacy-multilingual"])
@pytest.mark.parametrize("language", ["en", "de"])
def test_or_the_users(case: Callable[[str], Path], name: str, language: str) -> None:
    checkpoint = load_checkpoint(str(case(name)), decoding=Decoding(language=language))
    texts(checkpoint)
    assert checkpoint.language == language


def test_a_language_that_is_not_known_is_refused(case: Callable[[str], Path]) -> None:
    folder = case("only-german-known")
    with pytest.raises(UserError, match=r"decode\.language=en: .* choose one it knows: de$"):
        load_checkpoint(str(folder), decoding=Decoding(language="en"))


# What is told, beside the texts of the embedded model.
SAME_TEXTS = {
    "return-dict": "",
    "num-return-sequences": "num_beams=5, num_return_sequences=3",
    "penalties": "repetition_penalty=1.3, no_repeat_ngram_size=2",
    "no-start-token": "",
    "no-start-token-moonshine": "",
}


@pytest.mark.parametrize("name", SAME_TEXTS)
def test_the_texts_are_those_of_plain_greedy_decoding(
    case: Callable[[str], Path], name: str
) -> None:
    checkpoint = load_checkpoint(str(case(name)))
    plain = "moonshine-micro" if name.endswith("moonshine") else "whisper-micro"
    assert texts(checkpoint) == texts(load_checkpoint(plain))
    assert len(checkpoint.warnings) == bool(SAME_TEXTS[name])
    assert all(SAME_TEXTS[name] in warning for warning in checkpoint.warnings)


REFUSED = {
    "gptq-config": "already quantized",
    "bnb-config": "already quantized",
    "mel-80-128": "feature_size 128, the model needs 80",
    "window-30s": "nb_max_frames 3000, the model needs 500",
    "nan-weight": r"tensor model\.decoder\.layers\.1\.fc2\.weight .*no finite numbers",
    "added-token": r"tokenizer has token \d+ \('Xylograd'\)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_itself_is_refused_in_a_line(
    case: Callable[[str], Path], name: str
) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        load_checkpoint(str(case(name)))
    assert "\n" not in str(caught.value)

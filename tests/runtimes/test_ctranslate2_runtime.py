"""CTranslate2's search writes what ours writes."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from export.models import SIGNED, quantized
from shared import shared
from tiny import tiny_moonshine, tiny_whisper, tone

from edge_asr.audio import SAMPLE_RATE
from edge_asr.errors import UserError
from edge_asr.export.write import write_for
from edge_asr.models.decoding import Decoding, StackDtypes
from edge_asr.models.files import embedded_folder
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.formats import ActivationGrid, Grid
from edge_asr.runtimes.base import Runtime, Transcript
from edge_asr.runtimes.ctranslate2_runtime import CTranslate2Runtime
from edge_asr.runtimes.torch_greedy import TorchRuntime

pytest.importorskip("ctranslate2")
GRID, INPUTS = Grid(8, **SIGNED), ActivationGrid(8, symmetric=True)
CLIPS = [tone(seconds, 200.0 * seconds) for seconds in (0.7, 1.3, 1.0)]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Writes on until its limit."""
    return load_checkpoint(str(tiny_whisper(tmp_path_factory.mktemp("whisper"))), name="tiny")


@pytest.fixture(scope="module")
def micro() -> Checkpoint:
    """Ends its texts."""
    return load_checkpoint("whisper-micro")


def spoken(count: int) -> list[np.ndarray]:
    paths = sorted((embedded_folder("whisper-micro").parent / "test").glob("*.opus"))
    return [soundfile.read(path, dtype="float32")[0] for path in paths[:count]]


def heard(runtime: Runtime, clips: Sequence[np.ndarray], limit: int = 60) -> list[Transcript]:
    return [
        transcript
        for clip in clips
        for transcript in runtime.transcribe([clip], [min(limit, runtime.token_limit(len(clip)))])
    ]


def settled(checkpoint: Checkpoint, **generation: Any) -> Checkpoint:
    """A copy with other generation settings."""
    model: Any = copy.deepcopy(checkpoint.model)
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    return dataclasses.replace(checkpoint, model=model)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 46])
def test_a_limit_counts_as_ours(whisper: Checkpoint, tmp_path: Path, limit: int) -> None:
    several = load_checkpoint(str(tiny_whisper(tmp_path / "several", multilingual=True)))
    for checkpoint in (whisper, several):
        found = heard(CTranslate2Runtime(checkpoint), CLIPS[:1], limit)
        assert found == heard(TorchRuntime(checkpoint), CLIPS[:1], limit)
        assert found[0].steps <= limit


def test_a_text_that_ends_counts_as_ours(micro: Checkpoint) -> None:
    clips = spoken(6)
    found = heard(CTranslate2Runtime(micro), clips)
    assert found == heard(TorchRuntime(micro), clips)
    assert not any(one.hit_limit for one in found)
    # The end token comes at the very limit, or just does not.
    (steps,) = {found[0].steps}
    for limit in (steps, steps - 1):
        (last,) = heard(CTranslate2Runtime(micro), clips[:1], limit)
        assert last.hit_limit is (limit < steps)
        assert [last] == heard(TorchRuntime(micro), clips[:1], limit)


def test_integers_hear_what_is_simulated(whisper: Checkpoint, micro: Checkpoint) -> None:
    for checkpoint, clips in ((whisper, CLIPS), (micro, spoken(3))):
        own = quantized(checkpoint, GRID, INPUTS)
        assert heard(CTranslate2Runtime(own), clips) == heard(TorchRuntime(own), clips)


def test_a_batch_is_decoded_clip_by_clip(whisper: Checkpoint) -> None:
    runtime = CTranslate2Runtime(whisper)
    decoded = runtime.decode(runtime.prepare(CLIPS), [5, 7, 6])
    assert [len(one.tokens) for one in decoded.transcripts] == [5, 7, 6]
    assert decoded.seconds.encoder > 0
    assert decoded.seconds.decoder > 0


def test_suppressed_tokens_are_ours(whisper: Checkpoint) -> None:
    (plain,) = heard(TorchRuntime(whisper), CLIPS[:1], 8)
    first, third = plain.tokens[0], plain.tokens[2]
    vocabulary = int(whisper.model.config.vocab_size)
    for always, begin in (
        ([third, vocabulary + 7, -1], [first, vocabulary]),
        ([third], None),
        (None, [first]),
        (None, None),
    ):
        own = settled(whisper, suppress_tokens=always, begin_suppress_tokens=begin)
        found = heard(CTranslate2Runtime(own), CLIPS, 8)
        assert found == heard(TorchRuntime(own), CLIPS, 8)
        assert third not in found[0].tokens or not always
        assert found[0].tokens[0] != first or not begin


def test_steps_that_nearly_tie_are_counted(whisper: Checkpoint) -> None:
    model: Any = copy.deepcopy(whisper.model)
    table = model.get_submodule(whisper.architecture.embedding).weight
    (plain,) = heard(TorchRuntime(whisper), CLIPS[:1], 4)
    twin = next(token for token in range(10, 20) if token not in plain.tokens)
    table.data[twin] = table.data[plain.tokens[1]]
    own = dataclasses.replace(whisper, model=model)
    found, expected = (
        heard(kind(own), CLIPS[:1], 4) for kind in (CTranslate2Runtime, TorchRuntime)
    )
    assert found[0].near_ties == expected[0].near_ties > 0


def refused(message: str, *options: Any) -> None:
    with pytest.raises(UserError, match=message) as error:
        CTranslate2Runtime(*options)
    assert "\n" not in str(error.value)


def test_what_it_cannot_search_is_refused(whisper: Checkpoint, tmp_path: Path) -> None:
    (end,) = {whisper.model.generation_config.eos_token_id}
    refused("eos_token_id=.*knows one end token", settled(whisper, eos_token_id=[end, 5]))
    folder = tiny_whisper(tmp_path, multilingual=True)
    german = load_checkpoint(str(folder), decoding=Decoding(language="de"))
    refused("token .* of the decoder's prompt is not between", german)


def test_what_it_cannot_compute_is_refused(whisper: Checkpoint, tmp_path: Path) -> None:
    refused("computes in float32 and int8", whisper, StackDtypes("bfloat16", "float32"))
    with pytest.raises(UserError, match="on the processor"):
        CTranslate2Runtime.check(StackDtypes(), "cuda")
    moonshine = load_checkpoint(str(tiny_moonshine(tmp_path)))
    refused("has no moonshine, only whisper", moonshine)
    refused(
        r"^runtime=ctranslate2: target=ctranslate2_int8: .*bits=4",
        quantized(whisper, Grid(4, **SIGNED), INPUTS),
    )


def test_an_exported_model_is_run_as_it_is(whisper: Checkpoint, tmp_path: Path) -> None:
    write_for("ctranslate2", whisper, tmp_path)
    runtime = CTranslate2Runtime(whisper, exported=tmp_path)
    assert heard(runtime, CLIPS, 8) == heard(TorchRuntime(whisper), CLIPS, 8)
    other = settled(whisper, begin_suppress_tokens=[3])
    refused("exported with other begin_suppress_tokens", other, StackDtypes(), tmp_path)
    (tmp_path / "vocabulary.json").unlink()
    refused("CTranslate2 cannot load it: ", whisper, StackDtypes(), tmp_path)


def test_a_head_reads_the_integers_that_are_simulated(whisper: Checkpoint) -> None:
    own = quantized(whisper, GRID, None, others={"embedding": None, "head": INPUTS}, layers=False)
    runtime = CTranslate2Runtime(own)
    memory = runtime.encode(runtime.prepare(CLIPS[:1])[0])
    result = runtime.search(memory, 8)
    found = torch.from_numpy(np.stack([np.asarray(one) for one in result.logits[0]]))
    prompt = own.architecture.prompt(own.model)
    tokens = torch.tensor([[*prompt, *result.sequences_ids[0]]])
    model: Any = own.model
    states = model.get_decoder()(
        input_ids=tokens, encoder_hidden_states=torch.from_numpy(np.array(memory))
    ).last_hidden_state[0, len(prompt) - 1 :][: len(found)]
    head = model.get_output_embeddings()
    simulated, floats = head(states), states @ head.weight.T
    known = found > -1e4  # the others are suppressed
    assert float((found - simulated)[known].abs().max()) < 1e-3
    assert float((found - floats)[known].abs().max()) > 1e-2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UserError, match=r"pip install 'edge_asr\[ctranslate2\]'"):
        CTranslate2Runtime.check(StackDtypes(), "cpu")


def test_a_published_model_hears_the_same() -> None:
    checkpoint = load_checkpoint(str(shared("checkpoints", "whisper-tiny.en")))
    root = shared("speech")
    rows = [json.loads(line) for line in (root / "manifest.jsonl").open(encoding="utf-8")]
    short = [row for row in rows if row["sampling_rate"] == SAMPLE_RATE and row["duration"] < 4]
    clips = [soundfile.read(root / row["audio"], dtype="float32")[0] for row in short[:2]]
    floats = heard(CTranslate2Runtime(checkpoint), clips)
    assert [one.tokens for one in floats] == [
        one.tokens for one in heard(TorchRuntime(checkpoint), clips)
    ]
    own = quantized(checkpoint, GRID, INPUTS)
    pairs = zip(heard(CTranslate2Runtime(own), clips), heard(TorchRuntime(own), clips), strict=True)
    for found, expected in pairs:
        # Of two roundings that differ, thousands follow: a word or two may be others.
        assert SequenceMatcher(None, found.text.split(), expected.text.split()).ratio() > 0.8

"""Transcription on real tiny models: order, limits, resumption, and the decoder prompt."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WINDOW_S, ListCorpus, tiny_whisper, tone

from edge_asr.data.corpus import ClipEntry, Corpus
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import (
    ClipOutput,
    Hypothesis,
    Transcription,
    joined,
    read_hypotheses,
    read_outputs,
    to_lines,
    write_hypotheses,
)
from edge_asr.evaluation.transcribe import DecodeSettings, transcribe
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.runtimes.base import DecodedBatch
from edge_asr.runtimes.torch_greedy import TorchRuntime, greedy, token_limit
from edge_asr.store.phases import PhaseSeconds

PITCHES = {0.9: 300.0, 0.05: 440.0, 1.7: 200.0, 0.4: 800.0, 1.2: 150.0}
CORPUS = ListCorpus(
    [(tone(seconds, pitch), f"text {seconds}") for seconds, pitch in PITCHES.items()]
)
SETTINGS = DecodeSettings(batch_size=2, max_new_tokens=12)


class Counting(TorchRuntime):
    """Notes how many clips were decoded, batch by batch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.batches: list[int] = []

    def decode(self, prepared: Any, limits: Sequence[int]) -> DecodedBatch:
        self.batches.append(len(limits))
        return super().decode(prepared, limits)

    def warm_up(self) -> None:
        pass


def transcribed(
    checkpoint: Checkpoint, corpus: Corpus, settings: DecodeSettings, **options: Any
) -> Transcription:
    """What was heard, beside the corpus."""
    return joined(corpus.entries, transcribe(TorchRuntime(checkpoint), corpus, settings, **options))


def texts(transcription: Transcription) -> list[str]:
    return [hypothesis.pred_text for hypothesis in transcription.hypotheses]


def altered(checkpoint: Checkpoint, **changes: object) -> Checkpoint:
    """The checkpoint with a generation config of its own, some fields changed."""
    model = copy(checkpoint.model)
    model.generation_config = deepcopy(checkpoint.model.generation_config)
    for name, value in changes.items():
        setattr(model.generation_config, name, value)
    return replace(checkpoint, model=model)


def test_corpus_order_is_restored(checkpoint: Checkpoint) -> None:
    result = transcribed(checkpoint, CORPUS, SETTINGS)
    assert [row.id for row in result.hypotheses] == [f"clip-{index}" for index in range(5)]
    assert [row.duration for row in result.hypotheses] == pytest.approx(list(PITCHES))
    assert [row.text for row in result.hypotheses] == [f"text {seconds}" for seconds in PITCHES]
    assert result.audio_seconds == pytest.approx(sum(PITCHES))
    assert result.decode_seconds > 0
    assert len(set(texts(result))) > 2, "the tiny models must tell the clips apart"


def test_each_text_belongs_to_its_clip(checkpoint: Checkpoint) -> None:
    """Batches of one, so that no padding matters: every clip alone gives the same text."""
    alone = DecodeSettings(batch_size=1, max_new_tokens=12)
    together = transcribed(checkpoint, CORPUS, alone)
    for index, (seconds, pitch) in enumerate(PITCHES.items()):
        single = transcribed(checkpoint, ListCorpus([(tone(seconds, pitch), "")]), alone)
        assert texts(single) == [texts(together)[index]]


def test_whisper_batches_change_nothing(whisper: Checkpoint) -> None:
    one, many = (
        transcribed(whisper, CORPUS, DecodeSettings(batch_size=size, max_new_tokens=20))
        for size in (1, 5)
    )
    assert texts(one) == texts(many)


def test_batches_are_sorted_by_length(moonshine: Checkpoint) -> None:
    """Within a sort window, whose last batch may be short."""
    seen: list[tuple[int, int]] = []
    transcribed(
        moonshine, CORPUS, SETTINGS, on_batch=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    seen.clear()
    narrow = replace(SETTINGS, sort_window=3)
    result = transcribed(
        moonshine, CORPUS, narrow, on_batch=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 5), (3, 5), (5, 5)]
    assert [row.id for row in result.hypotheses] == [f"clip-{index}" for index in range(5)]


def test_greedy_is_the_argmax_of_the_model(checkpoint: Checkpoint) -> None:
    """Against a plain loop of forward passes, which knows nothing of `generate`."""
    wave = tone(1.1)
    (own,) = greedy(checkpoint, [wave], [10])
    architecture, model = checkpoint.architecture, checkpoint.model
    tokens = list(architecture.prompt(model))
    start = len(tokens)
    inputs = architecture.model_inputs(checkpoint.feature_extractor, [wave])
    suppressed = model.generation_config.begin_suppress_tokens or []
    with torch.inference_mode():
        for step in range(own.steps):
            logits = model(**inputs, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
            if step == 0:
                logits[suppressed] = -torch.inf
            tokens.append(int(logits.argmax()))
    assert tuple(tokens[start : start + len(own.tokens)]) == own.tokens


def test_every_clip_has_its_own_limit(moonshine: Checkpoint) -> None:
    result = transcribed(moonshine, CORPUS, DecodeSettings(batch_size=5))
    for row in result.hypotheses:
        limit = int(row.samples * 6.5 / 16_000 + 2)
        assert row.generated_tokens <= limit
        assert row.hit_limit == (row.generated_tokens == limit)
    assert {row.generated_tokens for row in result.hypotheses if row.hit_limit} >= {2, 13}


def test_max_new_tokens_lowers_the_limit(checkpoint: Checkpoint) -> None:
    assert token_limit(checkpoint, 32_000) > 3 == token_limit(checkpoint, 32_000, 3)
    result = transcribed(checkpoint, CORPUS, DecodeSettings(batch_size=5, max_new_tokens=3))
    assert max(row.generated_tokens for row in result.hypotheses) == 3


def test_whisper_runs_into_the_decoders_room(whisper: Checkpoint) -> None:
    (row,) = transcribed(whisper, ListCorpus([(tone(1.0), "")]), DecodeSettings()).hypotheses
    room = whisper.architecture.decoder_room(whisper.model.config)
    assert row.generated_tokens <= room - len(whisper.architecture.prompt(whisper.model))


def test_the_end_token_is_counted_and_not_shown(checkpoint: Checkpoint) -> None:
    wave = tone(1.1)
    (free,) = greedy(checkpoint, [wave], [8])
    end = next(token for token in free.tokens if token != free.tokens[0])
    ending = altered(checkpoint, eos_token_id=end, pad_token_id=end, begin_suppress_tokens=None)
    (row,) = greedy(ending, [wave], [8])
    first = free.tokens.index(end)
    assert row.tokens == free.tokens[:first]
    assert (row.steps, row.hit_limit) == (first + 1, False)
    (cut,) = greedy(ending, [wave], [first])
    assert (cut.steps, cut.hit_limit) == (first, True)


def test_long_clips_are_cut_and_flagged(whisper: Checkpoint) -> None:
    long = tone(WINDOW_S + 0.7)
    corpus = ListCorpus([(long, ""), (long[: WINDOW_S * 16_000], "")])
    cut, whole = transcribed(whisper, corpus, SETTINGS).hypotheses
    assert (cut.truncated, whole.truncated) == (True, False)
    assert cut.samples == whole.samples == WINDOW_S * 16_000
    assert cut.duration == pytest.approx(WINDOW_S + 0.7)
    assert cut.pred_text == whole.pred_text


def test_long_clips_are_an_error_where_that_is_wanted(checkpoint: Checkpoint) -> None:
    """Moonshine hears clips of any length."""
    strict = replace(SETTINGS, too_long="error")
    whole = ListCorpus([(tone(WINDOW_S), "")])
    assert texts(transcribed(checkpoint, whole, strict)) == texts(
        transcribed(checkpoint, whole, SETTINGS)
    )
    long = ListCorpus([(tone(0.5), ""), (tone(WINDOW_S + 0.7), "")])
    if checkpoint.architecture.family == "moonshine":
        assert len(transcribed(checkpoint, long, strict).hypotheses) == 2
        return
    said = r"^clip 'clip-1' \(1\.wav\): 2\.70 s .* window of 2 s; .*decode\.too_long=cut$"
    with pytest.raises(UserError, match=said):
        transcribed(checkpoint, long, strict)


def test_very_short_clips(checkpoint: Checkpoint) -> None:
    corpus = ListCorpus([(tone(0.05), ""), (np.full(1, 0.1, np.float32), "")])
    for row in transcribed(checkpoint, corpus, SETTINGS).hypotheses:
        assert row.generated_tokens >= 1


def test_damaged_clips_are_returned(whisper: Checkpoint) -> None:
    done: list[int] = []
    corpus = ListCorpus(["empty", (tone(0.5), "fox"), "no audio"])
    result = transcribed(whisper, corpus, SETTINGS, on_batch=lambda count, _: done.append(count))
    assert [clip.reason for clip in result.damaged] == ["empty", "no audio"]
    assert [row.id for row in result.hypotheses] == ["clip-1"]
    assert done == [3]
    assert transcribed(whisper, ListCorpus(["empty"]), SETTINGS).hypotheses == ()


def test_output_is_a_leaderboard_manifest(whisper: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "run" / "hypotheses.jsonl"
    result = transcribed(whisper, CORPUS, SETTINGS)
    write_hypotheses(output, result.hypotheses)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["audio_filepath"] for row in rows] == [f"{index}.wav" for index in range(5)]
    assert {"audio_filepath", "duration", "time", "text", "pred_text"} <= rows[0].keys()
    assert read_hypotheses(output) == result.hypotheses
    assert [path.name for path in output.parent.iterdir()] == ["hypotheses.jsonl"]


class Interrupted(Exception):
    pass


def interrupt(checkpoint: Checkpoint, journal: Path, after: int = 4) -> None:
    def stop(done: int, total: int) -> None:
        del total
        if done >= after:
            raise Interrupted

    with pytest.raises(Interrupted):
        transcribe(TorchRuntime(checkpoint), CORPUS, SETTINGS, journal, stop)


def without_time(rows: Sequence[ClipOutput]) -> list[ClipOutput]:
    return [replace(row, time=0.0, seconds=PhaseSeconds()) for row in rows]


def test_an_interrupted_run_is_resumed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    whole = transcribe(TorchRuntime(checkpoint), CORPUS, SETTINGS)
    journal = tmp_path / "heard.jsonl"
    interrupt(checkpoint, journal)
    kept = read_outputs(journal)
    assert len(kept) == 4
    assert journal.read_text(encoding="utf-8").count("\n") == 4
    runtime = Counting(checkpoint)
    resumed = transcribe(runtime, CORPUS, SETTINGS, journal)
    assert runtime.batches == [1]
    assert without_time(resumed) == without_time(whole)
    assert [row for row in resumed if row in kept] == sorted(kept, key=lambda row: row.index)
    assert sorted(read_outputs(journal), key=lambda row: row.index) == resumed
    assert list(tmp_path.iterdir()) == [journal]
    # Finished, and still not decoded again.
    assert transcribe(runtime, CORPUS, SETTINGS, journal) == resumed
    assert runtime.batches == [1]


def test_a_torn_batch_is_decoded_again_as_a_whole(moonshine: Checkpoint, tmp_path: Path) -> None:
    """Else the clip left over would be padded differently and could get another text."""
    whole = transcribe(TorchRuntime(moonshine), CORPUS, SETTINGS)
    journal = tmp_path / "heard.jsonl"
    interrupt(moonshine, journal)
    content = journal.read_bytes()
    journal.write_bytes(content[:-20])
    runtime = Counting(moonshine)
    resumed = transcribe(runtime, CORPUS, SETTINGS, journal)
    assert runtime.batches == [2, 1]
    assert without_time(resumed) == without_time(whole)
    # The torn line is gone, and every clip can be read back.
    assert {row.index for row in read_outputs(journal)} == set(range(5))
    for line in journal.read_text(encoding="utf-8").split("\n")[:-1]:
        json.loads(line)


def test_a_batch_that_lacks_a_clip_is_decoded_as_a_whole(
    moonshine: Checkpoint, tmp_path: Path
) -> None:
    """As left by an interruption between two lines, or by a run with another batch size."""
    whole = transcribe(TorchRuntime(moonshine), CORPUS, SETTINGS)
    journal = tmp_path / "heard.jsonl"
    for present in range(5):
        journal.write_text(to_lines([replace(whole[present], pred_text="left")]), encoding="utf-8")
        runtime = Counting(moonshine)
        resumed = transcribe(runtime, CORPUS, SETTINGS, journal)
        # The shortest clip is a batch of its own, the last, and complete.
        alone = present == 1
        assert runtime.batches == ([2, 2] if alone else [2, 2, 1])
        assert [row.pred_text == "left" for row in resumed] == [
            alone and row.index == present for row in resumed
        ]


def test_a_text_of_any_characters_reads_back(tmp_path: Path) -> None:
    """A line separator inside a text, which JSON leaves as it is, ends no row."""
    rows = [
        ClipOutput(
            index, f"one{mark}two", 1.0, 16_000, 3, hit_limit=False, truncated=False, time=0.1
        )
        for index, mark in enumerate(("\u2028", "\u2029", "\x85", "\x1c", "\r", "\n", '"', "é"))
    ]
    journal = tmp_path / "heard.jsonl"
    journal.write_text(to_lines(rows), encoding="utf-8")
    assert read_outputs(journal) == rows
    entries = [ClipEntry(f"clip-{row.index}", "a.wav", row.pred_text) for row in rows]
    hypotheses = joined(entries, rows).hypotheses
    write_hypotheses(tmp_path / "h.jsonl", hypotheses)
    assert read_hypotheses(tmp_path / "h.jsonl") == hypotheses


def test_a_journal_of_another_kind_is_not_believed(whisper: Checkpoint, tmp_path: Path) -> None:
    journal = tmp_path / "heard.jsonl"
    journal.write_bytes(b'[]\n{"index": 0}\n\xff\xfe\n3\n\n')
    assert read_outputs(journal) == []
    runtime = Counting(whisper)
    transcribe(runtime, CORPUS, SETTINGS, journal)
    assert runtime.batches == [2, 2, 1]
    assert len(read_outputs(journal)) == 5


def test_unreadable_hypotheses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_hypotheses(tmp_path / "none.jsonl")
    path = tmp_path / "other.jsonl"
    row = Hypothesis("a.wav", "horse", "house", 1.0, 0.1, "0", 16_000, 3, metadata={"speaker": "1"})
    good = to_lines([row])
    for old, new, said in (
        (good, '{"text": "x"}\n', "audio_filepath: is missing"),
        (good, good[:-5], "Invalid JSON"),
        (good, "[" * 100_000, "Invalid JSON: recursion limit"),
        (good, f"[{good.strip()}]", "should be an object"),
        ('"text": "horse"', '"text": 3', r"text=3: .* string"),
        ('"speaker": "1"', '"speaker": 1', r"metadata\.speaker=1: .* string"),
        ('"duration": 1.0', '"duration": true', r"duration=True: .* number"),
        ('"duration": 1.0', '"duration": NaN', r"duration=nan: .* finite"),
        ('"samples": 16000', '"samples": "16000"', r"samples='16000': .* integer"),
        ('"hit_limit": false', '"hit_limit": 0', r"hit_limit=0: .* boolean"),
    ):
        path.write_text(good + "\n" + good.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError, match=f"{path}, line 3: .*{said}.*; .* rerun=true") as caught:
            read_hypotheses(path)
        assert len(str(caught.value).splitlines()) == 1
    path.write_text(good.replace("1.0", "1"), encoding="utf-8")
    assert read_hypotheses(path) == (row,)


def test_a_manifest_that_others_published_is_read(tmp_path: Path) -> None:
    """With what they leave out, add, or repeat; a text may be null."""
    path = tmp_path / "MODEL_openai-whisper-tiny.en_DATASET_esb_ami_test.jsonl"
    row = {"audio_filepath": "sample", "duration": 2.5, "time": None, "text": "a", "pred_text": "b"}
    lines = [row, row | {"pred_text": None, "logprob": -1.5}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    first, second = read_hypotheses(path)
    assert (first.id, first.duration, first.time, first.pred_text) == ("sample", 2.5, 0.0, "b")
    assert (second.id, second.pred_text) == ("sample#2", "")


def test_rows_that_do_not_count_lie_aside(tmp_path: Path) -> None:
    path = tmp_path / "MODEL_a_DATASET_b.jsonl"
    counted, other = (Hypothesis("a.wav", text, "x", id=text) for text in ("one", ""))
    write_hypotheses(path, [counted], [replace(other, id="silence")])
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1
    assert [row.id for row in read_hypotheses(path)] == ["one", "silence"]
    write_hypotheses(path, [counted])
    assert [row.id for row in read_hypotheses(path)] == ["one"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("field", ["batch_size", "max_new_tokens", "sort_window"])
def test_settings_are_checked(field: str) -> None:
    with pytest.raises(UserError, match=f"decode.{field}=0"):
        DecodeSettings(**{field: 0})


def test_multilingual_whisper_is_told_language_and_task(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(tiny_whisper(tmp_path, multilingual=True)))
    prompt = checkpoint.architecture.prompt(checkpoint.model)
    named = checkpoint.tokenizer.convert_ids_to_tokens(list(prompt))
    assert named == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    (row,) = greedy(checkpoint, [tone(0.5)], [6])
    assert row.steps >= 1


def test_decoding_is_quiet_and_leaves_the_model_as_it_was(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    before = checkpoint.model.generation_config.to_dict()
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        greedy(checkpoint, [tone(0.5), tone(0.7)], [4, 4])
    finally:
        library.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in recwarn] == []
    assert checkpoint.model.generation_config.to_dict() == before

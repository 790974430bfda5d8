"""Calibration batches: masks, teacher forcing, draws and degenerate corpora."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tiny import WINDOW_S, ListCorpus, tone
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from edge_asr.calibration.batches import CalibrationBatch, calibration_batches, text_tokens
from edge_asr.errors import UserError
from edge_asr.models.loading import Checkpoint
from edge_asr.runtimes.torch_greedy import greedy, token_limit

SENTENCES = ["the fox", "she sells sea shells", "how much wood", "lazy dog jumps", "quick"]
LENGTHS = [1.3, 0.5, 1.9, 0.05, 0.8]
CORPUS = ListCorpus(
    [(tone(seconds), text) for seconds, text in zip(LENGTHS, SENTENCES, strict=True)]
)


def batches_of(checkpoint: Checkpoint, corpus: ListCorpus = CORPUS) -> list[CalibrationBatch]:
    return calibration_batches(checkpoint, corpus, clips=len(corpus), batch_size=2, seed=0)


def encoder_frames(checkpoint: Checkpoint, batch: CalibrationBatch) -> torch.Tensor:
    with torch.inference_mode():
        encoder = checkpoint.model.get_submodule(checkpoint.architecture.encoder_module)
        output: torch.Tensor = encoder(**batch.encoder_inputs).last_hidden_state
    return output


def test_frame_weights_have_the_encoders_length(checkpoint: Checkpoint) -> None:
    batches = batches_of(checkpoint)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    for batch in batches:
        assert batch.frame_weights.shape == encoder_frames(checkpoint, batch).shape[:2]
        assert batch.frame_weights.dtype == torch.float32
        assert batch.token_mask.dtype == torch.bool


def test_frames_of_audio_only_count(checkpoint: Checkpoint) -> None:
    counted = torch.cat([batch.frame_weights.sum(1) for batch in batches_of(checkpoint)])
    expected = [
        checkpoint.architecture.valid_frames(checkpoint.model.config, round(seconds * 16_000))
        for seconds in sorted(LENGTHS, reverse=True)
    ]
    assert counted.tolist() == expected


def test_masked_frames_of_whisper_are_most_of_a_short_clip(whisper: Checkpoint) -> None:
    (batch,) = batches_of(whisper, ListCorpus([(tone(0.1), "fox")]))
    assert batch.frame_weights.shape == (1, WINDOW_S * 50)
    assert batch.frame_weights.sum() == 5


def test_decoder_is_forced_on_prompt_and_text(checkpoint: Checkpoint) -> None:
    prompt = list(checkpoint.architecture.prompt(checkpoint.model))
    written = {}
    for batch in batches_of(checkpoint):
        for ids, mask in zip(batch.decoder_input_ids, batch.token_mask, strict=True):
            tokens = ids[mask].tolist()
            assert tokens[: len(prompt)] == prompt
            assert mask.tolist() == sorted(mask.tolist(), reverse=True), "padding comes last"
            written[checkpoint.tokenizer.decode(tokens[len(prompt) :])] = tokens
    assert sorted(text.strip() for text in written) == sorted(SENTENCES)


def test_padding_does_not_reach_the_logits(checkpoint: Checkpoint) -> None:
    """The masks suffice: a clip's decoder states are the same with and without token padding."""
    batch = max(batches_of(checkpoint), key=lambda batch: int((~batch.token_mask).sum()))
    row = int((~batch.token_mask).sum(1).argmax())
    length = int(batch.token_mask[row].sum())
    assert length < batch.token_mask.shape[1]
    with torch.inference_mode():
        padded = checkpoint.model(
            **batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids
        ).logits[row, :length]
        bare = checkpoint.model(
            **batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids[:, :length]
        ).logits[row]
    torch.testing.assert_close(padded, bare, rtol=0, atol=1e-4)


def test_own_hypothesis_where_there_is_no_text(checkpoint: Checkpoint) -> None:
    wave = tone(1.0)
    batch = batches_of(checkpoint, ListCorpus([(wave, " "), (tone(1.2), "fox")]))[0]
    (own,) = greedy(checkpoint, [wave], [token_limit(checkpoint, len(wave))])
    prompt = checkpoint.architecture.prompt(checkpoint.model)
    tokens = batch.decoder_input_ids[1][batch.token_mask[1]].tolist()
    assert own.tokens
    room = checkpoint.architecture.decoder_room(checkpoint.model.config)
    assert tokens == [*prompt, *own.tokens][:room]


def test_long_texts_are_cut_to_the_decoders_room_and_counted(checkpoint: Checkpoint) -> None:
    clips = [(tone(0.9), "zebra quiz " * 8), (tone(1.1), "fox"), (tone(1.2), "quiz zebra " * 9)]
    said: list[str] = []
    corpus = ListCorpus(clips)
    (batch,) = calibration_batches(checkpoint, corpus, 3, 4, seed=0, on_warning=said.append)
    room = checkpoint.architecture.decoder_room(checkpoint.model.config)
    assert batch.decoder_input_ids.shape == (3, room)
    (warning,) = said
    assert warning.startswith("texts of 2 calibration clips, '2.wav' the first")
    assert f"{room} tokens" in warning
    with torch.inference_mode():
        checkpoint.model(**batch.encoder_inputs, decoder_input_ids=batch.decoder_input_ids)


@pytest.mark.parametrize(
    "text",
    ["dog " * 20_000, "[noise] <unk>", "ignore_time_segment_in_scoring"],
    ids=["endless", "markers only", "no text"],
)
def test_what_the_model_hears_stands_for_a_text_that_was_not_said(
    checkpoint: Checkpoint, text: str
) -> None:
    wave = tone(1.0)
    said: list[str] = []
    corpus = ListCorpus([(wave, text)])
    (batch,) = calibration_batches(checkpoint, corpus, 1, 1, seed=0, on_warning=said.append)
    (own,) = greedy(checkpoint, [wave], [token_limit(checkpoint, len(wave))])
    prompt = checkpoint.architecture.prompt(checkpoint.model)
    room = checkpoint.architecture.decoder_room(checkpoint.model.config)
    assert batch.decoder_input_ids[0].tolist() == [*prompt, *own.tokens][:room]
    counted = [one for one in said if "left out: nobody can say so much" in one]
    assert len(counted) == (1 if text.startswith("dog") else 0)


def test_tags_and_markers_are_no_tokens(checkpoint: Checkpoint) -> None:
    def forced(text: str) -> list[int]:
        (batch,) = batches_of(checkpoint, ListCorpus([(tone(1.0), text)]))
        tokens: list[int] = batch.decoder_input_ids[0].tolist()
        return tokens

    assert forced("<|en|> the [noise] fox <unk>") == forced("the fox")


def test_damaged_and_long_clips_are_reported(whisper: Checkpoint) -> None:
    corpus = ListCorpus(["no samples", (tone(WINDOW_S + 1.0), "fox"), (tone(0.5), "dog")])
    said: list[str] = []
    batches = calibration_batches(
        whisper, corpus, clips=3, batch_size=4, seed=1, on_warning=said.append
    )
    assert [len(batch) for batch in batches] == [2]
    assert bool(batches[0].frame_weights[0].all()), "a cut clip fills the window"
    assert any("'0.wav' left out: no samples" in text for text in said)
    assert any(
        "1 calibration clips, '1.wav' the first, cut to the model's" in text for text in said
    )
    assert any("gave 2 clips, not 3" in text for text in said)


def test_a_cut_clip_keeps_no_text_that_is_not_heard(whisper: Checkpoint) -> None:
    wave = tone(WINDOW_S + 1.0)
    with pytest.warns(UserWarning, match="cut to the model's window"):
        (batch,) = batches_of(whisper, ListCorpus([(wave, "fox")]))
    heard = wave[: WINDOW_S * 16_000]
    (own,) = greedy(whisper, [heard], [token_limit(whisper, len(heard))])
    prompt = whisper.architecture.prompt(whisper.model)
    room = whisper.architecture.decoder_room(whisper.model.config)
    assert batch.decoder_input_ids[0].tolist() == [*prompt, *own.tokens][:room]


def test_damage_is_never_silent(whisper: Checkpoint) -> None:
    with pytest.warns(UserWarning, match="left out|gave 1 clips"):
        batches_of(whisper, ListCorpus(["empty", (tone(0.5), "dog")]))


def test_no_usable_clip(whisper: Checkpoint) -> None:
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(UserError, match="no usable clip among 1"),
    ):
        batches_of(whisper, ListCorpus(["empty"]))


@pytest.mark.parametrize("field", ["clips", "batch_size"])
def test_counts_are_checked(whisper: Checkpoint, field: str) -> None:
    arguments = {"clips": 1, "batch_size": 1} | {field: 0}
    with pytest.raises(UserError, match=re.escape(f"calibration.{field}=0")):
        calibration_batches(whisper, CORPUS, seed=0, **arguments)


def test_the_seed_decides_the_draw(moonshine: Checkpoint) -> None:
    def drawn(seed: int) -> set[int]:
        batches = calibration_batches(moonshine, CORPUS, clips=2, batch_size=1, seed=seed)
        return {int(batch.encoder_inputs["input_values"].shape[1]) for batch in batches}

    assert drawn(3) == drawn(3)
    assert len({frozenset(drawn(seed)) for seed in range(8)}) > 1


def test_every_word_starts_with_its_space(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer
    tokens = text_tokens(tokenizer, "the fox")
    assert tokens == tokenizer(" the fox", add_special_tokens=False)["input_ids"]
    assert tokens == text_tokens(tokenizer, "THE FOX") == text_tokens(tokenizer, " the fox ")
    assert tokens != text_tokens(tokenizer, "The Fox")


def test_a_tokenizer_that_prepends_the_space_gets_no_second_one() -> None:
    """Moonshine's published tokenizer: sentencepiece's normalizer, no pre-tokenizer."""
    mark = "\N{LOWER ONE EIGHTH BLOCK}"
    pieces = [mark, "a", "b", f"{mark}a", f"{mark}b", "<unk>"]
    raw = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [(mark, "a"), (mark, "b")])
    )
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend(mark), normalizers.Replace(" ", mark)]
    )
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    assert text_tokens(tokenizer, "a b") == [3, 4]


def test_batch_is_checked() -> None:
    mask, weights = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3)
    ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="same shape"):
        CalibrationBatch({}, weights, ids, mask[:, :2])
    with pytest.raises(ValueError, match="a frame and a token that count"):
        CalibrationBatch({}, 0 * weights, ids, mask)


def test_indexed_corpora_decode_only_what_is_drawn(moonshine: Checkpoint) -> None:
    class Indexed(ListCorpus):
        touched: list[int] = []  # noqa: RUF012

        def __getitem__(self, index: int) -> object:
            self.touched.append(index)
            return list(iter(CORPUS))[index]

    corpus = Indexed([(np.zeros(1, np.float32), "")] * 5)
    calibration_batches(moonshine, corpus, clips=2, batch_size=2, seed=0)
    assert len(corpus.touched) == 2

"""Packed windows: every clip once, what fits, and what the batches are made of."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import MAX_TOKENS, WINDOW_S, ListCorpus, tone

from edge_asr.audio import SAMPLE_RATE
from edge_asr.calibration.batches import calibration_batches
from edge_asr.calibration.packing import WINDOWS_A_SINGLE, joined, joined_length, pack
from edge_asr.models.loading import Checkpoint

WINDOW, ROOM = 30 * SAMPLE_RATE, 100


@given(
    st.lists(st.tuples(st.integers(1, WINDOW), st.integers(1, ROOM)), min_size=1, max_size=40),
)
def test_every_clip_is_in_one_window_and_all_fit(clips: list[tuple[int, int]]) -> None:
    samples, tokens = zip(*clips, strict=True)
    windows = pack(samples, tokens, WINDOW, ROOM)
    assert sorted(clip for window in windows for clip in window) == list(range(len(clips)))
    for window in windows:
        assert joined_length([samples[clip] for clip in window]) <= WINDOW
        assert sum(tokens[clip] for clip in window) <= ROOM
    singles = sum(len(window) == 1 for window in windows)
    assert singles >= len(windows) // (WINDOWS_A_SINGLE + 1)
    assert windows == pack(samples, tokens, WINDOW, ROOM)


def test_clips_of_7_seconds_take_a_quarter_of_the_windows_and_one_in_eight_alone() -> None:
    windows = pack([7 * SAMPLE_RATE] * 64, [20] * 64, WINDOW, ROOM)
    assert sorted(map(len, windows)) == [1, 1, 2, *[4] * 15]


def test_clips_that_stay_alone_are_of_all_lengths() -> None:
    samples = [1600 * (index + 1) for index in range(100)]
    windows = pack(samples, [1] * 100, WINDOW, ROOM)
    alone = sorted(window[0] for window in windows if len(window) == 1)
    assert alone == [16, 49, 83]


def test_silence_lies_between_clips() -> None:
    waves = [np.full(5, 1, np.float32), np.full(3, 2, np.float32), np.full(1, 3, np.float32)]
    whole = joined(waves)
    assert len(whole) == joined_length([5, 3, 1]) == 9 + 2 * 4800
    assert whole[whole > 0].tolist() == [1] * 5 + [2] * 3 + [3]
    assert not whole[5:4805].any()
    assert joined(waves[:1]).tolist() == [1] * 5


CLIPS = [(tone(seconds), text) for seconds, text in (
    (0.6, "one two"), (0.5, "sea shells"), (0.4, "the sea"), (0.3, "by"),
)]  # fmt: skip


def test_batches_hold_joined_clips_and_joined_texts(whisper: Checkpoint) -> None:
    (batch,) = calibration_batches(whisper, ListCorpus(CLIPS), 4, 4, 0, pack=True)
    assert WINDOW_S == 2
    single, window = CLIPS[2], [CLIPS[0], CLIPS[1], CLIPS[3]]
    waves = [joined([samples for samples, _ in window]), single[0]]
    architecture = whisper.architecture
    expected = architecture.model_inputs(whisper.feature_extractor, waves)["input_features"]
    torch.testing.assert_close(batch.encoder_inputs["input_features"], expected)
    lengths = [architecture.valid_frames(whisper.model.config, len(wave)) for wave in waves]
    assert batch.frame_weights.sum(1).tolist() == lengths
    texts = [
        whisper.tokenizer.decode(ids[mask], skip_special_tokens=True).strip()
        for ids, mask in zip(batch.decoder_input_ids, batch.token_mask, strict=True)
    ]
    assert texts == ["one two sea shells by", "the sea"]
    prompt = list(architecture.prompt(whisper.model))
    for ids in batch.decoder_input_ids.tolist():
        assert ids[: len(prompt)] == prompt


def test_the_decoder_has_room_for_the_joined_texts(whisper: Checkpoint) -> None:
    text = "she sells sea shells by the sea shore one two three"
    corpus = ListCorpus([(tone(0.3), text)] * 4)
    batches = calibration_batches(whisper, corpus, 4, 1, 0, pack=True)
    lengths = [int(batch.token_mask.sum()) for batch in batches]
    assert len(batches) > 1
    assert max(lengths) <= MAX_TOKENS
    whole = calibration_batches(whisper, corpus, 4, 1, 0)
    prompt = len(whisper.architecture.prompt(whisper.model))
    words = sum(int(batch.token_mask.sum()) - prompt for batch in whole)
    assert sum(lengths) - prompt * len(batches) == words


def test_a_model_without_a_window_is_given_its_clips_as_ever(moonshine: Checkpoint) -> None:
    plain, packed = (
        calibration_batches(moonshine, ListCorpus(CLIPS), 4, 2, 0, pack=one)
        for one in (False, True)
    )
    for one, other in zip(plain, packed, strict=True):
        assert torch.equal(one.encoder_inputs["input_values"], other.encoder_inputs["input_values"])
        assert torch.equal(one.decoder_input_ids, other.decoder_input_ids)

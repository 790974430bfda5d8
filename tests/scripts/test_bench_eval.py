"""The bench of transcription on a tiny model."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench_eval import BFLOAT16_ENCODER, FLOAT32, Decoded, compare
from tiny import ListCorpus, tone

from edge_asr.models.loading import Checkpoint


def test_both_loops_write_the_same(checkpoint: Checkpoint) -> None:
    corpus = Decoded(
        ListCorpus([*[(tone(0.3 + index / 5), "the quick fox") for index in range(5)], "damaged"])
    )
    arguments = argparse.Namespace(batch_size=2, repeats=1, out=Path())
    found, other = compare(checkpoint, corpus, [FLOAT32, BFLOAT16_ENCODER], arguments)
    assert len(corpus) == 5
    assert found.different == found.explained
    assert found.plain_wer == other.plain_wer
    assert found.ratio == found.plain_s[0] / found.own_s[0]
    assert found.difference.low <= found.own_wer - found.plain_wer <= found.difference.high

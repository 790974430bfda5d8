"""Divergence from the float model, and a file that recipes are added to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ablation import divergences
from quant.passes import batches_of, quantized_with, stages
from tiny import tiny_moonshine, write_tones

from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import Grid

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_divergence_is_what_cross_entropy_exceeds_entropy_by(checkpoint: Checkpoint) -> None:
    batches = batches_of(checkpoint)
    model, _ = quantized_with(checkpoint, stages(), Grid(3))
    found, agreement = divergences(checkpoint.model, model, batches)
    expected, agree = [], []
    for batch in batches:
        inputs = {**batch.encoder_inputs, "decoder_input_ids": batch.decoder_input_ids}
        with torch.no_grad():
            exact, given = (one(**inputs).logits.double() for one in (checkpoint.model, model))
        for clip, mask in enumerate(batch.token_mask.bool()):
            p = exact[clip][mask].softmax(-1)
            cross = torch.nn.functional.cross_entropy(given[clip][mask], p)
            entropy = torch.nn.functional.cross_entropy(exact[clip][mask], p)
            expected.append(float(cross - entropy))
            agree += (exact[clip][mask].argmax(-1) == given[clip][mask].argmax(-1)).tolist()
    assert found == pytest.approx(expected, rel=1e-6)
    assert agreement == pytest.approx(sum(agree) / len(agree))
    same, all_agree = divergences(checkpoint.model, checkpoint.model, batches)
    assert (max(same), all_agree) == (0, 1)


def test_recipes_are_measured_once_and_join_only_their_like(tmp_path: Path) -> None:
    model, clips = tiny_moonshine(tmp_path / "model"), write_tones(tmp_path, 6, 0.1, "she sells")
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    clips.write_text("".join(json.dumps({**row, "set": "held"}) + "\n" for row in rows))
    out = tmp_path / "out.json"
    words = [
        "--model", str(model), "--manifest", str(clips), "--held-out", "set=held",
        "--held-out-clips", "4", "--clips", "4", "--group-size", "null", "--bits", "2",
        "--threads", "1", "--out", str(out),
    ]  # fmt: skip

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPTS / "ablation.py"), *words, *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = run("rtn", "rtn encoder.bits=8 decoder.bits=8")
    assert first.returncode == 0, first.stderr
    measured = json.loads(out.read_text())["measurements"]
    two, eight = measured["rtn"], measured["rtn encoder.bits=8 decoder.bits=8"]
    assert sum(eight["divergences"]) < sum(two["divergences"])
    assert 2 < two["bits"] < 4
    assert len(two["divergences"]) == 4
    again = run("rtn")
    assert "rtn: measured before" in again.stderr
    assert json.loads(out.read_text())["measurements"] == measured
    assert "calibration has these clips" in run("rtn", "--where", "set=held").stderr
    other = run("rtn", "--clips", "3")
    assert other.returncode == 2
    assert "was measured on other clips" in other.stderr

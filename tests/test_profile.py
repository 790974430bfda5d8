"""`python -m edge_asr.profile`: where a run's time went, as its record says."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_asr.cli.command import run_command
from edge_asr.errors import UserError
from edge_asr.profile import show_profile, summed
from edge_asr.store.record import find_records, read_record

RUN = (
    "method=gptq", "bits=3", "data.limit=2", "calibration.clips=2", "protocol.resamples=100",
)  # fmt: skip


def test_phases_of_blocks_are_in_the_record_and_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command([*RUN, f"results={tmp_path / 'runs'}"], show_profile)
    shown = capsys.readouterr().out
    (path,) = (one for one in find_records(tmp_path) if "gptq" in one.parent.name)
    blocks = read_record(path).method.blocks
    assert {"forward", "statistics", "rounding", "errors"} <= summed(blocks).keys()
    for block in blocks:
        assert block.seconds
        # To bring a block its inputs is no part of its own time.
        inside = sum(block.phases.values()) - block.phases["forward"] - block.phases["targets"]
        assert 0.5 * block.seconds < inside <= block.seconds
        assert block.name in shown
    for word in ("calibrate", "quantize", "statistics", "transcribe", "decoder", path.parent.name):
        assert word in shown


def test_a_sweep_has_no_profile() -> None:
    with pytest.raises(UserError, match="one run"):
        run_command(["-m", *RUN], show_profile)

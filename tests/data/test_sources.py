"""The sources by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_asr.data.leaderboard_sets import (
    NEW_PROTOCOL,
    OPEN_ASR_2024,
    OPEN_ASR_2026,
    LeaderboardGroup,
    LeaderboardSet,
)
from edge_asr.data.sources import sources
from edge_asr.errors import UserError


def test_names_are_imported_without_the_libraries() -> None:
    program = (
        "import sys; from edge_asr.data.sources import sources; sources.build({'name': 'ami'});"
        "print([one for one in ('datasets', 'huggingface_hub', 'pyarrow', 'torch')"
        " if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(("group", "count"), [("open_asr_2024", 8), ("open_asr_2026", 7)])
def test_groups_are_the_sets_of_a_mean(group: str, count: int) -> None:
    kind = sources[group]
    assert issubclass(kind, LeaderboardGroup)
    assert len(set(kind.members)) == count
    new = kind.protocol == NEW_PROTOCOL
    for name in kind.members:
        one = sources[name]
        assert issubclass(one, LeaderboardSet)
        if one.config is not None:
            assert one.repositories[new] == (OPEN_ASR_2026 if new else OPEN_ASR_2024)


def test_a_group_is_no_calibration() -> None:
    with pytest.raises(UserError, match="calibration=open_asr_2024 is several data sets"):
        sources.build({"name": "open_asr_2024"}).calibration_clips()

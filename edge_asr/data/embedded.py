"""The corpora shipped with the package: a test set in two conditions, and calibration clips."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from edge_asr.data.manifest import ManifestCorpus
from edge_asr.errors import UserError

Condition = Literal["all", "clean", "noisy"]


def embedded_test(condition: Condition = "all", limit: int | None = None) -> ManifestCorpus:
    """The embedded test set, or its clean or its noisy half.

    Raises:
        UserError: for another condition.
    """
    if condition not in get_args(Condition):
        raise UserError(
            f"condition={condition!r} is unknown; choose one of {', '.join(get_args(Condition))}"
        )
    return ManifestCorpus(
        _asset("test.jsonl"),
        name="embedded" if condition == "all" else f"embedded-{condition}",
        limit=limit,
        where=None if condition == "all" else {"condition": condition},
    )


def embedded_calibration(limit: int | None = None) -> ManifestCorpus:
    """The embedded calibration clips; no speaker of theirs is in the test set."""
    return ManifestCorpus(_asset("calibration.jsonl"), name="embedded-calibration", limit=limit)


def _asset(name: str) -> Path:
    return Path(str(resources.files("edge_asr"))) / "assets" / name

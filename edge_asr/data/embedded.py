"""The corpora shipped with the package: a test set in two conditions, and calibration clips."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from edge_asr.data.manifest import ManifestCorpus
from edge_asr.errors import UserError

Condition = Literal["all", "clean", "noisy"]


def embedded_test(
    condition: Condition = "all",
    limit: int | None = None,
    where: Mapping[str, str] | None = None,
) -> ManifestCorpus:
    """The embedded test set, its clean or its noisy half, or the rows that match `where`.

    Raises:
        UserError: for another condition, or when no row is left.
    """
    if condition not in get_args(Condition):
        raise UserError(
            f"condition={condition!r} is unknown; choose one of {', '.join(get_args(Condition))}"
        )
    chosen = dict(where or {}) | ({} if condition == "all" else {"condition": condition})
    return ManifestCorpus(
        _asset("test.jsonl"),
        name="embedded"
        + "".join(f"-{value}" for _, value in sorted(chosen.items()))
        + (f"-{limit}clips" if limit else ""),
        limit=limit,
        where=chosen or None,
    )


def embedded_calibration(
    limit: int | None = None, where: Mapping[str, str] | None = None
) -> ManifestCorpus:
    """The embedded calibration clips, or those that match `where`; no speaker of theirs is in the
    test set.

    Raises:
        UserError: when no row is left.
    """
    return ManifestCorpus(
        _asset("calibration.jsonl"), name="embedded-calibration", limit=limit, where=where or None
    )


def _asset(name: str) -> Path:
    return Path(str(resources.files("edge_asr"))) / "assets" / name

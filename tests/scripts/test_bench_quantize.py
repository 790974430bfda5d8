"""The bench's file of measurements: what joins it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bench_quantize import PRODUCTS, Bench, Measurement

from edge_asr.errors import UserError
from edge_asr.record import Environment

GPTQ = Measurement(64, None, 1.0, 30.0, 10**9, 0.5)
ENVIRONMENT = Environment("0.1.0", "abc", False, "3.11", {}, "Linux x86_64", "cpu", 2)
BENCH = Bench(ENVIRONMENT, "small", "1f", "2e", ("set=x",), 4, "128", 8, {"gptq": GPTQ})


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(asdict(BENCH)))
    return path


def test_measurements_of_the_same_code_and_model_join(kept: Path) -> None:
    fresh = replace(BENCH, measurements={})
    assert fresh.joined(kept) == BENCH
    assert fresh.joined(kept.with_name("new.json")) == fresh


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights_sha256": "ff"}, "weights_sha256 is 1f, not ff"),
        ({"where": ()}, "where"),
        ({"bits": 3}, "bits is 4, not 3"),
        ({"environment": replace(ENVIRONMENT, git_commit="def")}, "environment"),
    ],
)
def test_measurements_of_anything_else_are_refused(
    kept: Path, change: dict[str, object], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        replace(BENCH, measurements={}, **change).joined(kept)  # type: ignore[arg-type]


def test_a_changed_checkout_joins_nothing(kept: Path) -> None:
    dirty = replace(BENCH, environment=replace(ENVIRONMENT, git_dirty=True))
    kept.write_text(json.dumps(asdict(dirty)))
    with pytest.raises(UserError, match="commit them"):
        dirty.joined(kept)
    kept.write_text("no JSON")
    with pytest.raises(UserError, match="holds no measurements"):
        BENCH.joined(kept)


def test_the_ratio_is_of_the_same_clips() -> None:
    alone = replace(GPTQ, quantize_s=20.0)
    both = {"gptq": GPTQ, PRODUCTS: alone}
    assert replace(BENCH, measurements=both).gptq_over_products == pytest.approx(1.5)
    both[PRODUCTS] = replace(alone, clips=8)
    assert replace(BENCH, measurements=both).gptq_over_products is None
    assert BENCH.gptq_over_products is None

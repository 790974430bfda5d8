"""The bench's file of measurements: what joins it, and what is refused."""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_common import Subject
from bench_quantize import PRODUCTS, Bench, Measurement, measure, products
from quant.passes import batches_of, formats_of, stages
from torch import nn

from edge_asr.errors import UserError
from edge_asr.models.files import embedded_folder
from edge_asr.models.loading import Checkpoint
from edge_asr.quant.formats import Grid
from edge_asr.quant.layers import QuantizedLinear
from edge_asr.quant.recipe import Recipe
from edge_asr.quant.sequential import quantize_model
from edge_asr.store.plain_json import parse
from edge_asr.store.record import Environment

RESULTS = Path(__file__).parents[2] / "results"
GPTQ = Measurement(64, None, 1.0, 30.0, 10**9, 0.5)
ENVIRONMENT = Environment("0.1.0", "abc", False, "3.11", {}, "Linux x86_64", "cpu", 2)
SUBJECT = Subject(ENVIRONMENT, "small", "1f", "2e", ("set=x",), 8)
BENCH = Bench(
    **vars(SUBJECT), processor="a chip", bits=4, group_size="128", measurements={"gptq": GPTQ}
)


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
        ({"processor": "another"}, "processor is a chip, not another"),
        ({"environment": replace(ENVIRONMENT, git_commit="def")}, "git_commit is abc, not def"),
    ],
)
def test_measurements_of_anything_else_are_refused(
    kept: Path, change: dict[str, object], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        replace(BENCH, measurements={}, **change).joined(kept)  # type: ignore[arg-type]


def test_a_changed_checkout_joins_nothing(kept: Path) -> None:
    dirty = replace(BENCH, environment=replace(ENVIRONMENT, git_dirty=True))
    # The file itself may be the change: what it holds was measured before it was there.
    for before in (BENCH, dirty):
        kept.write_text(json.dumps(asdict(before)))
        with pytest.raises(UserError, match="commit them"):
            dirty.joined(kept)
    kept.write_text("no JSON")
    with pytest.raises(UserError, match=r"--out=.*Invalid JSON.*; give another file"):
        BENCH.joined(kept)


@pytest.mark.parametrize("name", ["epyc", "epyc_avx512", "learned"])
def test_committed_measurements_are_read(name: str) -> None:
    path = RESULTS / f"quantization_time_{name}.json"
    made = parse(Bench, path.read_bytes(), path)
    assert replace(made, measurements={}).joined(path) == made


def test_a_method_that_looks_at_no_clips_is_given_none(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        model=embedded_folder("whisper-micro"), manifest=tmp_path / "none.jsonl", where=[],
        clips=4, batch_size=2, padding_weight=0, pack=False, threads=1, bits=4, group_size="32",
        steps=None,
    )  # fmt: skip
    made = measure(arguments, "rtn")
    assert (made.clips, made.calibrate_s, made.output_error) == (0, 0, None)
    with pytest.raises(UserError, match=r"none\.jsonl"):
        measure(arguments, "gptq")


def test_the_ratio_is_of_the_same_clips() -> None:
    alone = replace(GPTQ, quantize_s=20.0)
    both = {"gptq": GPTQ, PRODUCTS: alone}
    assert replace(BENCH, measurements=both).gptq_over_products == pytest.approx(1.5)
    both[PRODUCTS] = replace(alone, clips=8)
    assert replace(BENCH, measurements=both).gptq_over_products is None
    assert BENCH.gptq_over_products is None


def test_products_run_every_layer_as_often_as_gptq_does(checkpoint: Checkpoint) -> None:
    batches = batches_of(checkpoint)
    recipe = Recipe.build(stages(rounding={"name": "gptq"}))
    formats = formats_of(checkpoint, Grid(4))

    def gptq(model: Any) -> None:
        quantize_model(model, checkpoint.architecture, batches, recipe, formats)

    def alone(model: Any) -> None:
        products(replace(checkpoint, model=model), batches)

    counts = counted(checkpoint, gptq)
    assert counted(checkpoint, alone) == counts
    blocks = checkpoint.architecture.blocks(checkpoint.model.config)
    names = [name for block in blocks for name in block.layers]
    assert set(counts) == set(names[:-1]), "nobody reads what the last layer gives"
    assert set(counts.values()) == {len(batches), 2 * len(batches)}


def counted(checkpoint: Checkpoint, run: Callable[[nn.Module], None]) -> Counter[str]:
    """How often `run` on a copy of the model computes each quantized layer."""
    model = copy.deepcopy(checkpoint.model)
    computed: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        if isinstance(module, QuantizedLinear):
            computed.append(module)

    with torch.nn.modules.module.register_module_forward_hook(note):
        run(model)
    names = {module: name for name, module in model.named_modules()}
    return Counter(names[module] for module in computed)

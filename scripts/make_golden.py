"""Golden rows: one short run of every method on each embedded model, for a test to compare with.

    python scripts/make_golden.py

Writes tests/golden/MODEL.json. To be run after a part's version was raised because its numbers
changed, and then to be looked at: only rows of that part may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_common import processor
from bench_quantize import STEPS

from edge_asr.cli.compose import compose_settings
from edge_asr.config import Settings
from edge_asr.evaluation.hypotheses import read_hypotheses
from edge_asr.experiments import step_keys
from edge_asr.experiments.ptq import run_experiment
from edge_asr.quant.layers import quantized_layers
from edge_asr.quant.model_folder import load_model
from edge_asr.store.files import write_text_atomically

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
MODELS = ("whisper_micro", "moonshine_micro")
CLOSED_FORM = ("rtn", "hqq", "gptq", "awq", "smoothquant", "spqr", "quik", "quarot", "best")
METHODS = (*CLOSED_FORM, *STEPS)
FEW_STEPS, FEWEST_OF_TESSERAQ = 4, 10
OPTIONS = (
    "bits=3", "scheme.rules=[{act_bits: 8}]", "calibration.clips=8", "calibration.batch_size=4",
    "data.limit=8", "batch_size=4", "threads=1", "protocol.resamples=100",
)  # fmt: skip
CODES_KEPT = 1024


def settings_of(model: str, method: str, folder: Path) -> Settings:
    """The settings of a golden run, whose results and store are in `folder`."""
    steps = FEWEST_OF_TESSERAQ if method == "tesseraq" else FEW_STEPS
    cut = [f"{option}={steps}" for option in STEPS.get(method, ())]
    overrides = [f"model={model}", f"method={method}", *OPTIONS, *cut, f"results={folder / 'runs'}"]
    return compose_settings(*overrides)


def golden_row(model: str, method: str, folder: Path) -> dict[str, Any]:
    """What a golden run finds, as plain JSON: whatever must not change unseen."""
    settings = settings_of(model, method, folder)
    outcome = run_experiment(settings)
    record = outcome.record
    quantized = load_model(settings.store_folder / "quantize" / record.keys["quantize"])
    weights = [layer.quantized for layer in quantized_layers(quantized.model).values()]
    codes = torch.cat([weight.codes.flatten().long() for weight in weights if weight is not None])
    (manifest,) = record.hypotheses_files.values()
    hypotheses = read_hypotheses(outcome.folder / manifest)
    transcribed = "\n".join(hypothesis.pred_text for hypothesis in hypotheses)
    return {
        "versions": {
            **{
                stage: f"{part['name']} {part['version']}"
                for stage, part in record.method.parts.items()
            },
            "steps": [
                step_keys.CALIBRATE_VERSION,
                step_keys.QUANTIZE_VERSION,
                step_keys.TRANSCRIBE_VERSION,
            ],
        },
        "label": f"{record.method.name} {record.method.scheme}",
        "effective_bits": record.method.effective_bits,
        "codes": codes[:: len(codes) // CODES_KEPT].tolist(),
        "losses": [
            [block.loss_before, block.loss_after]
            for block in record.method.blocks
            if block.loss_before is not None
        ],
        "output_error": record.method.output_error,
        "texts_sha256": hashlib.sha256(transcribed.encode()).hexdigest(),
        "where": environment(),
    }


def environment() -> dict[str, str]:
    """What texts, and the losses of what is learned, may depend on to the last digit.

    Two processors of one capability add up in another order.
    """
    return {"processor": processor(), "torch": torch.__version__, "threads": "1"}


def write_golden(path: Path, rows: dict[str, Any]) -> None:
    """A row a line, so that a change shows which."""
    lines = [f'"{method}": {json.dumps(row, sort_keys=True)}' for method, row in rows.items()]
    write_text_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for model in MODELS:
        with TemporaryDirectory() as folder:
            rows = {method: golden_row(model, method, Path(folder)) for method in METHODS}
        write_golden(GOLDEN / f"{model}.json", rows)
        print(f"wrote {GOLDEN / model}.json")


if __name__ == "__main__":
    main()

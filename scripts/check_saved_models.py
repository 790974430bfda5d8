"""Save and load every method's quantized model: changed logits, and bytes against those charged.

    python scripts/check_saved_models.py --models whisper-micro FOLDER --manifest FILE

Quantizes with a few clips and short schedules, which is enough to try what is stored. Exits with 1
where a logit differs at all or the bytes by more than 2 %.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_common import method_of, quantize
from bench_quantize import METHODS, STEPS
from rich.console import Console
from rich.table import Table

from edge_asr.calibration.batches import CalibrationBatch, calibration_batches
from edge_asr.cli.compose import compose_settings
from edge_asr.cost.model import model_size
from edge_asr.data.manifest import ManifestCorpus
from edge_asr.experiments.sections import quantized_summary
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.model_folder import load_model, save_model, tensor_bytes

STEPS_TAKEN, FEWEST_OF_TESSERAQ = 8, 10
ALLOWED = 0.02  # of the bytes, for the header of the file


@torch.no_grad()
def logits(checkpoint: Checkpoint, batch: CalibrationBatch) -> torch.Tensor:
    """Of one batch, teacher-forced, padding included."""
    inputs = {**batch.encoder_inputs, "decoder_input_ids": batch.decoder_input_ids}
    output: torch.Tensor = checkpoint.model(**inputs).logits
    return output


def check(model: str, method: str, corpus: ManifestCorpus, clips: int) -> tuple[float, float]:
    """The largest change of a logit, and the bytes on disk less those charged, relative to them."""
    steps = FEWEST_OF_TESSERAQ if method == "tesseraq" else STEPS_TAKEN
    cut = [f"{option}={steps}" for option in STEPS.get(method, ())]
    settings = compose_settings(
        "model=custom", f"model.path='{model}'", f"method={method}", "bits=4", *cut
    )
    checkpoint = load_checkpoint(model)
    recipe, formats = method_of(settings, checkpoint)
    batches = calibration_batches(
        checkpoint, corpus, clips, clips, 0, padding_weight=settings.calibration.padding_weight
    )
    transcribed = calibration_batches(checkpoint, corpus, 2, 2, seed=1)[0]
    wanted = batches if recipe.needs_calibration(formats.values()) else []
    quantize(checkpoint, wanted, recipe, formats)
    width = checkpoint.files.float_bits
    summary = quantized_summary(checkpoint.model, checkpoint.architecture, width)
    with TemporaryDirectory() as folder:
        save_model(Path(folder), checkpoint)
        loaded, size = load_model(Path(folder)), tensor_bytes(Path(folder))
    difference = (logits(checkpoint, transcribed) - logits(loaded, transcribed)).abs().max()
    return float(difference), size / model_size(summary).bytes - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, help="embedded names or folders")
    parser.add_argument("--manifest", type=Path, required=True, help="clips to calibrate on")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = ManifestCorpus(arguments.manifest, require_text=False)
    table = Table("model", "method", "largest logit change", "bytes over charged", box=None)
    sound = True
    for model in arguments.models:
        for method in arguments.methods:
            change, over = check(model, method, corpus, arguments.clips)
            sound = sound and change == 0 and abs(over) <= ALLOWED
            table.add_row(Path(model).name, method, f"{change:g}", f"{over:+.2%}")
            print(f"{Path(model).name} {method}: {change:g}, {over:+.2%}", file=sys.stderr)
    Console().print(table)
    sys.exit(not sound)


if __name__ == "__main__":
    main()

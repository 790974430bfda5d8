"""How far an exported ONNX encoder is from the simulation, and what that is worth; its size.

    python scripts/file_and_simulation.py --exported FOLDER --quantized RUN --manifest FILE \\
        --where set=CLIPS --out FILE

What the decoder reads of a clip, the cross-attention's values, is computed by the file, by the
simulation, by the simulation of features that are changed by a millionth, and by the float model.
A file is the simulation as far as anybody can tell if it is no further from it than it is from
itself, once changed so: sums in another order change as much, and every input that then falls on
the other side of a rounding changes what comes behind it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from bench_common import corpus_of, run, write_measurements
from rich.console import Console
from rich.table import Table
from torch import Tensor

from edge_asr.data.corpus import Utterance
from edge_asr.errors import UserError
from edge_asr.export.exported import read_export
from edge_asr.export.graphs import EncoderGraph
from edge_asr.export.onnx_exporter import ENCODER, FEATURES
from edge_asr.export.source import quantized_model
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.runtimes.onnx_runtime import session
from edge_asr.store.environment import Environment, current_environment

CHANGE = 1e-6


@dataclass(frozen=True)
class Distances:
    """Of the cross-attention's values of one clip, each in units of the size of the latter.

    Attributes:
        file_simulation: Of the file's from the simulation's.
        changed_simulation: Of the simulation's, once features change, from the simulation's.
        simulation_float, file_float: Of both from the float model's.
    """

    file_simulation: float
    changed_simulation: float
    simulation_float: float
    file_float: float


@dataclass(frozen=True)
class Comparison:
    """A file and its simulation.

    Attributes:
        encoder_bytes: Of the file.
        float32_bytes: Of what it holds, were all parameters float32.
        change: Standard deviation of what features are multiplied by, around one.
        clips: By the clip's id.
    """

    environment: Environment
    model: str
    target: str
    formats: str
    encoder_bytes: int
    float32_bytes: int
    change: float
    clips: dict[str, Distances]


def distance(one: Tensor, other: Tensor) -> float:
    """Of `one` from `other`, in units of the size of that."""
    return float((one - other).norm() / other.norm())


def graph_of(checkpoint: Checkpoint) -> EncoderGraph:
    """The encoder with the cross-attention's layers."""
    return EncoderGraph(checkpoint.model, checkpoint.architecture).eval()


def features_of(checkpoint: Checkpoint, samples: np.ndarray) -> Tensor:
    """What the encoder reads of a clip."""
    inputs = checkpoint.architecture.model_inputs(checkpoint.feature_extractor, [samples])
    return next(iter(inputs.values()))


@torch.no_grad()
def distances(
    quantized: Checkpoint, exact: Checkpoint, folder: Path, clips: Iterator[Utterance]
) -> Iterator[tuple[str, Distances]]:
    """Those of every clip, by its id."""
    file, generator = session(folder / ENCODER), torch.Generator().manual_seed(0)
    simulation, floats = graph_of(quantized), graph_of(exact)
    for clip in clips:
        features = features_of(quantized, clip.samples)
        noise = 1 + CHANGE * torch.randn(features.shape, generator=generator)
        found = torch.from_numpy(file.run(None, {FEATURES: features.numpy()})[1])
        own, changed = simulation(features)[1], simulation(features * noise)[1]
        expected = floats(features)[1]
        yield (
            clip.id,
            Distances(
                file_simulation=distance(found, own),
                changed_simulation=distance(changed, own),
                simulation_float=distance(own, expected),
                file_float=distance(found, expected),
            ),
        )


def heard(arguments: argparse.Namespace) -> Iterator[Utterance]:
    """The clips of the manifest that can be heard."""
    clips = (clip for clip in corpus_of(arguments) if isinstance(clip, Utterance))
    yield from islice(clips, arguments.clips)


def measure(arguments: argparse.Namespace) -> Comparison:
    """Compare what the arguments name."""
    torch.set_num_threads(arguments.threads)
    export = read_export(arguments.exported)
    if ENCODER not in export.files:
        raise UserError(f"--exported={arguments.exported}: has no {ENCODER}; give an ONNX export")
    quantized = quantized_model(arguments.quantized, arguments.store)
    exact = load_checkpoint(export.source)
    found = dict(distances(quantized, exact, arguments.exported, heard(arguments)))
    if not found:
        raise UserError("--manifest: no clip was heard; give another --where or more --clips")
    return Comparison(
        environment=current_environment("cpu", arguments.threads),
        model=export.checkpoint,
        target=export.target,
        formats=export.formats,
        encoder_bytes=export.files[ENCODER].bytes,
        float32_bytes=sum(4 * one.numel() for one in graph_of(exact).parameters()),
        change=CHANGE,
        clips=found,
    )


def show(made: Comparison, out: Path | None) -> None:
    """Print it, and write it if asked to."""
    console = Console()
    table = Table("distance", "mean", "least", "most", box=None)
    for name in Distances.__annotations__:
        values = [getattr(one, name) for one in made.clips.values()]
        table.add_row(name, *(f"{one:.2g}" for one in (mean(values), min(values), max(values))))
    console.print(table)
    share = made.encoder_bytes / made.float32_bytes
    size = f"{ENCODER}: {made.encoder_bytes / 1e6:.2f} MB, {share:.3f} of float32's"
    console.print(size, highlight=False)
    if out:
        write_measurements(out, made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exported", type=Path, required=True, help="for an onnx target")
    parser.add_argument("--quantized", type=Path, required=True, help="the run it was made of")
    parser.add_argument("--store", type=Path, help="where that run kept its model")
    parser.add_argument("--manifest", type=Path, required=True, help="clips")
    parser.add_argument("--where", action="append", default=[], help="FIELD=VALUE, may be repeated")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write all of it as JSON")
    arguments = parser.parse_args()
    run(parser, lambda: show(measure(arguments), arguments.out))


if __name__ == "__main__":
    main()

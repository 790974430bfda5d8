"""What whisper.cpp hears through a file that its own tool `quantize` made: a run's opponent.

    python -m edge_asr.export RUN --target ggml_q4_0 --float --out FLOAT
    python scripts/whisper_cpp_quantize.py --float FLOAT --tool build/bin/whisper-quantize \\
        --type q4_0 --manifest FILE --where set=CLIPS --out HYPOTHESES
    python -m edge_asr.compare RUN HYPOTHESES

Features, prompt and search are those of `runtime=whisper_cpp`, so that only the codes differ.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_common import corpus_of, run
from rich.console import Console

from edge_asr.data.corpus import Corpus
from edge_asr.errors import UserError
from edge_asr.evaluation.hypotheses import Hypothesis, joined, write_hypotheses
from edge_asr.evaluation.protocols import protocol_named
from edge_asr.evaluation.transcribe import DecodeSettings, transcribe
from edge_asr.evaluation.wer import score
from edge_asr.export.exported import Export, checkpoint_of, read_export
from edge_asr.export.formats.ggml import MODEL, read_whole
from edge_asr.runtimes.whisper_cpp import WhisperCpp

PROTOCOL = "open_asr_2024"
CLIP_BY_CLIP = DecodeSettings(batch_size=1)


def float_export(folder: Path) -> Export:
    """What `folder` holds. Raises UserError where that is no float file of whisper.cpp."""
    export = read_export(folder)
    if MODEL not in export.files or export.formats != "float":
        raise UserError(
            f"--float={folder}: holds {export.formats} for {export.target}; "
            "give what --target=ggml_q4_0 --float exported"
        )
    return export


def quantized_by(tool: Path, kind: str, floats: Path, quantized: Path) -> None:
    """Let whisper.cpp's `tool` write the file `quantized`. Raises UserError where it fails."""
    words = [str(tool), str(floats), str(quantized), kind]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(
            f"--tool={tool}: cannot be started ({error.strerror}); build whisper.cpp's quantize"
        ) from error
    if done.returncode or not quantized.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"--type={kind}: {tool} failed: {said[-1] if said else done.returncode}")


def heard_through(
    export: Export, folder: Path, tool: Path, kind: str, corpus: Corpus
) -> tuple[Hypothesis, ...]:
    """What is heard of the clips through the file that `tool` makes of a float one."""
    with TemporaryDirectory() as made:
        shutil.copytree(folder, made, ignore=shutil.ignore_patterns(MODEL), dirs_exist_ok=True)
        quantized_by(tool, kind, folder / MODEL, Path(made) / MODEL)
        read_whole(Path(made) / MODEL)
        runtime = WhisperCpp(checkpoint_of(export, folder), exported=Path(made))
        outputs = transcribe(runtime, corpus, CLIP_BY_CLIP)
    return joined(corpus.entries, outputs).hypotheses


def measure(arguments: argparse.Namespace) -> None:
    """Write what is heard, and print its WER."""
    torch.set_num_threads(arguments.threads)
    export = float_export(arguments.float)
    hypotheses = heard_through(
        export, arguments.float, arguments.tool, arguments.type, corpus_of(arguments)
    )
    write_hypotheses(arguments.out, hypotheses)
    wer = score(hypotheses, protocol_named(PROTOCOL)).wer
    Console().print(f"{arguments.out}: {len(hypotheses)} clips, WER {wer:.2f} % ({PROTOCOL})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--float", type=Path, required=True, help="float export for a ggml target")
    parser.add_argument("--tool", type=Path, required=True, help="whisper.cpp's quantize")
    parser.add_argument("--type", default="q4_0", help="q4_0, q4_1, q5_0, q5_1, q8_0")
    parser.add_argument("--manifest", type=Path, required=True, help="clips with transcripts")
    parser.add_argument("--where", action="append", default=[], help="FIELD=VALUE, may be repeated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True, help="file of hypotheses (.jsonl)")
    arguments = parser.parse_args()
    run(parser, lambda: measure(arguments))


if __name__ == "__main__":
    main()

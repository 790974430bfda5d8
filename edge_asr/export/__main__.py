"""Write a quantized model for a runtime: `python -m edge_asr.export --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from edge_asr.cli.main import Parser, exit_code
from edge_asr.config import target_named
from edge_asr.errors import UserError, first_line
from edge_asr.quant.target import Target
from edge_asr.store.record import RECORD_NAME

if TYPE_CHECKING:
    from edge_asr.models.loading import Checkpoint


def _parser() -> Parser:
    parser = Parser(
        prog="python -m edge_asr.export",
        description="Write a quantized model in the format of a runtime: its own codes, never "
        "quantized again. What was written is read back and compared, bit for bit, before the "
        "folder appears.",
    )
    parser.add_argument("model", type=Path, help="folder of a finished run, or of a saved model")
    parser.add_argument("--target", required=True, help="a name of conf/target")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--store", type=Path, help="the run's store (default: .edge_asr beside the folder of runs)"
    )
    parser.add_argument(
        "--float", action="store_true", dest="floats",
        help="write the float model of the run instead, to compare with",
    )  # fmt: skip
    return parser


def command(arguments: Sequence[str] | None = None) -> None:
    """Export. Raises UserError for what cannot be."""
    options = _parser().parse_args(arguments)
    target = target_named(options.target)
    # Only now what takes seconds to import.
    from edge_asr.export.source import float_model, quantized_model
    from edge_asr.export.write import export, export_float

    model = options.model.parent if options.model.name == RECORD_NAME else options.model
    if options.floats:
        checkpoint, write = float_model(model), export_float
        said = f"the float model of {model}"
    else:
        checkpoint, write = quantized_model(model, options.store), export
        _refuse_other_target(model, checkpoint, target)
        said = f"read back, every weight is that of {model}"
    try:
        folder = write(checkpoint, target, options.out)
    except OSError as error:
        raise UserError(
            f"--out={options.out}: cannot be written ({error.strerror or first_line(error)}); "
            "choose another folder"
        ) from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    Console().print(f"{folder}: {size / 1e6:.1f} MB; {said}", soft_wrap=True)


def _refuse_other_target(folder: Path, checkpoint: Checkpoint, target: Target) -> None:
    """Raises UserError where a run was made for a target whose models the given one cannot hold:
    remedies of the latter would be refused by the former."""
    from edge_asr.export.source import target_of
    from edge_asr.export.write import refuse_model

    own = target_of(folder)
    if own in (None, target.name):
        return
    try:
        refuse_model(checkpoint, target)
    except UserError as error:
        raise UserError(
            f"--target={target.name}: {folder} was made with target={own}, and its layers are none "
            f"of {target.name}; give --target={own}, or make a run with target={target.name}"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command."""
    return exit_code(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""The quantized model that a run made, or a folder holds, and the float one of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edge_asr.errors import UserError
from edge_asr.models.decoding import Decoding
from edge_asr.models.loading import Checkpoint, load_checkpoint
from edge_asr.quant.model_folder import load_model
from edge_asr.quant.target import ANYTHING
from edge_asr.settings import build
from edge_asr.store.artefacts import Store
from edge_asr.store.record import FLOAT_METHOD, RECORD_NAME, Record, read_record

USUAL_STORE = ".edge_asr"


def quantized_model(folder: Path, store: Path | None = None) -> Checkpoint:
    """The model of a run's folder, or of one that a quantized model was saved to.

    Args:
        folder: Either.
        store: Where the run kept its steps; None: beside the folder of runs.

    Raises:
        UserError: there is none, or the store has given it up.
    """
    path = folder / RECORD_NAME
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give that of a run, such as runs/MODEL/RUN")
    if not path.is_file():
        return load_model(folder)
    record = read_record(path)
    if record.method.name == FLOAT_METHOD:
        raise UserError(
            f"{folder}: is a run of the float model; give one of a quantized model, or add --float"
        )
    # RESULTS/MODEL/RUN
    place = folder.resolve().parent.parent.parent / USUAL_STORE if store is None else store
    artefact = Store(place).find_key("quantize", record.keys.get("quantize", ""))
    if artefact is None:
        raise UserError(
            f"{folder}: its quantized model is not in {place}, or damaged; make the run again with "
            "rerun=true, which keeps it there as long as store_cap= allows, or give --store of a "
            "run that was moved"
        )
    found = load_model(artefact.folder, decoding=_decoding(record))
    # What was quantized serves runs of other names, which decode in other ways.
    return replace(
        found,
        name=record.model.name,
        files=replace(
            found.files, reference=record.model.source, float_weights=record.model.weights_sha256
        ),
        tokens_per_second=found.architecture.tokens_per_second(
            _tokens_per_second(record), found.decoding.language
        ),
    )


def target_of(folder: Path) -> str | None:
    """The target that a run's folder was made for, if it is one and there was any."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    name: str = read_record(path).config.get("target", {}).get("name", ANYTHING.name)
    return None if name == ANYTHING.name else name


def _decoding(record: Record) -> Decoding:
    return build(Decoding, record.config.get("decode", {}), Decoding.option())


def _tokens_per_second(record: Record) -> float | None:
    """The cap that was set; None: the family's own."""
    cap: float | None = record.config.get("model", {}).get("tokens_per_second")
    return cap


def float_model(folder: Path) -> Checkpoint:
    """The float model of a run, decoding as that did.

    Raises UserError where the folder is of no run, or the model is not where it was, or not as.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise UserError(f"{folder}: has no {RECORD_NAME}; --float takes the folder of a run")
    record = read_record(path)
    checkpoint = load_checkpoint(
        record.model.source,
        name=record.model.name,
        tokens_per_second=_tokens_per_second(record),
        decoding=_decoding(record),
    )
    if checkpoint.files.weights_fingerprint != record.model.weights_sha256:
        raise UserError(
            f"{record.model.source}: has other weights than those that {folder} was made of; make "
            "the run again"
        )
    return checkpoint

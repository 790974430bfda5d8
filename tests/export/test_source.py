"""The model that an export is made of: it decodes as its run did, whoever quantized it."""

from __future__ import annotations

from pathlib import Path

from options import composed
from tiny import tiny_whisper

from edge_asr.experiments.ptq import run_experiment
from edge_asr.export.source import float_model, quantized_model
from edge_asr.store.record import RECORD_NAME, read_record


def test_what_two_runs_share_decodes_as_each_of_them(tmp_path: Path) -> None:
    model = tiny_whisper(tmp_path / "model", multilingual=True)
    words = (
        "model=custom", f"model.path={model}", "method=rtn", "data.limit=1", "threads=1",
        "max_new_tokens=4", "decode.too_long=cut",
    )  # fmt: skip
    ways = {
        "english": ("decode.language=en", "model.tokens_per_second=9"),
        "german": ("decode.language=de", "decode.suppression=none"),
    }
    keys = set()
    for name, own in ways.items():
        results = tmp_path / name
        options = (*words, *own, f"+model.name={name}", f"results={results}")
        run_experiment(composed(*options, f"store={tmp_path / 'store'}"))
        (folder,) = (one.parent for one in results.glob(f"*/rtn-*/{RECORD_NAME}"))
        keys.add(read_record(folder / RECORD_NAME).keys["quantize"])
        for found in (quantized_model(folder, tmp_path / "store"), float_model(folder)):
            prompt = found.architecture.prompt(found.model)
            assert found.decoding.language == own[0][-2:]
            language, *_ = found.tokenizer.convert_ids_to_tokens(prompt[1:2])
            assert language == f"<|{own[0][-2:]}|>"
            assert found.decoding.suppression == ("none" if name == "german" else "library")
            assert found.tokens_per_second == (9 if name == "english" else None)
            assert found.name == name
            assert found.files.reference == str(model)
    assert len(keys) == 1

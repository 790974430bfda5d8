"""The report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

import edge_asr
from edge_asr.report.clips import Clips
from edge_asr.report.page_data import heard_data, packed_details, run_data, table_data
from edge_asr.report.read import Run
from edge_asr.report.ship import PAIRED, UNPAIRED, contest
from edge_asr.report.utterances import Alignments
from edge_asr.store.files import write_text_atomically

NAME = "report.html"
SCRIPTS = (
    *("vendor/d3.min.js", "vendor/plot.umd.min.js", "state.js", "table.js", "ship.js"),
    *("plots.js", "runs.js", "utterances.js"),
)


def page(
    tables: Mapping[Clips, pd.DataFrame],
    runs: Mapping[str, Run],
    aligned: Mapping[str, Alignments],
) -> str:
    """The page of some tables.

    Args:
        tables: As `edge_asr.report.tables.tables` gives them.
        runs: Their runs by run id.
        aligned: Their alignments by run id, of those that have any.
    """
    records = {name: run.record for name, run in runs.items()}
    contests = {clips: contest(frame, runs, aligned) for clips, frame in tables.items()}
    heard = {
        clips.slug: found
        for clips, frame in tables.items()
        if (found := heard_data(frame, contests[clips], aligned))
    }
    days = sorted({record.created[:10] for record in records.values()})
    models = sorted({record.model.name for record in records.values()})
    data = {
        "tables": [
            table_data(clips, frame, records, contests[clips]) for clips, frame in tables.items()
        ],
        "summary": f"{len(runs)} runs of {', '.join(models)}, made "
        + " to ".join(dict.fromkeys((days[0], days[-1])))
        + ".",
        "footer": f"edge_asr {edge_asr.__version__}. Quantization is simulated: sizes, traffic and "
        "arithmetic are computed, and no speed is reported of a quantized model.",
        "paired": PAIRED,
        "unpaired": UNPAIRED,
    }
    details = packed_details({name: run_data(run) for name, run in runs.items()}, heard)
    return _assembled(data, details)


def _assembled(data: Any, details: str) -> str:
    folder = resources.files("edge_asr.report") / "page"
    scripts = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (folder / "report.css").read_text(encoding="utf-8")
    parts = {
        "<style>/*style*/</style>": f"<style>\n{style}</style>",
        '<script type="application/json" id="tables"></script>': (
            f'<script type="application/json" id="tables">{_script_json(data)}</script>'
        ),
        '<script type="application/octet-stream" id="details"></script>': (
            f'<script type="application/octet-stream" id="details">{details}</script>'
        ),
        '<script id="scripts"></script>': f"<script>\n{scripts}</script>",
    }
    whole = (folder / "report.html").read_text(encoding="utf-8")
    for place, content in parts.items():
        before, _, after = whole.partition(place)
        whole = before + content + after
    return whole


def _script_json(data: Any) -> str:
    """JSON that no HTML parser takes for the end of its script, or for a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").encode(errors="backslashreplace").decode()


def write_page(folder: Path, content: str) -> Path:
    """Write `folder/report.html` and return its path."""
    path = folder / NAME
    write_text_atomically(path, content)
    return path

"""The main figures as files for a paper or a slide; they need the extra `edge_asr[figures]`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from edge_asr.errors import UserError
from edge_asr.report.cells import number
from edge_asr.report.clips import Clips
from edge_asr.store.files import write_bytes_atomically
from edge_asr.store.record import FLOAT_METHOD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {
    "size_mb": "file, MB",
    "memory_io_mb": "memory traffic, MB an utterance",
    "gbops": "arithmetic, GBOPs an utterance",
}
MARKERS = "o^sDvP*X"
FORMATS = ("svg", "png")
PER_INCH = 150
# A name may hold a dollar; the same figure is the same file.
SETTINGS: Any = {"svg.hashsalt": "edge_asr", "font.size": 8, "text.parse_math": False}


def require_matplotlib() -> None:
    """Raises UserError where it is not installed."""
    if find_spec("matplotlib") is None:
        raise UserError(
            "--figures: needs matplotlib; install it with pip install 'edge_asr[figures]'"
        )


def write_figures(folder: Path, tables: Mapping[Clips, pd.DataFrame]) -> list[Path]:
    """Write WER against costs, and the difference to float by method and scheme, of every table.

    Each as SVG and PNG; the same table gives the same bytes.

    Raises:
        UserError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    written = []
    with matplotlib.rc_context(SETTINGS):
        for clips, frame in tables.items():
            figures = {"tradeoffs": tradeoffs(frame), "heatmap": heatmap(frame)}
            for name, figure in figures.items():
                if figure is None:
                    continue
                figure.suptitle(clips.title)
                for form in FORMATS:
                    path = folder / f"{name}_{clips.slug}.{form}"
                    write_bytes_atomically(path, _bytes(figure, form))
                    written.append(path)
    return written


def tradeoffs(frame: pd.DataFrame) -> Figure | None:
    """WER with its interval against size, traffic and arithmetic; float models as lines."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = frame[frame["wer_average"].notna() & frame["size_mb"].notna()]
    if rows.empty:
        return None
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    recipes = sorted({name.split("+")[0] for name in rows["method"]} - {FLOAT_METHOD})
    colors = {name: colormaps["tab20"](place % 20) for place, name in enumerate(recipes)}
    models = list(dict.fromkeys(rows["model"]))
    for axes, (cost, label) in zip(figure.subplots(1, len(COSTS)), COSTS.items(), strict=True):
        for _, row in rows.iterrows():
            color = colors.get(row["method"].split("+")[0], "black")
            marker = MARKERS[models.index(row["model"]) % len(MARKERS)]
            _point(axes, row, cost, color, marker)
        axes.set(xscale="log", xlabel=label, ylabel="WER, %", ylim=(0, _ceiling(rows)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3)
    _legend(figure, colors, models)
    return figure


def _point(axes: Axes, row: pd.Series, cost: str, color: object, marker: str) -> None:
    wer, low, high = (row[name] for name in ("wer_average", "wer_low", "wer_high"))
    ends = None if pd.isna(low) else [[wer - low], [high - wer]]
    axes.errorbar(
        [row[cost]], [wer], ends, marker=marker, color=color, markersize=4, linewidth=0.6
    )  # fmt: skip
    if row["method"] == FLOAT_METHOD:
        axes.axhline(wer, color="black", linestyle="--", linewidth=0.6)


def _legend(figure: Figure, colors: Mapping[str, Any], models: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color="black", marker=MARKERS[place % len(MARKERS)], linestyle="", label=name
        )
        for place, name in enumerate(models)
    ]
    handles += [
        Line2D([], [], color=color, marker="s", linestyle="", label=name)
        for name, color in colors.items()
    ]
    figure.legend(handles=handles, loc="outside right upper")


def _ceiling(rows: pd.DataFrame) -> float:
    """The page's: rates that say nothing but "broken" would flatten all others."""
    floats = rows.loc[rows["method"] == FLOAT_METHOD, "wer_average"]
    base = float((floats if len(floats) else rows["wer_average"]).min())
    return min(float(rows["wer_average"].max()) * 1.05, max(3 * base + 10, 5))


def heatmap(frame: pd.DataFrame) -> Figure | None:
    """Difference to float by method and scheme, a panel for every model."""
    from matplotlib.figure import Figure

    rows = frame[frame["delta_wer"].notna()]
    if rows.empty:
        return None
    bits = rows.groupby("scheme")["effective_bits"].mean().sort_values(ascending=False)
    panels = {
        str(model): own.pivot_table("delta_wer", "method", "scheme", "min").reindex(
            columns=bits.index
        )
        for model, own in rows.groupby("model")
    }
    heights = [len(panel) for panel in panels.values()]
    figure = Figure(
        figsize=(4 + 0.55 * len(bits), 1.5 + 0.22 * sum(heights) + 0.8 * len(panels)),
        layout="constrained",
    )
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    top = max(float(np.nanquantile(rows["delta_wer"], 0.8)), 1e-6)
    for one, (model, panel) in zip(axes, panels.items(), strict=True):
        image = one.imshow(panel, cmap="YlOrRd", vmin=0, vmax=top, aspect="auto")
        one.set(title=model)
        one.set_xticks(range(len(panel.columns)), panel.columns, rotation=35, ha="right")
        one.set_yticks(range(len(panel)), panel.index)
        for (line, column), value in np.ndenumerate(panel.to_numpy()):
            if not np.isnan(value):
                color = "white" if value > 0.55 * top else "black"
                one.text(column, line, number(value, 1), ha="center", va="center", color=color)
    figure.colorbar(
        image, ax=axes, label="difference to float, points of WER", extend="max", aspect=40
    )
    return figure


def _bytes(figure: Figure, form: str) -> bytes:
    content = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(content, format=form, dpi=PER_INCH, metadata=metadata)
    return content.getvalue()

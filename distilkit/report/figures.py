"""The report's pictures for papers: SVG and PNG by matplotlib, on white."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distilkit import spelling
from distilkit.report.charts import Chart, HeatMap, Picture, Series
from distilkit.runs.atomic import appearing
from distilkit.working_folder import elsewhere

COLOURS = ("#1f6fb4", "#c24e18", "#0f7f5f", "#8a4fae", "#946500", "#c03a7a", "#0a7a8f", "#5a6470")
MARKS = ("o", "s", "^", "D", "v", "P", "*")
DASHES = {"solid": "-", "dashed": "--", "dotted": ":"}
WIDTHS = {"thin": 0.7, "normal": 1.4, "thick": 2.0}
LABELLED = 40
LETTERS = 32


def write_figures(pictures: Sequence[tuple[str, Picture]], folder: Path) -> list[Path]:
    """Write each picture as `folder`/NAME.svg and .png; the name is the given prefix and the picture's own.

    The same pictures and the same matplotlib give the same bytes. Raises `OSError` when they cannot be written.
    """
    new_figure = figure_class()
    files = []
    for prefix, picture in pictures:
        size = (6.4, 4.4) if isinstance(picture, Chart) and picture.wide else (4.8, 3.6)
        if isinstance(picture, HeatMap) and len(picture.rows) > 12:
            size = (6.4, 6.0)
        figure = new_figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        if isinstance(picture, Chart):
            _chart(axes, picture)
        else:
            _heat(figure, axes, picture)
        axes.set_title(drawable(picture.title), fontsize="medium")
        stem = folder / safe_name(f"{prefix}-{picture.name}" if prefix else picture.name)
        with drawn_the_same():
            with appearing(stem.with_suffix(".svg")) as partial:
                figure.savefig(partial, metadata={"Date": None})
            with appearing(stem.with_suffix(".png")) as partial:
                figure.savefig(partial, dpi=150, metadata={"Software": None})
        files += [stem.with_suffix(".svg"), stem.with_suffix(".png")]
    return files


def figure_class() -> type[Any]:
    """Matplotlib's `Figure`; matplotlib reads the user's settings as it is imported, but none of the working folder."""
    with elsewhere():
        from matplotlib.figure import Figure
    return Figure


def safe_name(text: str) -> str:
    """A file's name that no shell and no file system minds, whatever a run is called."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:100] or "figure"


def plain(text: str) -> str:
    """Text that matplotlib takes for text and not for mathematics, cut where it would leave no room for the picture."""
    return drawable(text if len(text) <= LETTERS else text[: LETTERS - 1] + "\u2026")


def drawable(text: str) -> str:
    """Text that matplotlib takes for text; what no font has a letter for, and no file may hold, is spelled out."""
    return spelling.plain(text).replace("$", r"\$")


@contextmanager
def drawn_the_same() -> Iterator[None]:
    """Inside the block the same figure gives the same bytes; what the font lacks, Chinese perhaps, is a box."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "distilkit"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _chart(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    for series in chart.series:
        _series(axes, series)
    if chart.x_log:
        axes.set_xscale("log")
    if chart.diagonal:
        axes.axline((0, 0), slope=1, color="0.5", linewidth=0.8, linestyle=":")
    if chart.limits:
        low, high = chart.limits
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    if chart.x_limits:
        axes.set_xlim(*chart.x_limits)
    if chart.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(alpha=0.25)
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(fontsize="x-small")


def _series(axes: Any, series: Series) -> None:
    colour = "0.45" if series.style < 0 else COLOURS[series.style % len(COLOURS)]
    y = [float("nan") if value is None else value for value in series.line.y]
    thin = series.weight == "thin"
    look: dict[str, Any] = {
        "color": colour,
        "linewidth": WIDTHS[series.weight],
        "linestyle": DASHES[series.dash] if series.joined else "none",
        "alpha": 0.5 if thin else 1.0,
        "label": plain(series.label) if series.legend else None,
    }
    if series.marks:
        look |= {
            "marker": MARKS[series.style % len(MARKS)],
            "markersize": 3 if thin else 5 if series.joined else 7,
            "markevery": max(1, len(y) // 6) if series.joined else None,
            "markerfacecolor": "white" if series.hollow else colour,
        }
    axes.plot(series.line.x, y, **look)
    if series.low and series.joined:
        axes.fill_between(series.line.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
    elif series.low:
        below = [at - (low or 0.0) for at, low in zip(y, series.low, strict=True)]
        above = [(high or 0.0) - at for at, high in zip(y, series.high, strict=True)]
        axes.errorbar(series.line.x, y, [below, above], color=colour, fmt="none", capsize=3, linewidth=1)


def _heat(figure: Any, axes: Any, heat: HeatMap) -> None:
    shades = [[float("nan") if value is None else value for value in row] for row in heat.values]
    image = axes.imshow(shades, cmap="Blues", vmin=heat.low, vmax=heat.high, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8)
    if len(heat.rows) <= LABELLED:
        axes.set_yticks(range(len(heat.rows)), [plain(label) for label in heat.rows], fontsize="small")
    shown = heat.axis or (heat.columns if len(heat.columns) <= LABELLED else ())
    places = [place for place, label in enumerate(heat.columns) if label in shown]
    turned = max((len(label) for label in shown), default=0) * len(shown) > 60
    axes.set_xticks(
        places, [plain(heat.columns[place]) for place in places], fontsize="small", rotation=90 if turned else 0
    )
    axes.set_xlabel(heat.x_label)
    axes.set_ylabel(heat.y_label)
    if heat.numbers:
        middle = (heat.low + heat.high) / 2
        for row, values in enumerate(heat.values):
            for column, value in enumerate(values):
                if value is not None:
                    axes.text(
                        column,
                        row,
                        f"{value:{heat.form}}",
                        ha="center",
                        va="center",
                        fontsize="x-small",
                        color="white" if value > middle else "black",
                    )

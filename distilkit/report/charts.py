"""Pictures as data: what is drawn on the page (`svg.py`) and what is drawn for papers (`figures.py`) are one thing."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distilkit.report.history import Line, Values, thinned

Dash = Literal["solid", "dashed", "dotted"]
Weight = Literal["thin", "normal", "thick"]
POINTS = 160
"""So many points of a line are drawn; a picture on the page is some 400 units wide."""


@dataclass(frozen=True)
class Series:
    """One line, or some points. `style`: colour and shape of its marks, from 0.

    `low`, `high`: a band, or for points whiskers. `run`, `group`: what it is hidden with. `joined`: whether a line runs
    through the points. `direct`: the label stands beside the last point. `legend`: whether the label is explained.
    """

    label: str
    line: Line
    style: int
    dash: Dash = "solid"
    weight: Weight = "normal"
    marks: bool = True
    joined: bool = True
    low: Values = ()
    high: Values = ()
    group: str = ""
    run: str = ""
    legend: bool = True
    direct: bool = False
    hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over two axes. `name`: of its file, letters and hyphens. `note`: what is seen and how it was measured."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    note: str = ""
    x_log: bool = False
    whole_x: bool = True
    """Epochs: the axis is divided at whole numbers."""
    limits: tuple[float, float] | None = None
    wide: bool = False
    diagonal: bool = False
    """Draw y = x."""
    x_limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class HeatMap:
    """Values as shades, from `low` (none) to `high` (full). `numbers`: whether they are written into the cells."""

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[Values, ...]
    x_label: str
    y_label: str
    note: str = ""
    low: float = 0.0
    high: float = 1.0
    numbers: bool = False
    form: str = ".2f"
    root: bool = False
    """The shade is the square root of the value's share: what is rare is seen."""
    axis: tuple[str, ...] = ()
    """The labels of the columns that are written; empty: all."""


Picture = Chart | HeatMap


def mean_line(lines: Sequence[Line]) -> tuple[Line, Values, Values]:
    """Mean of several lines at the places that all have, with one sample deviation below and above; thinned.

    Without a band where there is a single line.
    """
    known = [{x: y for x, y in zip(line.x, line.y, strict=True) if y is not None} for line in lines]
    places = sorted(set.intersection(*(set(values) for values in known))) if known else []
    columns = [[values[x] for values in known] for x in places]
    means = tuple(statistics.fmean(column) for column in columns)
    line = thinned(Line(tuple(places), means), POINTS)
    if len(known) < 2:
        return line, (), ()
    spread = {x: statistics.stdev(column) for x, column in zip(places, columns, strict=True)}
    around = [(y or 0.0, spread[x]) for x, y in zip(line.x, line.y, strict=True)]
    return line, tuple(y - deviation for y, deviation in around), tuple(y + deviation for y, deviation in around)


def described(picture: Picture) -> str:
    """The picture in words, for those who cannot see it: where every line begins, ends and is lowest."""
    if isinstance(picture, HeatMap):
        found = [
            (value, row, column)
            for row, values in zip(picture.rows, picture.values, strict=True)
            for column, value in zip(picture.columns, values, strict=True)
            if value is not None
        ]
        if not found:
            return "Nothing was measured."
        value, row, column = max(found)
        return (
            f"{len(picture.rows)} rows ({picture.y_label}) by {len(picture.columns)} columns ({picture.x_label}); the "
            f"largest value, {value:{picture.form}}, is at {row}, {column}."
        )
    sentences = []
    for series in picture.series:
        known = [(x, y) for x, y in zip(series.line.x, series.line.y, strict=True) if y is not None]
        if not known or not series.legend:
            continue
        (x, y), last, lowest = known[0], known[-1], min(known, key=lambda point: point[1])
        if len(known) == 1 or not series.joined:
            sentences.append(f"{series.label}: " + "; ".join(f"{y:.4g} at {x:.4g}" for x, y in known[:6]))
        else:
            sentences.append(
                f"{series.label}: {y:.4g} at {x:.4g}, {last[1]:.4g} at {last[0]:.4g}; lowest {lowest[1]:.4g} at "
                f"{lowest[0]:.4g}"
            )
    return f"{picture.y_label} over {picture.x_label}. " + ". ".join(sentences[:24]) + "."

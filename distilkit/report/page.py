"""The report as one HTML file that needs nothing else: style, script and pictures are in it, and nothing is fetched.

Whatever comes from runs (names of runs, classes, members) is untrusted text: the templates escape it, and a content
security policy allows only this very style and this very script.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distilkit._version import __version__
from distilkit.report.charts import Chart, HeatMap, Picture, Series, described
from distilkit.report.heat import heat_svg
from distilkit.report.svg import chart_svg, colour_class, directly_labelled, mark, swatch
from distilkit.report.views import GroupView, RunView
from distilkit.spelling import html_lines, plain

TEMPLATES = Path(__file__).parent / "templates"
CLASSES_LISTED = 100
CONFUSIONS_LISTED = 10


@dataclass(frozen=True)
class Board:
    """All that compares: the runs on one data set. `differences`: see `facts.difference_facts`, with the recipes."""

    id: str
    dataset: str
    images: int
    groups: tuple[GroupView, ...]
    pictures: tuple[Picture, ...]
    differences: tuple[Mapping[str, Any], ...]
    recipe_keys: tuple[tuple[str, Sequence[str]], ...]


@dataclass(frozen=True)
class Page:
    """What the page says. `details`: pictures of every run that is shown in full; `notes`: what one should know."""

    title: str
    summary: tuple[str, ...]
    notes: tuple[str, ...]
    boards: tuple[Board, ...]
    runs: tuple[RunView, ...]
    details: Mapping[str, Sequence[Picture]]
    latency_machine: str


def html(page: Page) -> str:
    """The whole page. The same runs give the same text."""
    style, script = _text("report.css"), _text("report.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            page=page,
            policy=policy,
            style=Markup(style),
            script=Markup(script),
            version=__version__,
            groups=[group for board in page.boards for group in board.groups],
        )
    )


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """A source expression of a content security policy: what lies between the tags, by its SHA-256."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "error": _error,
        "signed": lambda value: f"{value:+.2f}".replace("-", "\u2212"),
        "count": lambda value: f"{value:,}",
        "flops": _flops,
        "megabytes": lambda value: f"{value / 1e6:.2f}",
        "milliseconds": lambda value: f"{value:.3g}",
        "sentence": lambda text: text[:1].upper() + text[1:],
    }
    environment.globals |= {
        "svg": _svg,
        "described": described,
        "legend": _legend,
        "group_swatch": _group_swatch,
        "class_rows": class_rows,
        "confusions": confusions,
        "recipe_of": lambda view: html_lines(view.run.recipe.to_toml()),
    }
    return environment


def _finalized(value: Any) -> Any:
    """What an expression of a template gives; that which is no markup yet is escaped after this."""
    return plain(value) if type(value) is str else value


def _svg(picture: Picture, identifier: str) -> Markup:
    return chart_svg(picture, identifier) if isinstance(picture, Chart) else heat_svg(picture, identifier)


def _error(value: float) -> str:
    return f"{value:.2f}"


def _flops(value: float) -> str:
    """As the papers print them: 1.383e8."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _legend(picture: Picture) -> list[tuple[Markup, Series]]:
    """What has to be explained below a picture; nothing where there is a single line and the title says which."""
    if isinstance(picture, HeatMap):
        return []
    beside = directly_labelled(picture)
    explained = [series for series in picture.series if series.legend and series.label not in beside]
    return [(swatch(series), series) for series in explained] if len(explained) > 1 or len(picture.series) > 1 else []


def _group_swatch(style: int) -> Markup:
    return Markup(
        f'<svg class="swatch dot" viewBox="0 0 14 14" aria-hidden="true"><g class="{colour_class(style)}">'
        f'<path class="mark" transform="translate(7,7)" d="{mark(style)}"/></g></svg>'
    )


def class_rows(view: RunView) -> list[tuple[str, int, list[float | None]]]:
    """Each class with its test images and its error by classifier, percent; of many the worst ones of the leader."""
    assert view.tested is not None
    counts: dict[int, int] = {}
    for row, _, images in view.tested.classifiers[view.leader].confusion:
        counts[row] = counts.get(row, 0) + images
    errors = [view.tested.classifiers[name].per_class_error for name in view.facts["classifiers"]]
    rows = [
        (name, counts.get(place, 0), [column[place] for column in errors])
        for place, name in enumerate(view.run.data.classes)
    ]
    if len(rows) <= CLASSES_LISTED:
        return rows
    return sorted(rows, key=lambda row: -(row[2][0] if row[2][0] is not None else -math.inf))[:CLASSES_LISTED]


def confusions(view: RunView) -> list[tuple[str, str, int]]:
    """The commonest mistakes of the leader: images of one class that are taken for another."""
    assert view.tested is not None
    classes = view.run.data.classes
    wrong = [entry for entry in view.tested.classifiers[view.leader].confusion if entry[0] != entry[1]]
    wrong.sort(key=lambda entry: (-entry[2], entry[:2]))
    return [(classes[row], classes[column], images) for row, column, images in wrong[:CONFUSIONS_LISTED]]

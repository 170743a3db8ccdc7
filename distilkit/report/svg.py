"""Charts as inline SVG. Colours are the page's, so that one drawing serves light, dark and print."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from distilkit.report.charts import Chart, Series
from distilkit.report.scale import Scale, ticks, written
from distilkit.spelling import html

COLOURS = 8
WIDTH, HEIGHT = 360, 260
WIDE, TALL = 480, 360
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 26, 44
LABEL_LENGTH = 30
TOGETHER = 24
"""Points closer than this, across, have one column of labels."""

EVERY_MARK = 16
MARKS_ON_A_LINE = 6

# Unit shapes around (0, 0), so that colour is never the only difference.
MARKS = (
    "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0Z",
    "M-3.3,-3.3H3.3V3.3H-3.3Z",
    "M0,-4.4L4.2,3.2H-4.2Z",
    "M0,-4.6L4.6,0L0,4.6L-4.6,0Z",
    "M0,4.4L4.2,-3.2H-4.2Z",
    "M-1.5,-4.2H1.5V-1.5H4.2V1.5H1.5V4.2H-1.5V1.5H-4.2V-1.5H-1.5Z",
    "M0,-4.6L1.5,-1.5H4.4L2.2,0.8L3,4.2L0,2.2L-3,4.2L-2.2,0.8L-4.4,-1.5H-1.5Z",
)


def colour_class(style: int) -> str:
    """The class that gives a style its colour."""
    return "sx" if style < 0 else f"s{style % COLOURS}"


def mark(style: int) -> str:
    """The shape of a style's marks, as a path."""
    return MARKS[style % len(MARKS)]


def chart_svg(chart: Chart, identifier: str) -> Markup:
    """The chart; its title and description stand on the page, as `identifier`-title and `identifier`-text."""
    width, height = _size(chart)
    x, y = _scales(chart, width, height)
    parts = [_frame(chart, x, y, width, height)]
    parts += [_series(series, x, y) for series in chart.series]
    parts += _direct_labels(chart, x, y)
    kind = "chart wide" if chart.wide else "chart"
    log = ' data-log="1"' if chart.x_log else ""
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{html(identifier)}-title" '
        f'aria-describedby="{html(identifier)}-text" data-plot="{x.start:g} {x.end:g} {x.low!r} {x.high!r} '
        f'{y.end:g} {y.start:g}" data-over="{html(chart.x_label)}"{log}>{"".join(parts)}</svg>'
    )


def swatch(series: Series) -> Markup:
    """The legend's picture of a series."""
    shape = f'<path class="mark" transform="translate(15,7)" d="{mark(series.style)}"/>' if series.marks else ""
    line = f'<path class="line {series.dash}" d="M1,7H29"/>' if series.joined else ""
    hollow = " hollow" if series.hollow else ""
    return Markup(
        f'<svg class="swatch" viewBox="0 0 30 14" aria-hidden="true"><g class="{colour_class(series.style)}{hollow} '
        f'{series.weight}">{line}{shape}</g></svg>'
    )


def _size(chart: Chart) -> tuple[int, int]:
    return (WIDE, TALL) if chart.wide else (WIDTH, HEIGHT)


def _scales(chart: Chart, width: int, height: int) -> tuple[Scale, Scale]:
    xs = [x for series in chart.series for x in series.line.x]
    ys = [y for series in chart.series for y in (*series.line.y, *series.low, *series.high) if y is not None]
    low, high = chart.x_limits or (min(xs), max(xs))
    if chart.limits:
        bottom, top = chart.limits
    else:
        bottom, top = min(ys, default=0.0), max(ys, default=1.0)
        margin = 0.08 * (top - bottom) or max(abs(top) * 0.06, 0.01)
        # Nothing that is drawn is negative, errors, losses and distances alike, unless it really is.
        bottom, top = (max(0.0, bottom - margin) if bottom >= 0 else bottom - margin), top + margin
    if low == high:
        low, high = low - 0.5, high + 0.5
    return (
        Scale(low, high, LEFT, width - RIGHT, chart.x_log),
        Scale(bottom, top, height - BOTTOM, TOP),
    )


def _frame(chart: Chart, x: Scale, y: Scale, width: int, height: int) -> str:
    parts = [f'<text class="axis" x="4" y="14">{html(chart.y_label)}</text>']
    for value in ticks(y, 6):
        at = y(value)
        parts.append(f'<path class="grid" d="M{LEFT},{at:.1f}H{width - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{written(value)}</text>')
    for value in ticks(x, 6, whole=chart.whole_x):
        at = x(value)
        parts.append(f'<path class="stroke" d="M{at:.1f},{height - BOTTOM}v4"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{height - BOTTOM + 17}" text-anchor="middle">{written(value)}</text>'
        )
    parts.append(f'<path class="stroke" d="M{LEFT},{height - BOTTOM}H{width - RIGHT}"/>')
    middle = (LEFT + width - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle:g}" y="{height - 8}" text-anchor="middle">{html(chart.x_label)}</text>'
    )
    if chart.diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        parts.append(f'<path class="diagonal" d="M{x(low):.1f},{y(low):.1f}L{x(high):.1f},{y(high):.1f}"/>')
    return "".join(parts)


def _series(series: Series, x: Scale, y: Scale) -> str:
    known = [(x(at), y(value)) for at, value in zip(series.line.x, series.line.y, strict=True) if value is not None]
    if not known:
        return ""
    parts = [_band(series, x, y)]
    if series.joined:
        parts.append(f'<path class="line {series.dash}" d="{_path(series, x, y)}"/>')
    if series.marks:
        step = 1 if len(known) <= EVERY_MARK else math.ceil(len(known) / MARKS_ON_A_LINE)
        # Alike lines would cover each other's marks: each begins elsewhere.
        first = (series.style * step // 4) % step
        places = known[first::step]
        size = "" if series.joined or series.weight != "thick" else " scale(1.5)"
        title = "" if series.joined else f"<title>{html(_point(series))}</title>"
        shape = f'd="{mark(series.style)}">{title}</path>'
        parts += [
            f'<path class="mark" transform="translate({at:.1f},{height:.1f}){size}" {shape}' for at, height in places
        ]
    hollow = " hollow" if series.hollow else ""
    data = _data(series) if series.joined and series.weight != "thin" and series.style >= 0 else ""
    kind = f"series {colour_class(series.style)} {series.weight}{hollow}"
    return f'<g class="{kind}"{_hidden_with(series.group, series.run)}{data}>{"".join(parts)}</g>'


def _point(series: Series) -> str:
    return f"{series.label}: {series.line.y[0]:.2f} at {series.line.x[0]:.4g}"


def _hidden_with(group: str, run: str) -> str:
    found = f' data-group="{html(group)}"' if group else ""
    return f'{found} data-run="{html(run)}"' if run else found


def _data(series: Series) -> str:
    """What the pointer reads off."""
    known = [(x, y) for x, y in zip(series.line.x, series.line.y, strict=True) if y is not None]
    xs, ys = " ".join(f"{x:.6g}" for x, _ in known), " ".join(f"{y:.5g}" for _, y in known)
    return f' data-label="{html(series.label)}" data-x="{xs}" data-y="{ys}"'


def _path(series: Series, x: Scale, y: Scale) -> str:
    """Straight from point to point, with gaps where a figure is missing."""
    commands, pen = [], "M"
    for at, value in zip(series.line.x, series.line.y, strict=True):
        if value is None:
            pen = "M"
            continue
        commands.append(f"{pen}{x(at):.1f},{y(value):.1f}")
        pen = "L"
    return "".join(commands)


def _band(series: Series, x: Scale, y: Scale) -> str:
    if not series.low:
        return ""
    around = [
        (x(at), y(low), y(high))
        for at, low, high in zip(series.line.x, series.low, series.high, strict=True)
        if low is not None and high is not None
    ]
    if not series.joined:
        return "".join(
            f'<path class="whisker" d="M{at:.1f},{low:.1f}V{high:.1f}m-4,0h8M{at - 4:.1f},{low:.1f}h8"/>'
            for at, low, high in around
            if low != high
        )
    there = "L".join(f"{at:.1f},{high:.1f}" for at, _, high in around)
    back = "L".join(f"{at:.1f},{low:.1f}" for at, low, _ in reversed(around))
    return f'<path class="band" d="M{there}L{back}Z"/>'


@dataclass(frozen=True)
class _Cluster:
    """Points one above the other, and on which side of them there is room for their labels (None: on neither)."""

    spots: list[tuple[float, float, Series]]
    side: Literal["right", "left"] | None


def directly_labelled(chart: Chart) -> set[str]:
    """The labels that stand beside their points; the others have to be explained below the chart."""
    x, y = _scales(chart, *_size(chart))
    return {s.label for cluster in _clusters(chart, x, y) if cluster.side for _, _, s in cluster.spots}


def _clusters(chart: Chart, x: Scale, y: Scale) -> list[_Cluster]:
    spots = [(x(s.line.x[-1]), y(height), s) for s in chart.series if s.direct and (height := s.line.y[-1]) is not None]
    groups: list[list[tuple[float, float, Series]]] = []
    for spot in sorted(spots, key=lambda spot: spot[0]):
        if groups and spot[0] - groups[-1][-1][0] < TOGETHER:
            groups[-1].append(spot)
        else:
            groups.append([spot])
    clusters = []
    free = x.start  # what no label has taken yet, from the left
    for place, group in enumerate(groups):
        first, last = group[0][0], group[-1][0]
        until = groups[place + 1][0][0] - 12 if place + 1 < len(groups) else x.end
        width = 7 * max(min(len(s.label), LABEL_LENGTH) for _, _, s in group) + 22
        crowded = 15 * len(group) > y.start - y.end
        side: Literal["right", "left"] | None = None
        if not crowded and last + width <= until:
            side, free = "right", last + width
        elif not crowded and first - width >= free:
            side = "left"
        if side != "right":
            free = last + 12
        clusters.append(_Cluster(sorted(group, key=lambda spot: spot[1]), side))
    return clusters


def _direct_labels(chart: Chart, x: Scale, y: Scale) -> list[str]:
    """The labels beside their points, moved apart where they would overlap."""
    parts = []
    for cluster in _clusters(chart, x, y):
        if cluster.side is None:
            continue
        sign = 1 if cluster.side == "right" else -1
        edge = max(sign * at for at, _, _ in cluster.spots) * sign
        heights = _apart([height for _, height, _ in cluster.spots], 15.0, y.end + 6, y.start - 6)
        for (at, height, s), moved in zip(cluster.spots, heights, strict=True):
            text_at = edge + sign * 18
            label = s.label if len(s.label) <= LABEL_LENGTH else s.label[: LABEL_LENGTH - 1] + "…"
            pointer = f"M{at + sign * 7:.1f},{height:.1f}L{text_at - sign * 2:.1f},{moved:.1f}"
            parts.append(
                f'<g{_hidden_with(s.group, s.run)}><path class="pointer" d="{pointer}"/><text class="direct" '
                f'x="{text_at:.1f}" y="{moved + 4:.1f}" text-anchor="{"start" if sign > 0 else "end"}">'
                f"{html(label)}</text></g>"
            )
    return parts


def _apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted places moved to lie at least `gap` apart, as little as may be, between `low` and `high` where they fit."""
    moved = list(heights)
    for _ in range(60):
        for index in range(1, len(moved)):
            lack = gap - (moved[index] - moved[index - 1])
            if lack > 0:
                moved[index - 1] -= lack / 2
                moved[index] += lack / 2
        if moved and moved[0] < low:
            moved[0] = low
        if moved and moved[-1] > high:
            moved[-1] = high
    return moved

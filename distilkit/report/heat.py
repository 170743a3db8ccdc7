"""Heat maps as inline SVG: one colour, more or less of it, so that the page behind may be light or dark."""

import base64
import io
import math

from markupsafe import Markup

from distilkit.report.charts import HeatMap
from distilkit.spelling import html

WIDTH = 360
DRAWN_AS_CELLS = 2500
"""Of more cells the picture is one of pixels, a fiftieth of the size."""

TOLD = 900
"""Up to so many cells tell their value to the pointer."""

LABELLED = 40
LETTERS = 16
NUMBER_WIDTH = 24.0
PIXEL = (59, 130, 196)
"""A blue in the middle, seen on white and on black."""


def heat_svg(heat: HeatMap, identifier: str) -> Markup:
    """The heat map; its title and description stand on the page, as `identifier`-title and `identifier`-text."""
    rows, columns = len(heat.rows), len(heat.columns)
    labelled = rows <= LABELLED
    left = 24 + (6.4 * max(len(_short(label)) for label in heat.rows) if labelled else 0)
    across = heat.axis or (heat.columns if columns <= LABELLED else ())
    turned = bool(across) and not heat.axis and max(map(len, across)) * 7 > (WIDTH - left) / columns
    top = 22.0
    below = 6.4 * max(len(_short(label)) for label in across) + 10 if turned else 18 if across else 4
    cell = (WIDTH - left - 6) / columns
    height = min(cell, 26) if rows == columns and columns > 12 else max(min(cell, 28), 14 if labelled else 0)
    square = heat.x_label != "epoch" and cell < 60
    height = cell if square else height
    total = top + rows * height + below + 20
    draw = _cells if rows * columns <= DRAWN_AS_CELLS else _pixels
    parts = [
        f'<text class="axis" x="4" y="13">{html(heat.y_label)}</text>',
        f'<rect class="sheet" x="{left:.1f}" y="{top:.1f}" width="{columns * cell:.1f}" height="{rows * height:.1f}"/>',
        draw(heat, left, top, cell, height),
    ]
    if labelled:
        parts += [
            f'<text class="tick" x="{left - 5:.1f}" y="{top + (row + 0.5) * height + 4:.1f}" text-anchor="end">'
            f"{html(_short(label))}</text>"
            for row, label in enumerate(heat.rows)
        ]
    base = top + rows * height
    for column, label in enumerate(heat.columns):
        if label not in across:
            continue
        at = left + (column + 0.5) * cell
        turn = f' transform="rotate(-90 {at:.1f} {base + 6:.1f})"' if turned else ""
        place = f'x="{at:.1f}" y="{base + (10 if turned else 14):.1f}" text-anchor="{"end" if turned else "middle"}"'
        parts.append(f'<text class="tick" {place}{turn}>{html(_short(label))}</text>')
    words = heat.x_label if across else f"{heat.x_label} ({columns:,} classes, in order)"
    parts.append(
        f'<text class="axis" x="{(left + WIDTH) / 2:.1f}" y="{total - 6:.1f}" text-anchor="middle">{html(words)}</text>'
    )
    return Markup(
        f'<svg class="chart heat" viewBox="0 0 {WIDTH} {total:.0f}" role="img" '
        f'aria-labelledby="{html(identifier)}-title" aria-describedby="{html(identifier)}-text">'
        f"{''.join(parts)}</svg>"
    )


def _short(label: str) -> str:
    return label if len(label) <= LETTERS else label[: LETTERS - 1] + "…"


def _shade(heat: HeatMap, value: float | None) -> float:
    if value is None:
        return 0.0
    share = min(1.0, max(0.0, (value - heat.low) / (heat.high - heat.low)))
    return math.sqrt(share) if heat.root else share


def _cells(heat: HeatMap, left: float, top: float, width: float, height: float) -> str:
    parts = []
    told = len(heat.rows) * len(heat.columns) <= TOLD
    for row, (of, values) in enumerate(zip(heat.rows, heat.values, strict=True)):
        for column, (to, value) in enumerate(zip(heat.columns, values, strict=True)):
            if value is None:
                continue
            x, y, shade = left + column * width, top + row * height, _shade(heat, value)
            title = f"<title>{html(of)}, {html(to)}: {value:{heat.form}}</title>" if told else ""
            if shade > 0:
                parts.append(
                    f'<rect class="cell" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" '
                    f'fill-opacity="{shade:.3f}">{title}</rect>'
                )
            if heat.numbers and width >= NUMBER_WIDTH:
                kind = "number on" if shade > 0.5 else "number"
                parts.append(
                    f'<text class="{kind}" x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}" text-anchor="middle">'
                    f"{value:{heat.form}}</text>"
                )
    return "".join(parts)


def _pixels(heat: HeatMap, left: float, top: float, width: float, height: float) -> str:
    from PIL import Image

    columns, rows = len(heat.columns), len(heat.rows)
    image = Image.new("RGBA", (columns, rows))
    image.putdata([(*PIXEL, round(255 * _shade(heat, value))) for values in heat.values for value in values])
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    data = base64.b64encode(content.getvalue()).decode()
    return (
        f'<image class="pixels" x="{left:.1f}" y="{top:.1f}" width="{columns * width:.1f}" '
        f'height="{rows * height:.1f}" preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
    )

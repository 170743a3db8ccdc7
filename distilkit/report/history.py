"""A run's metrics.jsonl as lines to draw: errors, losses, learning rate, diversity, what the method weighs with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distilkit.runs.run import Run

Values = tuple[float | None, ...]
SPLITS = ("train", "validation", "test")
LARGEST = 1e100
"""Beyond it, and not only at infinity, sums of figures may overflow."""


@dataclass(frozen=True)
class Line:
    """`y` over `x`; None where a figure was not finite or not measured. Both have one length."""

    x: tuple[float, ...]
    y: Values

    def __bool__(self) -> bool:
        return any(value is not None for value in self.y)


@dataclass(frozen=True)
class Matrix:
    """What a method weighs with, the mean over images: [rows, columns] by epoch; a gate has one row."""

    epochs: tuple[int, ...]
    values: tuple[tuple[Values, ...], ...]


@dataclass(frozen=True)
class History:
    """What metrics.jsonl says, by epoch.

    `errors`: top-1 in percent, by split and classifier; the training ones are of augmented images while the weights
    change. `losses`: by term, nats. `diversity`: mean distance of two peers' predictions, by split.
    """

    epochs: int
    errors: dict[str, dict[str, Line]]
    losses: dict[str, Line]
    rate: Line
    ramp: Line
    diversity: dict[str, Line]
    weights: dict[str, Matrix]


def history(run: Run) -> History:
    """Read a run's metrics; a figure of the wrong kind counts as missing. Raises `UserError` for a damaged line."""
    lines = run.metrics()
    names = [*run.record["members"], *filter(None, [run.record["ensemble"]])]
    terms = dict.fromkeys(term for line in lines for term in _mapping(line.get("loss")))
    return History(
        epochs=len(lines),
        errors={
            split: {name: found for name in names if (found := _line(lines, split, "errors", name, "top1"))}
            for split in SPLITS
        },
        losses={term: _line(lines, "loss", term) for term in terms},
        rate=_line(lines, "lr"),
        ramp=_line(lines, "ramp"),
        diversity={split: found for split in SPLITS if (found := _line(lines, split, "diversity"))},
        weights=_weights(lines),
    )


def thinned(line: Line, points: int) -> Line:
    """At most about `points` points of a line: the lowest and the highest of every stretch, so that no peak is lost."""
    count = len(line.x)
    if count <= points:
        return line
    stretches = max(1, points // 2 - 1)
    kept = {0, count - 1}
    for stretch in range(stretches):
        places = range(stretch * count // stretches, (stretch + 1) * count // stretches)
        known = [place for place in places if line.y[place] is not None]
        if len(known) < len(places):
            kept.add(next(place for place in places if line.y[place] is None))  # a gap stays a gap
        if known:
            heights = [(line.y[place] or 0.0, place) for place in known]
            kept |= {min(heights)[1], max(heights)[1]}
    chosen = sorted(kept)
    return Line(tuple(line.x[place] for place in chosen), tuple(line.y[place] for place in chosen))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def _line(lines: Sequence[Mapping[str, Any]], *keys: str) -> Line:
    """What lies under `keys`, of the epochs that have it."""
    found = [
        (epoch, value)
        for line in lines
        if (epoch := number(line["epoch"])) is not None
        for value in [_under(line, keys)]
        if value is not _MISSING
    ]
    return Line(tuple(epoch for epoch, _ in found), tuple(number(value) for _, value in found))


_MISSING = object()


def _under(tree: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return _MISSING
        tree = tree[key]
    return tree


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """A number that can be drawn, or None for everything else that JSON can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return None
    return float(value)


def _weights(lines: Sequence[Mapping[str, Any]]) -> dict[str, Matrix]:
    """By name; lines in which the shape is not the last one's are left out."""
    found: dict[str, list[tuple[int, tuple[Values, ...]]]] = {}
    for line in lines:
        for name, value in _mapping(_mapping(line.get("test")).get("weights")).items():
            epoch, rows = number(line["epoch"]), _rows(value)
            if epoch is not None and rows:
                found.setdefault(name, []).append((int(epoch), rows))
    return {name: _same_shape(values) for name, values in found.items()}


def _same_shape(values: Sequence[tuple[int, tuple[Values, ...]]]) -> Matrix:
    shape = [len(row) for row in values[-1][1]]
    kept = [(epoch, rows) for epoch, rows in values if [len(row) for row in rows] == shape]
    return Matrix(tuple(epoch for epoch, _ in kept), tuple(rows for _, rows in kept))


def _rows(value: object) -> tuple[Values, ...]:
    if not isinstance(value, list) or not value:
        return ()
    rows = value if all(isinstance(row, list) for row in value) else [value]
    if not rows[0] or len({len(row) for row in rows}) > 1:
        return ()
    return tuple(tuple(number(entry) for entry in row) for row in rows)

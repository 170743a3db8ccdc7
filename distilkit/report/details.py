"""The pictures of a single run."""

from collections.abc import Iterator, Sequence

from distilkit.report.charts import POINTS, Chart, HeatMap, Picture, Series
from distilkit.report.comparison import mean_of_directions
from distilkit.report.history import Line, Matrix, evenly, thinned
from distilkit.report.measured import TestedRun
from distilkit.report.views import RunView

NUMBERED = 12
"""Up to so many columns of a heat map, numbers stand in its cells."""

COLUMNS = 60
ROWS = 40
DASHES = {"train": "dashed", "validation": "dotted", "test": "solid"}


def run_pictures(view: RunView) -> list[Picture]:
    """All pictures of one run; those for which there is anything to draw."""
    return [*_curves(view), *_weights(view), *_robustness(view), *_tested(view)]


def _curves(view: RunView) -> Iterator[Picture]:
    history, record = view.history, view.run.record
    names = [*record["members"], *filter(None, [record["ensemble"]])]
    styles = {name: place for place, name in enumerate(names)}
    errors = [
        _series(f"{name}, {split}", line, styles[name], DASHES[split])
        for split, lines in history.errors.items()
        for name, line in lines.items()
    ]
    if errors:
        yield Chart(
            "errors",
            "Training and test errors (ONE, Fig. 3)",
            "epoch",
            "top-1 error, %",
            tuple(errors),
            note="Training errors: of augmented images, while the weights change.",
        )
    losses = [_series(term, line, place) for place, (term, line) in enumerate(history.losses.items()) if line]
    if losses:
        yield Chart("losses", "Loss by term", "epoch", "nats, unweighted; total: weighted", tuple(losses))
    if history.rate:
        yield Chart(
            "learning-rate",
            "Learning rate",
            "epoch",
            "learning rate at the end of the epoch",
            (_series("learning rate", history.rate, 0),),
        )
    if history.ramp and (len(record["members"]) > 1 or view.run.recipe.teacher):
        yield Chart(
            "ramp",
            "Ramp-up",
            "epoch",
            "weight of the distillation terms",
            (_series("ramp", history.ramp, 1),),
            limits=(0.0, 1.0),
        )
    diversity = [
        _series(f"{split} images", line, place, DASHES[split])
        for place, (split, line) in enumerate(history.diversity.items())
    ]
    if diversity:
        yield Chart(
            "diversity",
            "Diversity of peers",
            "epoch",
            "mean distance of predictions",
            tuple(diversity),
            note="Mean Euclidean distance between two peers' predictions.",
        )


def _series(label: str, line: Line, style: int, dash: str = "solid") -> Series:
    assert dash in ("solid", "dashed", "dotted")
    return Series(label, thinned(line, POINTS), style, dash, marks=dash == "solid")  # type: ignore[arg-type]


def _weights(view: RunView) -> Iterator[Picture]:
    members = list(view.run.record["members"])
    for name, matrix in view.history.weights.items():
        last = matrix.values[-1]
        if len(last) == 1:
            yield _over_epochs(name, _labels(members, len(last[0])), [[row[0] for row in matrix.values]], matrix)
            continue
        peers = _labels(members, len(last))
        yield HeatMap(
            f"{name}-last",
            f"{name.capitalize()} at epoch {matrix.epochs[-1]}",
            peers,
            _labels(members, len(last[0])),
            last,
            "from",
            "to",
            note="Each row: whom this peer learns from, mean over test images.",
            numbers=len(last[0]) <= NUMBERED,
        )
        if len(last) * len(last[0]) <= ROWS:
            rows = tuple(f"{to} \N{LEFTWARDS ARROW} {of}" for to in peers for of in _labels(members, len(last[0])))
            yield _over_epochs(
                name, rows, [[row[place] for row in matrix.values] for place in range(len(last))], matrix
            )


def _over_epochs(
    name: str, rows: tuple[str, ...], values: Sequence[Sequence[Sequence[float | None]]], matrix: Matrix
) -> HeatMap:
    """Epochs from left to right; `values`: [rows of the matrix, epochs, columns of the matrix]."""
    places = evenly(len(matrix.epochs), COLUMNS)
    epochs = tuple(str(matrix.epochs[place]) for place in places)
    shades = tuple(
        tuple(over_epochs[place][column] for place in places)
        for over_epochs in values
        for column in range(len(over_epochs[0]))
    )
    return HeatMap(
        f"{name}-epochs",
        f"{name.capitalize()} during training",
        rows,
        epochs,
        shades,
        "epoch",
        "student" if len(values) == 1 else "who learns \N{LEFTWARDS ARROW} from whom",
        note="Mean over test images.",
        numbers=len(places) <= NUMBERED,
        axis=tuple(epochs[place] for place in evenly(len(epochs), 6)),
    )


def _labels(members: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(members[:count]) if len(members) >= count else tuple(map(str, range(count)))


def _robustness(view: RunView) -> Iterator[Picture]:
    found = view.robustness
    if found is None:
        return
    for kind, split, title, label in (
        ("curves", "test", "Moved parameters: test error", "top-1 error on test images, %"),
        ("cross_entropy", "train", "Moved parameters: training loss", "cross-entropy on training images, nats"),
    ):
        curves = getattr(found, kind).get(split, [])
        mean = mean_of_directions(curves, found.magnitudes)
        if mean:
            thin = [
                Series(
                    f"direction {place + 1}",
                    Line(tuple(found.magnitudes), tuple(curve)),
                    0,
                    weight="thin",
                    marks=False,
                    legend=False,
                )
                for place, curve in enumerate(curves)
            ]
            yield Chart(
                "perturbation" if kind == "curves" else "perturbation-loss",
                title,
                "magnitude d of the perturbation",
                label,
                (*thin, Series(f"mean of {len(curves)} directions", mean, 0, weight="thick")),
                note=f"Thin: one direction each; {found.conditions}.",
                whole_x=False,
            )
    if found.inputs and found.inputs.errors:
        kinds = found.inputs.errors
        width = max(len(values) for values in kinds.values())
        series = tuple(
            Series(kind, Line(tuple(range(len(values) + 1)), (found.inputs.clean, *values)), place)
            for place, (kind, values) in enumerate(kinds.items())
        )
        yield Chart(
            "perturbed-images",
            "Perturbed images",
            f"severity (0: as they are, to {width})",
            "top-1 error on test images, %",
            series,
            note="distilkit's own severities, not ImageNet-C's.",
        )


def _tested(view: RunView) -> Iterator[Picture]:
    tested = view.tested
    if tested is None:
        return
    names = [view.leader, *filter(None, [view.run.record["ensemble"]])]
    bins = []
    for place, name in enumerate(names):
        found = [b for b in tested.classifiers[name].reliability if b.images]
        if found:
            line = Line(tuple(b.confidence or 0.0 for b in found), tuple(b.accuracy for b in found))
            bins.append(Series(name, line, place))
    if bins:
        yield Chart(
            "reliability",
            "Reliability",
            "mean confidence of a bin, %",
            "accuracy in the bin, %",
            tuple(bins),
            note="Below the diagonal: surer than right. 15 bins of equal width; bins with few images scatter.",
            limits=(0.0, 100.0),
            x_limits=(0.0, 100.0),
            whole_x=False,
            diagonal=True,
        )
    yield _confusion(view, tested)


def _confusion(view: RunView, tested: TestedRun) -> HeatMap:
    classes = view.run.data.classes
    count = len(classes)
    table = [[0.0] * count for _ in classes]
    for row, column, images in tested.classifiers[view.leader].confusion:
        table[row][column] = images
    shares = tuple(tuple(100 * value / total if (total := sum(row)) else None for value in row) for row in table)
    return HeatMap(
        "confusion",
        f"Confusion matrix of {view.leader}",
        classes,
        classes,
        shares,
        "taken for",
        "class",
        note="Percent of each class's own images (rows sum to 100); shade: its root, so that rare ones show.",
        root=True,
        high=100.0,
        numbers=count <= NUMBERED,
        form=".0f",
    )

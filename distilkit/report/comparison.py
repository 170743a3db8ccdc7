"""The pictures that hold recipes against each other. All runs of a picture have the same test images."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from distilkit.report.charts import POINTS, Chart, Picture, Series, mean_line
from distilkit.report.history import Line, thinned
from distilkit.report.views import GroupView, RunView

DRAWN = 12
"""Lines of at most so many recipes share a picture: those with the lowest error."""

EVERY_RUN = 24
"""Up to so many runs have a thin line each beside the means."""

Get = Callable[[RunView], Line | None]


def comparison(groups: Sequence[GroupView]) -> list[Picture]:
    """Error against cost, curves of errors and diversity, perturbation; those for which there is anything to draw."""
    pictures: list[Picture | None] = [
        error_against_cost(groups),
        _curves(groups, "test-error", "Test error of the leader", "top-1 error on test images, %", _error("test")),
        _curves(
            groups,
            "training-error",
            "Training error of the leader",
            "top-1 error on training images, %",
            _error("train"),
            note="Of augmented images, while the weights change.",
        ),
        _curves(
            groups,
            "variance",
            "Variance between members (ONE, Fig. 5)",
            "mean distance of predictions",
            lambda view: view.history.diversity.get("train"),
            note="Mean Euclidean distance between two peers' predictions on training images.",
        ),
        _curves(
            groups,
            "diversity",
            "Diversity of peers (OKDDip, Fig. 2)",
            "mean distance of predictions",
            lambda view: view.history.diversity.get("test"),
            note="The same distance on test images.",
        ),
        *_perturbation(groups),
    ]
    return [picture for picture in pictures if picture is not None]


def error_against_cost(groups: Sequence[GroupView]) -> Chart | None:
    """Top-1 test error over TeCost: every run small, every recipe's mean large with its deviation."""
    spots = [
        (group, name, entry)
        for group in groups
        for name, entry in group.facts["classifiers"].items()
        if entry["top1_error"] and entry["flops"]
    ]
    if not spots:
        return None
    by_cost = Counter(entry["flops"] for _, _, entry in spots)
    seen: Counter[int] = Counter()
    series: list[Series] = []
    means = []
    for group, name, entry in spots:
        cost, mean = entry["flops"], entry["top1_error"]
        # Points of one cost would lie on each other: they stand side by side, at most 2 % away.
        place = seen[cost] - (by_cost[cost] - 1) / 2
        seen[cost] += 1
        x = cost * (1 + min(0.012, 0.04 / by_cost[cost]) * place)
        whole = entry["role"] == "ensemble"
        for view in group.runs:
            error = view.facts["classifiers"][name]["top1_error"]
            if error is not None and mean["count"] > 1:
                line = Line((x,), (error,))
                series.append(
                    Series(
                        view.name,
                        line,
                        group.style,
                        joined=False,
                        weight="thin",
                        group=group.id,
                        run=view.id,
                        legend=False,
                        hollow=whole,
                    )
                )
        spread = mean["deviation"] or 0.0
        means.append((cost, mean["mean"]))
        series.append(
            Series(
                f"{group.label}, {name}" if whole else group.label,
                Line((x,), (mean["mean"],)),
                group.style,
                joined=False,
                weight="thick",
                low=(mean["mean"] - spread,),
                high=(mean["mean"] + spread,),
                group=group.id,
                direct=len(spots) <= 2 * DRAWN,
                hollow=whole,
            )
        )
    front = _front(means)
    if len(front.x) > 1:
        series.insert(0, Series("nothing shown is both cheaper and better", front, -1, "dotted", marks=False))
    low, high = min(by_cost), max(by_cost)
    return Chart(
        "error-against-cost",
        "Error against test cost",
        "TeCost: FLOPs of one image, 2 per multiply-add",
        "top-1 error on test images, %",
        tuple(series),
        note="Large: mean of a recipe's trainings, with one sample deviation; small: each training. Filled: the leader "
        "alone; hollow: the ensemble. Points of equal cost stand a little apart. Lower left is better.",
        x_log=0 < 3 * low < high,
        whole_x=False,
        wide=True,
        x_limits=(low * 0.85, high * 1.18),
    )


def _front(points: Sequence[tuple[int, float]]) -> Line:
    """The means that no other one beats in both cost and error, as steps."""
    x: list[float] = []
    y: list[float | None] = []
    best = float("inf")
    for cost, error in sorted(points):
        if error < best:
            if x:
                x.append(cost)
                y.append(best)
            x.append(cost)
            y.append(error)
            best = error
    return Line(tuple(x), tuple(y))


def _error(split: str) -> Get:
    return lambda view: view.history.errors[split].get(view.leader)


def _curves(
    groups: Sequence[GroupView], name: str, title: str, label: str, get: Get, *, note: str = ""
) -> Chart | None:
    """Mean and deviation of every recipe over its trainings, and a thin line for each training."""
    with_line = [group for group in groups if any(get(view) for view in group.runs)]
    drawn = sorted(with_line, key=lambda group: group.mean_error)[:DRAWN]
    if not drawn:
        return None
    drawn.sort(key=lambda group: group.style)
    thin = sum(len(group.runs) for group in groups) <= EVERY_RUN
    series: list[Series] = []
    several = False
    for group in drawn:
        # A training that is still going on would cut the others' mean short, and a repeated seed counts once.
        known = [(view, line) for view in group.runs if (line := get(view))]
        whole = [line for view, line in known if view.counted] or [line for _, line in known]
        if len(known) > 1 and thin:
            series += [
                Series(
                    view.name,
                    thinned(line, POINTS),
                    group.style,
                    weight="thin",
                    marks=False,
                    group=group.id,
                    run=view.id,
                    legend=False,
                )
                for view, line in known
            ]
        several = several or len(whole) > 1
        mean, low, high = mean_line(whole)
        run = known[0][0].id if len(known) == 1 else ""
        series.append(
            Series(group.label, mean, group.style, weight="thick", low=low, high=high, group=group.id, run=run)
        )
    return Chart(name, title, "epoch", label, tuple(series), note=_note(note, with_line, drawn, thin, several))


def _note(note: str, all_groups: Sequence[GroupView], drawn: Sequence[GroupView], thin: bool, several: bool) -> str:
    words = [note] if note else []
    if several:
        words.append("Thick: mean over trainings, band: one deviation" + ("; thin: each training." if thin else "."))
    if len(drawn) < len(all_groups):
        words.append(f"The {len(drawn)} recipes with the lowest error, of {len(all_groups)}.")
    return " ".join(words)


def _perturbation(groups: Sequence[GroupView]) -> list[Chart | None]:
    """ONE's Fig. 4: curves that were measured under the same conditions; of several conditions the commonest."""
    conditions = Counter(
        (view.robustness.conditions, tuple(view.robustness.magnitudes))
        for group in groups
        for view in group.runs
        if view.robustness and view.robustness.magnitudes
    )
    if not conditions:
        return []
    (chosen, magnitudes), _ = conditions.most_common(1)[0]
    others = sum(conditions.values()) - conditions[chosen, magnitudes]
    note = f"Mean over directions; {chosen}."
    if others:
        note += f" {others} runs measured under other conditions are left out."

    def curve(kind: str, split: str) -> Get:
        def get(view: RunView) -> Line | None:
            found = view.robustness
            if found is None or (found.conditions, tuple(found.magnitudes)) != (chosen, magnitudes):
                return None
            return mean_of_directions(getattr(found, kind).get(split, []), magnitudes)

        return get

    charts = [
        _curves(
            groups,
            "perturbation",
            "Moved parameters: test error (ONE, Fig. 4)",
            "top-1 error on test images, %",
            curve("curves", "test"),
            note=note,
        ),
        _curves(
            groups,
            "perturbation-loss",
            "Moved parameters: training loss (ONE, Fig. 4)",
            "cross-entropy on training images, nats",
            curve("cross_entropy", "train"),
            note=note,
        ),
    ]
    label = "magnitude d of the perturbation of all parameters"
    return [chart and replace(chart, x_label=label, whole_x=False) for chart in charts]


def mean_of_directions(curves: Sequence[Sequence[float | None]], magnitudes: Sequence[float]) -> Line | None:
    """The mean of several directions; None at a magnitude where one of them is not finite."""
    if not curves:
        return None
    columns = [[value for value in column if value is not None] for column in zip(*curves, strict=True)]
    means = tuple(sum(column) / len(column) if len(column) == len(curves) else None for column in columns)
    return Line(tuple(magnitudes), means)

"""The papers' figures as a table's runs give them, drawn from the results' JSON alone.

ONE (Lan et al. 2018): Fig. 3, errors during training without and with distillation; Fig. 4, perturbation curves;
Fig. 5, variance between models. OKDDip (Chen et al. 2020): Fig. 2, diversity between peers; Fig. 3, group size.
A table names its figures; one whose rows have not been run is not drawn.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Results = Mapping[str, Any]
LABELS = {
    "baseline": "baseline",
    "independent": "independent",
    "one": "ONE",
    "clilr": "CL-ILR",
    "okddip": "OKDDip",
    "dml": "DML",
    "three_networks": "3 networks",
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write every figure that the table names and its rows allow, as PNG and SVG; returns the files."""
    files = []
    for name in results["figures"]:
        figure = FIGURES[name](results)
        if figure is not None:
            files += _write(figure, folder / f"{results['table']}_{name}")
    return files


def distillation(results: Results) -> Figure | None:
    """ONE's Fig. 3: training and test errors by epoch, branches and their gated ensemble, without and with the KL."""
    rows = results["rows"]
    if not {"one", "one_without_distillation"} <= rows.keys():
        return None
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axis, row, title in zip(
        panels, ("one_without_distillation", "one"), ("without distillation", "with distillation (ONE)"), strict=True
    ):
        runs = rows[row]
        for split, style in (("train", "--"), ("test", "-")):
            _line(axis, runs, _branches(split), "C0", style, f"branches, {split}")
            _line(axis, runs, _ensemble(split), "C3", style, f"gated ensemble, {split}")
            if "baseline" in rows:
                _line(axis, rows["baseline"], _branches(split), "0.5", style, f"baseline, {split}")
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
    panels[0].set_ylabel("top-1 error, %")
    panels[1].legend(fontsize="small")
    _titled(
        figure, "Effect of online distillation (ONE, Fig. 3)", rows, ("baseline", "one_without_distillation", "one")
    )
    return figure


def variance(results: Results) -> Figure | None:
    """ONE's Fig. 5: mean distance between two models' predictions on training images, by epoch."""
    return _diversity(
        results,
        ("three_networks", "one"),
        "train",
        "Variance between models during training (ONE, Fig. 5)",
        "mean distance of predictions on training images",
    )


def diversity(results: Results) -> Figure | None:
    """OKDDip's Fig. 2: mean distance between two peers' predictions, branches, by epoch."""
    return _diversity(
        results,
        ("independent", "okddip", "one", "clilr"),
        "test",
        "Diversity of peers during training (OKDDip, Fig. 2)",
        "mean distance of predictions on test images",
    )


def perturbation(results: Results) -> Figure | None:
    """ONE's Fig. 4: training cross-entropy and test error along random directions: thin one, thick the mean of all."""
    found = results.get("robustness", {})
    if not found:
        return None
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axis, key, split, label in (
        (panels[0], "cross_entropy", "train", "cross-entropy on training images, nats"),
        (panels[1], "curves", "test", "top-1 error on test images, %"),
    ):
        for index, (row, seeds) in enumerate(found.items()):
            curves = [curve for run in seeds.values() for curve in run[key][split]]
            magnitudes = next(iter(seeds.values()))["magnitudes"]
            for curve in curves:
                axis.plot(magnitudes, curve, color=f"C{index}", linewidth=0.6, alpha=0.25)
            label_of_row = f"{LABELS.get(row, row)} ({len(seeds)} runs x 5 directions)"
            axis.plot(magnitudes, _means(curves), color=f"C{index}", linewidth=2.4, label=label_of_row)
        axis.set_xlabel("magnitude d of the perturbation of all parameters")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
    panels[0].legend(fontsize="small")
    figure.suptitle("Robustness to parameter perturbation (ONE, Fig. 4)", fontsize="medium")
    return figure


def group_size(results: Results) -> Figure | None:
    """OKDDip's Fig. 3: error over the number of branches; OKDDip's leader, the others' mean over branches."""
    rows = results["rows"]
    found: dict[str, dict[int, list[float]]] = {}
    for row, seeds in rows.items():
        match = re.fullmatch(r"(okddip|one|clilr)_(\d+)", row)
        if match:
            method, count = match[1], int(match[2])
            errors = [
                run["leader"] if method == "okddip" else statistics.fmean(run["members"].values())
                for run in seeds.values()
            ]
            found.setdefault(method, {})[count] = errors
    if not found:
        return None
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axis = figure.subplots()
    for index, (method, by_count) in enumerate(found.items()):
        counts = sorted(by_count)
        means = [statistics.fmean(by_count[count]) for count in counts]
        spread = [statistics.stdev(by_count[count]) if len(by_count[count]) > 1 else 0.0 for count in counts]
        bars = spread if any(len(errors) > 1 for errors in by_count.values()) else None
        axis.errorbar(counts, means, bars, color=f"C{index}", marker="o", capsize=3, label=LABELS[method])
    axis.set_xlabel("branches")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("top-1 test error, %")
    axis.grid(alpha=0.25)
    axis.legend(fontsize="small")
    _titled(figure, "Impact of group size (OKDDip, Fig. 3)", rows, list(rows))
    return figure


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    "distillation": distillation,
    "perturbation": perturbation,
    "variance": variance,
    "diversity": diversity,
    "group_size": group_size,
}


def _diversity(results: Results, rows: Sequence[str], split: str, title: str, label: str) -> Figure | None:
    there = [row for row in rows if row in results["rows"]]
    if len(there) < 2:
        return None
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axis = figure.subplots()
    for index, row in enumerate(there):
        _line(axis, results["rows"][row], _distance(split), f"C{index}", "-", LABELS[row])
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)
    axis.legend(fontsize="small")
    _titled(figure, title, results["rows"], there)
    return figure


Curve = tuple[list[int], list[float]]


def _branches(split: str) -> Callable[[Mapping[str, Any]], Curve]:
    def curve(curves: Mapping[str, Any]) -> Curve:
        means = _means(list(curves[split].values()))
        return _epochs(curves, split, len(means)), means

    return curve


def _ensemble(split: str) -> Callable[[Mapping[str, Any]], Curve]:
    def curve(curves: Mapping[str, Any]) -> Curve:
        values = curves.get(f"{split}_ensemble", [])
        return _epochs(curves, split, len(values)), values

    return curve


def _distance(split: str) -> Callable[[Mapping[str, Any]], Curve]:
    def curve(curves: Mapping[str, Any]) -> Curve:
        values = curves[f"{split}_diversity"]
        return _epochs(curves, split, len(values)), values

    return curve


def _epochs(curves: Mapping[str, Any], split: str, count: int) -> list[int]:
    epochs: list[int] = curves["test_epochs"] if split == "test" else list(range(1, count + 1))
    return epochs


def _line(
    axis: Axes,
    runs: Mapping[str, Any],
    curve: Callable[[Mapping[str, Any]], Curve],
    colour: str,
    style: str,
    label: str,
) -> None:
    """The mean over seeds, with a band of one deviation."""
    found = [curve(run["curves"]) for run in runs.values()]
    epochs, values = found[0][0], [values for _, values in found]
    if not values[0]:
        return
    means = _means(values)
    axis.plot(epochs, means, style, color=colour, label=label)
    if len(values) > 1:
        spread = [statistics.stdev(column) for column in zip(*values, strict=True)]
        low = [mean - deviation for mean, deviation in zip(means, spread, strict=True)]
        high = [mean + deviation for mean, deviation in zip(means, spread, strict=True)]
        axis.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def _means(curves: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(column) for column in zip(*curves, strict=True)]


def _titled(figure: Figure, title: str, rows: Mapping[str, Any], shown: Sequence[str]) -> None:
    counts = sorted({len(rows[row]) for row in shown if row in rows})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    # Two lines: in one, the longer titles leave the picture.
    said = "one seed, no deviation known" if counts == [1] else f"mean of {seeds} seeds, band: one deviation"
    figure.suptitle(f"{title}\n{said}", fontsize="medium")


def _write(figure: Figure, stem: Path) -> list[Path]:
    """PNG and SVG: the same results and the same matplotlib give the same bytes."""
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    with matplotlib.rc_context({"svg.hashsalt": "distilkit"}):
        figure.savefig(files[0], dpi=120)
        figure.savefig(files[1], metadata={"Date": None})
    return files

"""Perturbation curves as a picture (Lan et al. 2018, Fig. 4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distilkit.report.figures import drawable, drawn_the_same, figure_class
from distilkit.runs.atomic import appearing

PANELS = (
    ("cross_entropy", "train", "cross-entropy on training images, nats"),
    ("curves", "train", "top-1 error on training images, %"),
    ("curves", "test", "top-1 error on test images, %"),
)
"""The paper shows the training cross-entropy and the test error; the training error stands beside them."""


def plot_curves(runs: Sequence[dict[str, Any]], stem: Path, statistics: str, directions_kind: str) -> list[Path]:
    """Write `stem`.png and .svg: one thin line per direction, the mean of each run thick; returns both paths."""
    figure = figure_class()(figsize=(13, 4.8), layout="constrained")
    # Without training images where a test set was typed alone.
    panels = [panel for panel in PANELS if any(panel[1] in run[panel[0]] for run in runs)]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (key, split, label) in zip(axes, panels, strict=True):
        for index, run in enumerate(runs):
            colour = f"C{index % 10}"
            values = run[key].get(split)
            if values is None:
                continue
            for line in values:
                axis.plot(run["magnitudes"], line, color=colour, linewidth=0.8, alpha=0.45)
            mean = [sum(column) / len(column) for column in zip(*values, strict=True)]
            name = drawable(f"{run['method']} ({Path(run['run']).name}, {run['member']})")
            axis.plot(run["magnitudes"], mean, color=colour, linewidth=2.2, label=name)
        axis.set_xlabel("magnitude d of the perturbation of all parameters")
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.margins(x=0.01)
    # Outside the panels, where it hides no curve; constrained layout makes room for it.
    handles, names = axes[0].get_legend_handles_labels()
    title = "thin: one direction each, thick: their mean"
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize="small", title=title)
    conditions = f"{directions_kind} directions, batch norm statistics {statistics}"
    figure.suptitle(f"Error under parameter perturbation: {conditions}", fontsize="medium")
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    with drawn_the_same():
        with appearing(files[0]) as partial:
            figure.savefig(partial, dpi=130, metadata={"Software": None})
        with appearing(files[1]) as partial:
            figure.savefig(partial, metadata={"Date": None})
    return files

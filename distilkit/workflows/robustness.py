"""`distilkit robustness`: how flat the optimum is, as curves and as a check (Lan et al. 2018, section 4.5)."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distilkit.analysis import perturbation
from distilkit.analysis.perturbation import DirectionKind
from distilkit.data.datasets import Split
from distilkit.data.resident import evaluation_batches
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.randomness import generator
from distilkit.report.curves import plot_curves
from distilkit.run import Model, open_model, writable, write_json
from distilkit.workflows.evaluate import choose_device

Statistics = Literal["frozen", "recomputed"]
BATCH_SIZE = 250
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Settings:
    """`max_distance`, `steps`: the grid of magnitudes, 0 included. `images`: of each split, drawn by `seed`."""

    max_distance: float
    steps: int
    directions: int
    images: int
    seed: int
    statistics: Statistics
    directions_kind: DirectionKind


@dataclass(frozen=True)
class Threshold:
    """The top-1 test error, mean over directions, may rise by at most `max_increase` points at magnitude `at`."""

    max_increase: float
    at: float


def robustness(
    paths: Sequence[Path],
    runs: Path,
    settings: Settings,
    *,
    threshold: Threshold | None,
    member: str | None,
    checkpoint: str | None,
    data_root: str | None,
    output: Path | None,
    device: str,
    observer: Observer,
) -> dict[str, Any]:
    """Perturb the deployed model's trainable parameters as one vector, and measure errors along random directions.

    `curves`: top-1 error in percent; `cross_entropy`: nats; each as split -> direction -> magnitude. `passed` is False
    when a threshold is exceeded or an error is not finite. Writes robustness.json, .png and .svg. Raises `UserError`
    for settings out of range.
    """
    _check(settings, threshold)
    chosen: Sequence[Path | None] = paths or [None]
    models = [open_model(path, runs, member=member, checkpoint=checkpoint)[1] for path in chosen]
    grid = perturbation.magnitudes(settings.max_distance, settings.steps, [threshold.at] if threshold else [])
    document: dict[str, Any] = {
        "settings": vars(settings),
        "runs": [_curves(model, grid, settings, data_root, device, observer) for model in models],
    }
    document["checks"] = [_checked(run, threshold) for run in document["runs"]] if threshold else []
    document["passed"] = all(check["passed"] for check in document["checks"])
    with writable(output or models[0].path / "robustness") as folder:
        document["files"] = [
            str(folder / "robustness.json"),
            *map(str, _plots(document["runs"], folder, settings)),
        ]
        write_json(folder / "robustness.json", document)
    return document


def _plots(runs: list[dict[str, Any]], folder: Path, settings: Settings) -> list[Path]:
    return plot_curves(runs, folder / "robustness", settings.statistics, settings.directions_kind)


def _curves(
    model: Model, grid: list[float], settings: Settings, data_root: str | None, device: str, observer: Observer
) -> dict[str, Any]:
    where = torch.device(choose_device(device))
    data = model.data.load(SPLITS, data_root)
    same = model.data.same(data, model.path, data_root, observer)
    chosen = {name: _some(split, settings) for name, split in data.splits.items()}
    classifier = model.classifier.to(where).eval()
    vectors = perturbation.directions(classifier, settings.directions, settings.seed, settings.directions_kind)
    splits = {name: _Batches(split, where) for name, split in chosen.items()}
    total = len(grid) * settings.directions
    per_direction = []
    for index, vector in enumerate(vectors):

        def progress(done: int, _: int, before: int = index * len(grid)) -> None:
            observer.progress(f"perturbations of {model.path.name}", before + done, total)

        per_direction.append(
            perturbation.curve(
                classifier,
                splits,
                vector.to(where),
                grid,
                recompute_on=splits["train"].images if settings.statistics == "recomputed" else None,
                progress=progress,
            )
        )
    parameters = [p.detach().float().norm() for p in classifier.parameters() if p.requires_grad]
    return {
        "run": str(model.path),
        "member": model.member,
        "method": model.method,
        "same_data": same,
        "images": {name: len(split.labels) for name, split in chosen.items()},
        "parameter_norm": float(torch.stack(parameters).norm()),
        "magnitudes": grid,
        "curves": {s: [[point.top1_error for point in curve[s]] for curve in per_direction] for s in SPLITS},
        "cross_entropy": {s: [[point.cross_entropy for point in curve[s]] for curve in per_direction] for s in SPLITS},
    }


class _Batches:
    """A split that can be gone through again and again."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device

    def __call__(self) -> Iterable[tuple[Tensor, Tensor]]:
        return evaluation_batches(self.split, BATCH_SIZE, self.device)

    def images(self) -> Iterator[Tensor]:
        """The images alone, for batch norm's statistics."""
        return (images for images, _ in self())


def _some(split: Split, settings: Settings) -> Split:
    if settings.images >= len(split.labels):
        return split
    order = torch.randperm(len(split.labels), generator=generator(settings.seed, "robustness-images"))
    some = order[: settings.images].sort().values
    return Split(split.images[some].contiguous(memory_format=torch.channels_last), split.labels[some])


def _checked(run: dict[str, Any], threshold: Threshold) -> dict[str, Any]:
    at = run["magnitudes"].index(threshold.at)
    increases = [curve[at] - curve[run["magnitudes"].index(0.0)] for curve in run["curves"]["test"]]
    increase = statistics.fmean(increases)
    return {
        "run": run["run"],
        "split": "test",
        "at": threshold.at,
        "max_increase": threshold.max_increase,
        "increase": increase,
        "largest_increase": max(increases),
        "passed": math.isfinite(increase) and increase <= threshold.max_increase,
    }


def _check(settings: Settings, threshold: Threshold | None) -> None:
    for name in ("directions", "images", "steps"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} must be 1 or more, not {getattr(settings, name)}", f"--{name} 5")
    if settings.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {settings.seed}", "--seed 0")
    if not (math.isfinite(settings.max_distance) and settings.max_distance > 0):
        raise UserError(f"--max-distance must be above 0, not {settings.max_distance:g}", "--max-distance 5")
    if threshold and not math.isfinite(threshold.max_increase):
        raise UserError(f"--max-increase must be a number of points, not {threshold.max_increase}", "--max-increase 5")
    if threshold and not (math.isfinite(threshold.at) and threshold.at > 0):
        raise UserError(f"--at must be a magnitude above 0, not {threshold.at:g}", "--at 2")

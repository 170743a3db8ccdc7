"""`distilkit robustness`: how flat the optimum is, as curves and as a check (Lan et al. 2018, section 4.5)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from distilkit.analysis import corruption, metrics, perturbation, sharpness
from distilkit.analysis.perturbation import DirectionKind
from distilkit.data.datasets import Split
from distilkit.data.resident import EvaluationImages
from distilkit.errors import UserError
from distilkit.groups.inference import Inference, Precision, over_images
from distilkit.groups.normalize import Classifier
from distilkit.observer import Observer
from distilkit.randomness import generator
from distilkit.report.curves import plot_curves
from distilkit.runs.atomic import inside, writable, write_json
from distilkit.runs.run import Model, open_models
from distilkit.training.threads import suited
from distilkit.workflows.evaluation.logits import choose_device
from distilkit.workflows.evaluation.robustness_checks import Thresholds, check_kind
from distilkit.workflows.share.cards import refresh

Statistics = Literal["frozen", "recomputed"]
MOST = 10_000
"""Directions, or steps along each: above that a slip of the finger, whose vectors would fill the memory."""
FARTHEST = 1e38
"""Magnitudes: beyond, float32 has no number."""
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    `max_distance`, `steps`: the grid of magnitudes, 0 included. `images`: of each split, drawn by `seed`. `rise`: in
    points, for the magnitude at which the error has risen so far. `parameters`: whether parameters are perturbed at
    all. `inputs`: the kinds of perturbed images, see `analysis.corruption`. `precision`: what the network computes in.
    """

    max_distance: float
    steps: int
    directions: int
    images: int
    seed: int
    statistics: Statistics
    directions_kind: DirectionKind
    rise: float = 10.0
    parameters: bool = True
    inputs: tuple[str, ...] = ()
    precision: Precision = "fp32"


def robustness(
    paths: Sequence[Path],
    runs: Path,
    settings: Settings,
    *,
    thresholds: Thresholds,
    member: str | None,
    checkpoint: str | None,
    data_root: str | None,
    output: Path | None,
    device: str,
    observer: Observer,
) -> dict[str, Any]:
    """Perturb the deployed model's trainable parameters as one vector, and its images, and measure errors.

    `curves`: top-1 error in percent; `cross_entropy`: nats; each as split -> direction -> magnitude. `sharpness`: the
    test curves in two numbers. `inputs`: top-1 test errors by kind and severity. `passed` is False when a threshold is
    exceeded or an error is not finite. Writes robustness.json, and .png and .svg of the curves. Raises `UserError` for
    settings out of range.
    """
    settings = _completed(settings, thresholds)
    _check(settings, thresholds)
    chosen: Sequence[Path | None] = paths or [None]
    models = [model for _, model in open_models(chosen, runs, member=member, checkpoint=checkpoint)]
    wanted = [threshold.at for threshold in thresholds.parameters]
    grid = perturbation.magnitudes(settings.max_distance, settings.steps, wanted)
    measured = [_measured(model, grid, settings, data_root, device, observer) for model in models]
    document: dict[str, Any] = {
        "settings": vars(settings),
        "runs": [{**each, "checkpoint": checkpoint} for each in measured],
    }
    document["checks"] = [threshold.check(run) for run in document["runs"] for threshold in thresholds.all]
    document["passed"] = all(check["passed"] for check in document["checks"])
    with writable(output or inside(models[0].path, "robustness")) as folder:
        plots = _plots(document["runs"], folder, settings) if settings.parameters else []
        document["files"] = [str(folder / "robustness.json"), *map(str, plots)]
        write_json(folder / "robustness.json", document)
    if output is None:
        refresh(models[0].path, observer)
    return document


def _completed(settings: Settings, thresholds: Thresholds) -> Settings:
    """The settings with all that the thresholds need to be measured."""
    kinds = dict.fromkeys([*settings.inputs, *(threshold.perturbation for threshold in thresholds.inputs)])
    parameters = settings.parameters or bool(thresholds.parameters or thresholds.sharpness)
    return replace(settings, inputs=tuple(kinds), parameters=parameters)


def _plots(runs: list[dict[str, Any]], folder: Path, settings: Settings) -> list[Path]:
    return plot_curves(runs, folder / "robustness", settings.statistics, settings.directions_kind)


def _measured(
    model: Model, grid: list[float], settings: Settings, data_root: str | None, device: str, observer: Observer
) -> dict[str, Any]:
    where = choose_device(device)
    data = model.data.load(SPLITS if settings.parameters else ("test",), data_root, test_alone=True)
    if settings.parameters and settings.statistics == "recomputed" and "train" not in data.splits:
        raise UserError(
            f"{data_root} has no training images, from which --statistics recomputed would take them",
            "leave --statistics out, or name a folder that has train/ as well",
        )
    same = model.data.same(data, model.path, data_root, observer)
    chosen = {name: _some(split, settings) for name, split in data.splits.items()}
    classifier = model.classifier.to(where).eval()
    parameters = [p.detach().float().norm() for p in classifier.parameters() if p.requires_grad]
    measured: dict[str, Any] = {
        "run": str(model.path),
        "member": model.member,
        "method": model.method,
        "same_data": same,
        "images": {name: len(split.labels) for name, split in chosen.items()},
        "parameter_norm": float(torch.stack(parameters).norm()),
    }
    images = {name: EvaluationImages(split, where) for name, split in chosen.items()}
    with suited(where, classifier, chosen["test"]):
        if settings.parameters:
            measured |= _curves(classifier, images, grid, settings, model.path.name, observer)
        if settings.inputs:
            name = model.path.name
            measured["inputs"] = _under_perturbed_images(classifier, images["test"], settings, name, observer)
    return measured


def _curves(
    classifier: Classifier,
    splits: dict[str, EvaluationImages],
    grid: list[float],
    settings: Settings,
    name: str,
    observer: Observer,
) -> dict[str, Any]:
    """Errors along every direction, and the test errors' rise in two numbers."""
    vectors = perturbation.directions(classifier, settings.directions, settings.seed, settings.directions_kind)
    total = len(grid) * settings.directions
    per_direction = []
    for index, vector in enumerate(vectors):

        def progress(done: int, _: int, before: int = index * len(grid)) -> None:
            observer.progress(f"perturbations of {name}", before + done, total)

        per_direction.append(
            perturbation.curve(
                classifier,
                splits,
                vector.to(splits["test"].device),
                grid,
                recompute_on=splits["train"] if settings.statistics == "recomputed" else None,
                precision=settings.precision,
                progress=progress,
            )
        )
    # Without training images, where a test set was typed alone.
    curves = {s: [[point.top1_error for point in curve[s]] for curve in per_direction] for s in splits}
    return {
        "magnitudes": grid,
        "curves": curves,
        "cross_entropy": {s: [[point.cross_entropy for point in curve[s]] for curve in per_direction] for s in splits},
        "sharpness": {
            "split": "test",
            "area": asdict(sharpness.area(grid, curves["test"])),
            "rise": settings.rise,
            "magnitude": asdict(sharpness.reach(grid, curves["test"], settings.rise)),
        },
    }


def _under_perturbed_images(
    classifier: Classifier, test: EvaluationImages, settings: Settings, name: str, observer: Observer
) -> dict[str, Any]:
    """Top-1 test errors in percent, of the images themselves and by kind and severity; fixed statistics."""
    answers = Inference(classifier, settings.precision)

    def error(kind: str | None, severity: int) -> float:
        wrong, seen = torch.zeros((), dtype=torch.int64, device=test.device), 0

        def perturbed(images: Tensor) -> Tensor:
            if kind is not None:
                images = corruption.corrupt(images, kind, severity, seed=settings.seed, start=seen)
            return answers(images)  # type: ignore[no-any-return]

        for logits, labels in over_images(perturbed, test):
            wrong += metrics.errors(logits, labels).top1
            seen += len(labels)
        return 100 * int(wrong) / seen

    severities = range(1, corruption.SEVERITIES + 1)
    with torch.inference_mode():
        clean, errors = error(None, 0), {}
        for done, kind in enumerate(settings.inputs, start=1):
            errors[kind] = [error(kind, severity) for severity in severities]
            observer.progress(f"perturbed images of {name}", done, len(settings.inputs))
    kinds = {kind: corruption.CORRUPTIONS[kind] for kind in settings.inputs}
    return {
        "clean": clean,
        "errors": errors,
        "mean": statistics.fmean(value for values in errors.values() for value in values),
        "amounts": {kind: list(found.amounts) for kind, found in kinds.items()},
        "units": {kind: found.unit for kind, found in kinds.items()},
    }


def _some(split: Split, settings: Settings) -> Split:
    if settings.images >= len(split.labels):
        return split
    order = torch.randperm(len(split.labels), generator=generator(settings.seed, "robustness-images"))
    some = order[: settings.images].sort().values
    return Split(split.images[some].contiguous(memory_format=torch.channels_last), split.labels[some])


def _check(settings: Settings, thresholds: Thresholds) -> None:
    for name in ("directions", "images", "steps"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} must be 1 or more, not {getattr(settings, name)}", f"--{name} 5")
    for name in ("directions", "steps"):
        if getattr(settings, name) > MOST:
            raise UserError(f"--{name} must be at most {MOST:,}, not {getattr(settings, name)}", f"--{name} 20")
    if settings.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {settings.seed}", "--seed 0")
    for name in ("max_distance", "rise"):
        value, option = getattr(settings, name), f"--{name.replace('_', '-')}"
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{option} must be above 0, not {value:g}", f"{option} 5")
    for option, value in [
        ("--max-distance", settings.max_distance),
        *(("--at", each.at) for each in thresholds.parameters),
    ]:
        if value > FARTHEST:
            raise UserError(f"{option} must be at most {FARTHEST:g}, not {value:g}", f"{option} 5")
    for kind in settings.inputs:
        check_kind(kind)
    if not settings.parameters and not settings.inputs:
        raise UserError("with --no-parameters nothing is left to measure", "add --inputs all")

"""`distilkit evaluate`: the error of a deployed classifier, with its interval."""

from pathlib import Path
from typing import Any, Literal

from distilkit.analysis.metrics import evaluate_logits
from distilkit.errors import UserError
from distilkit.groups.inference import Precision
from distilkit.observer import Observer
from distilkit.runs.data_record import DataRecord
from distilkit.runs.run import open_model
from distilkit.workflows.evaluation.logits import predict

SplitName = Literal["train", "validation", "test"]


def evaluate(
    path: Path | None,
    runs: Path,
    *,
    member: str | None,
    split: SplitName,
    checkpoint: str | None,
    data_root: str | None,
    device: str,
    precision: Precision = "fp32",
    observer: Observer,
) -> dict[str, Any]:
    """Top-1 and top-5 error (percent), cross-entropy (nats), calibration error and per-class errors (percent).

    `interval95`: Wilson's 95 % interval of the top-1 error. Raises `UserError` for what is not there.
    """
    found, model = open_model(path, runs, member=member, checkpoint=checkpoint)
    require_split(model.data, split, found.path)
    data = model.data.load((split,), data_root)
    same = model.data.same(data, found.path, data_root, observer)
    logits = predict(model.classifier, data.splits[split], device, observer, precision)
    figures = evaluate_logits(logits, data.splits[split].labels)
    return {
        "run": str(found.path),
        "member": model.member,
        "split": split,
        "precision": precision,
        "same_data": same,
        "images": figures.images,
        "top1_error": figures.top1_error,
        "top5_error": figures.top5_error,
        "interval95": list(figures.interval95),
        "cross_entropy": figures.cross_entropy,
        "calibration_error": figures.calibration_error,
        "per_class_error": dict(zip(model.data.classes, figures.per_class_error, strict=True)),
    }


def require_split(data: DataRecord, split: SplitName, path: Path) -> None:
    """Raise `UserError` for validation images where none were held out."""
    if split == "validation" and not data.validation:
        raise UserError(f"{path} held no validation images out", "use --split test or --split train")

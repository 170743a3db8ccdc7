"""`distilkit evaluate`: the errors of anything that predicts, with their intervals, and the gates that it must pass.

For ONNX files and class folders nothing here needs torch.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilkit.analysis.predictions import balanced_error, calibration_error, per_class, wilson95
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.runs.atomic import appearing, writable
from distilkit.spelling import csv_cell
from distilkit.workflows.evaluation.gates import Gates
from distilkit.workflows.evaluation.predicting import Asked, Predicted, SplitName, predict

__all__ = ["Asked", "Gates", "SplitName", "evaluate"]

CONFUSIONS = 10
COVERAGES = 10
TOP = 5


def evaluate(
    paths: Sequence[Path | None],
    runs: Path,
    asked: Asked,
    *,
    gates: Gates | None = None,
    predictions: Path | None = None,
    coverage: bool = False,
    observer: Observer,
) -> dict[str, Any]:
    """Errors (percent), cross-entropy (nats), calibration, precision and recall of runs, pruned models and files.

    One model: a flat document; several: a list `models`. `checks`, `passed`: the gates' verdicts. `predictions`: a file
    (CSV, or Parquet by its ending) that is written with every image. `coverage`: also the error against the share of
    images that is answered, the most confident first. Raises `UserError` for what is not there.
    """
    gates = gates or Gates()
    gates.check()
    if predictions is not None and len(paths) > 1:
        raise UserError("--predictions is of one model", "evaluate one at a time")
    found = [predict(path, runs, asked, observer) for path in paths]
    documents = [_document(each, asked, coverage) for each in found]
    if gates.no_worse_than is not None:
        other = predict(gates.no_worse_than, runs, asked, observer)
    for each, document in zip(found, documents, strict=True):
        document["checks"] = gates.verdicts(each.name, each.found, each.classes)
        if gates.no_worse_than is not None:
            if other.classes != each.classes:
                raise UserError(
                    f"{each.name} and {other.name} have other classes: {len(each.classes)} and {len(other.classes)}",
                    "compare models of the same classes in the same order",
                )
            check, comparison = gates.comparison(each.name, each.found, other.found, gates.no_worse_than)
            document["checks"].append(check)
            document["compared"] = comparison
        document["passed"] = all(check["passed"] for check in document["checks"])
    if predictions is not None:
        _write(found[0], predictions)
        documents[0]["predictions"] = str(predictions)
    if len(documents) == 1:
        return documents[0]
    checks = [check for document in documents for check in document["checks"]]
    return {"models": documents, "checks": checks, "passed": all(check["passed"] for check in checks)}


def _document(each: Predicted, asked: Asked, coverage: bool) -> dict[str, Any]:
    found, wrong = each.found, each.found.wrong()
    count, confusion, losses = len(found), found.confusion(), found.losses()
    confidence = found.probabilities.max(1)
    classes = [
        dict(zip(("images", "precision", "recall", "f1"), of.values(), strict=True)) for of in per_class(confusion)
    ]
    off = confusion - np.diag(np.diag(confusion))
    most = sorted(zip(*np.nonzero(off), strict=True), key=lambda at: (-off[at], at))[:CONFUSIONS]
    return {
        "run": each.name,
        "member": each.member,
        "split": asked.split,
        "precision": asked.precision,
        "same_data": each.same_data,
        "images": count,
        "top1_error": 100 * int(wrong.sum()) / count,
        "top5_error": 100 * int(found.wrong(TOP).sum()) / count,
        "interval95": list(wilson95(int(wrong.sum()), count)),
        "cross_entropy": float(losses.mean()),
        "calibration_error": calibration_error(confidence, ~wrong),
        "per_class_error": {
            name: None if of["recall"] is None else 100 - of["recall"]
            for name, of in zip(each.classes, classes, strict=True)
        },
        "balanced_error": balanced_error(found.labels, wrong, len(each.classes)),
        "averages": {
            # Over the classes for which there is one.
            key: float(np.mean([of[key] for of in classes if of[key] is not None] or [np.nan]))
            for key in ("precision", "recall", "f1")
        },
        "per_class": dict(zip(each.classes, classes, strict=True)),
        "missing_classes": [name for name, of in zip(each.classes, classes, strict=True) if not of["images"]],
        "confusions": [
            {"class": each.classes[row], "taken_for": each.classes[column], "images": int(off[row, column])}
            for row, column in most
        ],
        **({"coverage": _coverage(confidence, wrong)} if coverage else {}),
    }


def _coverage(confidence: Any, wrong: Any) -> list[dict[str, float]]:
    """Error (percent) among the most confident images, by the share of images that is answered."""
    order = np.argsort(-confidence, kind="stable")
    rows = []
    for part in range(1, COVERAGES + 1):
        answered = order[: max(1, round(len(order) * part / COVERAGES))]
        rows.append(
            {
                "answered": 100 * len(answered) / len(order),
                "threshold": float(confidence[answered[-1]]),
                "error": 100 * float(wrong[answered].mean()),
            }
        )
    return rows


def _write(each: Predicted, file: Path) -> None:
    """Every image with its label, prediction, confidence, loss and the probabilities of its five best classes."""
    found, probabilities = each.found, each.found.probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    taken, losses = found.taken(), found.losses()
    table: dict[str, list[Any]] = {
        "image": list(found.names),
        "label": [each.classes[place] for place in found.labels],
        "prediction": [each.classes[place] for place in taken],
        "confidence": probabilities.max(1).tolist(),
        "loss": losses.tolist(),
    }
    for rank in range(order.shape[1]):
        table[f"top{rank + 1}_class"] = [each.classes[place] for place in order[:, rank]]
        table[f"top{rank + 1}_probability"] = np.take_along_axis(probabilities, order[:, [rank]], 1)[:, 0].tolist()
    with writable(file.parent), appearing(file) as partial:
        if file.suffix == ".parquet":
            try:
                import pyarrow
                from pyarrow import parquet
            except ImportError:
                raise UserError(
                    "Parquet is written by pyarrow, which is not installed", "pip install pyarrow"
                ) from None
            parquet.write_table(pyarrow.table(table), partial)
            return
        with partial.open("w", encoding="utf-8", newline="", errors="surrogateescape") as stream:
            rows = csv.writer(stream)
            rows.writerow(table)
            for row in zip(*table.values(), strict=True):
                rows.writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in row])

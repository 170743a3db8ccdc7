"""What a report says of a run's test images: computed once in one pass, and kept in the run's folder."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from distilkit.analysis.metrics import confusion, evaluate_logits, reliability
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.reading import LARGEST_MEASURED, UnreadableError, read_json_bytes
from distilkit.report.measured import ReliabilityBin, TestedClassifier, TestedRun
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.atomic import inside, write_json
from distilkit.runs.metrics import finite
from distilkit.runs.run import Run
from distilkit.workflows.evaluation.logits import choose_device, predict_members

KEPT = Path("report") / "test.json"


def on_test_images(run: Run, data_root: str | None, device: str, observer: Observer) -> TestedRun:
    """Every member and the method's own ensemble on the test images, with the weights that are deployed.

    Kept in `RUN/report/test.json` under the weights' digest, and read from there the next time. Raises `UserError`
    where weights or images are not there.
    """
    run.require_trust()
    digest = _digest(run.checkpoint())
    names = [*run.record["members"], *filter(None, [run.record["ensemble"]])]
    kept = _kept(run.path / KEPT)
    same = kept and kept.weights == digest and data_root in (None, kept.data_root)
    if kept is not None and same and kept.fits(names, len(run.data.classes)):
        return kept
    tested = _tested(run, digest, data_root, device, observer)
    # A folder that cannot be written costs time the next time, and nothing now.
    with suppress(UserError, OSError):
        inside(run.path, KEPT.parent.name).mkdir(exist_ok=True)
        write_json(run.path / KEPT, tested.model_dump(mode="json"))
    return tested


def _digest(folder: Path) -> str:
    """One name for the weights of a checkpoint."""
    parts = checkpoints.load_state(folder)["sha256"]
    return hashlib.sha256(f"{parts.get('group.safetensors')} {parts.get('method.safetensors')}".encode()).hexdigest()


def _kept(file: Path) -> TestedRun | None:
    """What was computed before; None where there is nothing, or nothing sound."""
    try:
        return TestedRun.model_validate_json(read_json_bytes(file, LARGEST_MEASURED))
    except (UnreadableError, ValidationError):
        return None


def _tested(run: Run, digest: str, data_root: str | None, device: str, observer: Observer) -> TestedRun:
    choose_device(device)  # before anything is read
    learner = run.learner()
    data = run.data.load(("test",), data_root)
    same = run.data.same(data, run.path, data_root, observer)
    split = data.splits["test"]
    # As a training evaluates, so that the figures are the run's own.
    found = predict_members(learner, split, device, f"test images of {run.path.name}", observer)
    document = TestedRun(
        weights=digest,
        images=len(split.labels),
        fingerprint=data.fingerprints.get("test"),
        same_data=same,
        data_root=data_root,
        classifiers={name: _classifier(logits_NC, split.labels) for name, logits_NC in found.items()},
    )
    # As it will be read: without NaN.
    return TestedRun.model_validate_json(json.dumps(finite(document.model_dump(mode="json"))))


def _classifier(logits_NC: Tensor, labels_N: Tensor) -> TestedClassifier:
    figures = evaluate_logits(logits_NC, labels_N)
    counts_CC = confusion(logits_NC, labels_N)
    return TestedClassifier(
        top1_error=figures.top1_error,
        top5_error=figures.top5_error,
        cross_entropy=figures.cross_entropy,
        calibration_error=figures.calibration_error,
        per_class_error=list(figures.per_class_error),
        confusion=[(row, column, int(counts_CC[row, column])) for row, column in counts_CC.nonzero().tolist()],
        reliability=[ReliabilityBin(**found._asdict()) for found in reliability(logits_NC, labels_N)],
    )

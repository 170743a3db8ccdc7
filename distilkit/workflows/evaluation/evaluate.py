"""`distilkit evaluate`: the error of a deployed classifier, with its interval."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distilkit.analysis.metrics import evaluate_logits
from distilkit.data.datasets import Split
from distilkit.data.resident import evaluation_batch, evaluation_batches
from distilkit.errors import UserError
from distilkit.groups.inference import Inference, Precision
from distilkit.observer import Observer
from distilkit.runs.data_record import DataRecord
from distilkit.runs.run import open_model
from distilkit.training.threads import suited

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


@torch.inference_mode()
def predict(
    classifier: nn.Module, split: Split, device: str, observer: Observer, precision: Precision = "fp32"
) -> Tensor:
    """Logits [N, C] of every image in order, on the CPU, in fp32; `precision`: what they are computed in."""
    where = torch.device(choose_device(device))
    answers = Inference(classifier.to(where).eval(), precision)
    outputs, done = [], 0
    with suited(where, answers, split):
        for images, _ in evaluation_batches(split, evaluation_batch(where), where):
            outputs.append(answers(images).cpu())
            done += len(images)
            observer.progress("images", done, len(split.labels))
    return torch.cat(outputs)


def choose_device(device: str) -> str:
    """ "auto" is CUDA where there is one, else the CPU. Raises `UserError` for a CUDA that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here", "leave --device out to use what there is")
    return device

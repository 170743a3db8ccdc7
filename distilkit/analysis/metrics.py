"""How wrong a classifier is: errors, cross-entropy, calibration, intervals. Pure functions of logits and labels.

Shape suffixes: N images, C classes; `...` stands for leading dimensions such as the members of a group.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distilkit.analysis.predictions import CALIBRATION_BINS, wilson95

__all__ = [
    "CALIBRATION_BINS",
    "ErrorCounts",
    "Evaluation",
    "ReliabilityBin",
    "confusion",
    "errors",
    "evaluate_logits",
    "interval95",
    "reliability",
    "wilson95",
]


class ErrorCounts(NamedTuple):
    """How many of N images each classifier gets wrong; int64 [...], on the logits' device."""

    top1: Tensor
    top5: Tensor


@dataclass(frozen=True)
class Evaluation:
    """One classifier on N images.

    Errors in percent of images, `cross_entropy` in nats (mean over images), `calibration_error` in percent (expected
    calibration error, Guo et al. 2017, 15 bins of equal width). `interval95`: Wilson's 95 % interval of the top-1
    error, percent; it speaks of the sampling of images, not of the spread between trainings. `per_class_error`: top-1
    error of each class's own images, percent, None for a class without images.

    Where a logit is NaN the image counts as an error and `cross_entropy` and `calibration_error` are NaN.
    """

    images: int
    top1_error: float
    top5_error: float
    cross_entropy: float
    calibration_error: float
    interval95: tuple[float, float]
    per_class_error: tuple[float | None, ...]


def errors(logits_NC: Tensor, labels_N: Tensor) -> ErrorCounts:
    """Count top-1 and top-5 errors, over N, for every leading dimension at once: [..., N, C] -> [...].

    The label must be among the min(5, C) largest logits. Ties are resolved against the classifier: a class whose
    logit equals the label's ranks before it, so a network that collapsed to one constant scores 0 % and not 100 %.
    (The price: logits in bfloat16 tie by rounding, so hand in what a float32 last layer computed.) With five classes
    or fewer the top-5 error is 0 by definition. An image with a NaN among its logits counts as an error in both.
    Nothing here waits for the device.
    """
    top1, top5 = _wrong(logits_NC, labels_N)
    return ErrorCounts(top1.sum(-1), top5.sum(-1))


def evaluate_logits(logits_NC: Tensor, labels_N: Tensor) -> Evaluation:
    """Evaluate one classifier's logits [N, C] against int64 labels [N]; see `Evaluation` for units.

    Sums and softmax in float64; ties as in `errors`. Raises `ValueError` if there are no images or the shapes do not
    belong together.
    """
    if logits_NC.ndim != 2 or labels_N.shape != logits_NC.shape[:1]:
        raise ValueError(f"logits {list(logits_NC.shape)} and labels {list(labels_N.shape)} are not [N, C] and [N]")
    images, classes = logits_NC.shape
    if images == 0:
        raise ValueError("there are no images to evaluate")

    wrong_N, wrong5_N = _wrong(logits_NC, labels_N)
    log_probabilities_NC = logits_NC.double().log_softmax(-1)
    cross_entropy = -log_probabilities_NC.gather(1, labels_N.unsqueeze(1)).mean()
    confidence_N = log_probabilities_NC.amax(1).exp()

    count_C = labels_N.bincount(minlength=classes).tolist()
    wrong_C = labels_N[wrong_N].bincount(minlength=classes).tolist()
    top1 = int(wrong_N.sum())
    return Evaluation(
        images=images,
        top1_error=100 * top1 / images,
        top5_error=100 * int(wrong5_N.sum()) / images,
        cross_entropy=float(cross_entropy),
        calibration_error=_calibration_error(confidence_N, ~wrong_N),
        interval95=wilson95(top1, images),
        per_class_error=tuple(
            100 * wrong / count if count else None for wrong, count in zip(wrong_C, count_C, strict=True)
        ),
    )


def confusion(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """How many images of each class (row) are taken for which (column): int64 [C, C], on the CPU.

    Ties count against the classifier as in `errors`, so that the diagonal says what the per-class errors say: an image
    whose label ties with another class is one of that class.
    """
    classes = logits_NC.shape[1]
    wrong_N, _ = _wrong(logits_NC, labels_N)
    rival_N = logits_NC.scatter(1, labels_N[:, None], -math.inf).argmax(1)
    taken_N = torch.where(wrong_N, rival_N, labels_N)
    return (labels_N * classes + taken_N).bincount(minlength=classes**2).reshape(classes, classes).cpu()


class ReliabilityBin(NamedTuple):
    """The images whose confidence lies in one bin: how many, their mean confidence and how many of them are right.

    `confidence`, `accuracy`: percent; None in a bin without images.
    """

    images: int
    confidence: float | None
    accuracy: float | None


def reliability(logits_NC: Tensor, labels_N: Tensor) -> list[ReliabilityBin]:
    """The bins of `Evaluation.calibration_error`, from low to high; images with a NaN among their logits are in none.

    The calibration error is the mean over images of the gap between `accuracy` and `confidence` of their bin.
    """
    wrong_N, _ = _wrong(logits_NC, labels_N)
    confidence_N = logits_NC.double().softmax(-1).amax(1)
    sound_N = ~confidence_N.isnan()
    confidence_N, right_N = confidence_N[sound_N], (~wrong_N[sound_N]).double()
    bin_N = _bins(confidence_N)
    counts = bin_N.bincount(minlength=CALIBRATION_BINS).tolist()
    sums = [bin_N.bincount(weights, CALIBRATION_BINS).tolist() for weights in (confidence_N, right_N)]
    return [
        ReliabilityBin(count, 100 * confidence / count, 100 * right / count) if count else ReliabilityBin(0, None, None)
        for count, confidence, right in zip(counts, *sums, strict=True)
    ]


def _bins(confidence_N: Tensor) -> Tensor:
    """The bin b = 1..15 with (b-1)/15 < confidence <= b/15, counted from 0."""
    return (confidence_N * CALIBRATION_BINS).ceil().long().sub(1).clamp(0, CALIBRATION_BINS - 1)


def _wrong(logits_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Which images are top-1 errors and which top-5 errors: two bool tensors [..., N]."""
    labels_N1 = labels_N.expand(logits_NC.shape[:-1]).unsqueeze(-1)
    # "Not smaller" rather than "greater or equal": it is also true of NaN. The label itself is one of them.
    rivals_N = (~(logits_NC < logits_NC.gather(-1, labels_N1))).sum(-1) - 1
    # With C <= 5 a NaN would still be among the five.
    broken_N = logits_NC.isnan().any(-1)
    return broken_N | (rivals_N >= 1), broken_N | (rivals_N >= 5)


def _calibration_error(confidence_N: Tensor, right_N: Tensor) -> float:
    """Mean over images of |accuracy - mean confidence| of the bin ((b-1)/15, b/15] that the image falls in, percent."""
    if bool(confidence_N.isnan().any()):
        return math.nan
    bin_N = _bins(confidence_N)
    # In a bin of n images, n |accuracy - confidence| is the absolute value of one sum of (right - confidence).
    gap_per_bin = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=confidence_N.device)
    gap_per_bin.index_add_(0, bin_N, right_N.double() - confidence_N)
    return 100 * float(gap_per_bin.abs().sum()) / len(confidence_N)


def interval95(error: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an error in percent of so many images, percent."""
    return wilson95(round(error * images / 100), images)

"""What a classifier predicts for labelled images, and every figure that follows from it. NumPy alone: no torch.

Shape suffixes: N images, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15
RESAMPLES = 1000
"""Of the bootstrap over images."""

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """Logits [N, C] (or logarithms of probabilities, which are alike here) and labels [N] of images.

    `names`: of each image, its file where there is one. `digests`: of each image's file or pixels, by which images are
    paired between classifiers.
    """

    logits: Floats
    labels: Numbers
    names: Sequence[str]
    digests: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> Floats:
        """Softmax of the logits: [N, C]."""
        shifted = np.exp(self.logits - self.logits.max(1, keepdims=True))
        found: Floats = shifted / shifted.sum(1, keepdims=True)
        return found

    def wrong(self, top: int = 1) -> Flags:
        """Which images' labels are not among the `top` largest logits: [N]. Ties, and NaN, count as errors."""
        own = np.take_along_axis(self.logits, self.labels[:, None], 1)
        # "Not smaller" rather than "greater or equal": it is also true of NaN. The label itself is one of them.
        rivals = (~(self.logits < own)).sum(1) - 1
        found: Flags = np.isnan(self.logits).any(1) | (rivals >= top)
        return found

    def taken(self) -> Numbers:
        """The class that each image is taken for [N]; of one that ties with its label, the rival."""
        rivals = self.logits.copy()
        np.put_along_axis(rivals, self.labels[:, None], -np.inf, 1)
        return np.where(self.wrong(), rivals.argmax(1), self.labels)

    def losses(self) -> Floats:
        """Cross-entropy of each image in nats: [N]."""
        largest = self.logits.max(1, keepdims=True)
        total = largest[:, 0] + np.log(np.exp(self.logits - largest).sum(1))
        found: Floats = total - np.take_along_axis(self.logits, self.labels[:, None], 1)[:, 0]
        return found

    def confusion(self) -> Numbers:
        """How many images of each class (row) are taken for which (column): [C, C]."""
        classes = self.logits.shape[1]
        places = self.labels * classes + self.taken()
        return np.bincount(places, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def calibration_error(confidence: Floats, right: Flags) -> float:
    """Mean over images of |accuracy - mean confidence| of the image's bin, percent (Guo et al. 2017, 15 bins)."""
    if np.isnan(confidence).any():
        return float("nan")
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, right - confidence, CALIBRATION_BINS)
    return 100 * float(np.abs(gaps).sum()) / len(confidence)


def balanced_error(labels: Numbers, wrong: Flags, classes: int) -> float:
    """Mean over the classes that have images of their error, percent."""
    counts = np.bincount(labels, minlength=classes)
    errors = np.bincount(labels, wrong, classes)[counts > 0] / counts[counts > 0]
    return 100 * float(errors.mean())


def per_class(confusion: Numbers) -> list[dict[str, Any]]:
    """Precision, recall, F1 (percent) and number of images of every class.

    None where there is nothing to divide by: recall without images, precision where nothing is taken for the class.
    """
    own, images, taken = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return [
        {
            "images": int(image),
            "precision": 100 * int(right) / int(named) if named else None,
            "recall": 100 * int(right) / int(image) if image else None,
            "f1": 200 * int(right) / int(image + named) if image + named else None,
        }
        for right, image, named in zip(own, images, taken, strict=True)
    ]


def bootstrap_bounds(count: int, figure: Callable[[Numbers], float]) -> tuple[float, float]:
    """The 95 % percentile interval of a figure over images: `figure` takes the places of a resample, [N].

    The same images give the same interval: the resamples are drawn from a fixed seed.
    """
    draws = np.random.default_rng(0)
    values = [figure(draws.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same images; of `images`, `only_ours` and `only_theirs` are wrong for one of them alone.

    `difference`: our error minus theirs in points. `interval95`: (2p - 1)(b + c) / n with p's exact (Clopper-Pearson)
    interval, b and c being the two counts and p = b / (b + c). `p`: McNemar's exact test.
    """

    images: int
    only_ours: int
    only_theirs: int
    difference: float
    interval95: tuple[float, float]
    p: float


def paired(ours: Flags, theirs: Flags) -> Paired:
    """Compare which images are wrong. Raises `ValueError` if there are not as many."""
    if ours.shape != theirs.shape:
        raise ValueError("not the same images")
    # Imported here: it takes longer than most evaluations.
    from scipy.stats import binomtest

    b, c, total = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(ours)
    if b + c == 0:
        return Paired(total, 0, 0, 0.0, (0.0, 0.0), 1.0)
    found = binomtest(b, b + c)
    ends = found.proportion_ci(confidence_level=0.95, method="exact")
    low, high = (100 * (2 * float(end) - 1) * (b + c) / total for end in (ends.low, ends.high))
    return Paired(total, b, c, 100 * (b - c) / total, (low, high), float(found.pvalue))


def wilson95(errors: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an error of `errors` in `images`, percent."""
    # Imported here: scipy.stats takes longer to import than most evaluations on a GPU take to run.
    from scipy.stats import binomtest

    interval = binomtest(errors, images).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)

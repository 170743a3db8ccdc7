"""What a teacher is worth on the data at hand, before students learn from it.

A file of weights says nothing of the constants that its images were normalised by, of the order of its classes, or of
its channels. Read wrongly it still gives logits, and its students are worse for it. So it is measured on labelled
images, and read in other ways as well: where another reading is much better, the training does not begin.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilkit.analysis.metrics import wilson95
from distilkit.data.base import Split
from distilkit.data.resident import EvaluationImages
from distilkit.errors import SettingError
from distilkit.groups.inference import over_images
from distilkit.groups.normalize import Classifier, Normalize
from distilkit.learners.teacher import ResizedClassifier, Teacher
from distilkit.models import external

IMAGES = 2000
IMAGES_OF_A_DRY_RUN = 500
MUCH = 10.0
"""Another reading counts as much better from so many points of error on, where both 95 % intervals lie apart."""
_ABOUT = 3.0
# A network that knows nothing gains from an order of its classes, too, but not so much: of the largest class' error.
_AT_LEAST = 0.75

Constants = tuple[tuple[float, ...], tuple[float, ...]]

_IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Measured:
    """A teacher on labelled images: top-1 `error` in percent with its 95 % interval, `cross_entropy` in nats."""

    split: str
    images: int
    error: float
    error_95: tuple[float, float]
    cross_entropy: float
    chance: float
    """The error of whoever always names the largest class among these images."""

    @property
    def knows_nothing(self) -> bool:
        """Whether naming the largest class may be as good (Wilson's bound)."""
        return self.error_95[1] >= self.chance

    def document(self) -> dict[str, Any]:
        """What run.json keeps."""
        return {
            "split": self.split,
            "images": self.images,
            "error": self.error,
            "error_95": list(self.error_95),
            "cross_entropy": self.cross_entropy,
        }


@dataclass(frozen=True)
class Reading:
    """One way to read a classifier's file. `order`: which of its logits belongs to each class of the data."""

    constants: Constants
    called: str
    """In words, after "x % error"."""
    swapped: bool = False
    order: tuple[int, ...] | None = None


def choose_images(splits: Mapping[str, Split], classes: int, most: int) -> tuple[str, Split]:
    """Up to `most` labelled images, evenly by class: of the validation split, else of the training images.

    Never of the test set, on which nothing is decided. Returns the split's name and those images, in memory.
    """
    name = "validation" if "validation" in splits else "train"
    split = splits[name]
    labels = split.labels.numpy()
    each = max(1, most // classes)
    places: list[int] = []
    for number in range(classes):
        own = np.flatnonzero(labels == number)
        places += own[np.linspace(0, len(own) - 1, min(each, len(own))).astype(int)].tolist() if len(own) else []
    chosen = torch.tensor(sorted(places[:most]))
    return name, Split(split.images[chosen], split.labels[chosen])


def measure(teacher: nn.Module, split: str, images: Split, device: torch.device) -> Measured:
    """Measure a teacher, or one of its classifiers, on images that `choose_images` has chosen."""
    logits = _logits(teacher, images, device)
    labels = images.labels
    wrong = int((logits.argmax(1) != labels).sum())
    largest = int(labels.bincount().max())
    total = len(labels)
    return Measured(
        split=split,
        images=total,
        error=100 * wrong / total,
        error_95=wilson95(wrong, total),
        cross_entropy=float(torch.nn.functional.cross_entropy(logits.double(), labels)),
        chance=100 * (total - largest) / total,
    )


def require_right_reading(
    classifier: Classifier | ResizedClassifier,
    measured: Measured,
    images: Split,
    classes: Sequence[str],
    architecture: str,
    data_constants: Constants,
    device: torch.device,
) -> None:
    """Raise `SettingError` on "teacher.weights" where the file of weights is useless, or read wrongly.

    First, where another reading of it is better by `MUCH` points, with both intervals apart: other constants (the
    library's, ImageNet's, the data's, 0.5, none), channels in reverse, the best permutation of the classes, which is
    found on one half of the images and judged on the other. Then, where it is no better than naming the largest class.
    """
    best = _better_reading(classifier, measured, images, len(classes), architecture, data_constants, device)
    if best is not None:
        reading, error = best
        keys = _keys(reading, classifier, classes)
        raise SettingError(
            "teacher.weights",
            f"the teacher has {measured.error:.1f} % error on {measured.images:,} images of the {measured.split} split "
            f"and {error:.1f} % {reading.called}: its weights are read wrongly",
            f"{keys}; to train with it as it is, set teacher.allow_weak = true",
        )
    if measured.knows_nothing:
        low, high = measured.error_95
        raise SettingError(
            "teacher.weights",
            f"the teacher has {measured.error:.1f} % error ({low:.1f} to {high:.1f}) on {measured.images:,} images of "
            f"the {measured.split} split, and naming the largest class always has {measured.chance:.1f} %",
            "these are not the weights of this task: name others, or the classes that they know (teacher.classes); to "
            "train with it as it is, set teacher.allow_weak = true",
        )


def _better_reading(
    classifier: Classifier | ResizedClassifier,
    measured: Measured,
    images: Split,
    classes: int,
    architecture: str,
    data_constants: Constants,
    device: torch.device,
) -> tuple[Reading, float] | None:
    """The reading with the lowest error of those that are much better, and its error in percent."""
    found: list[tuple[float, Reading]] = []
    # A quarter of the images says which readings are worth all of them.
    some = torch.from_numpy(np.flatnonzero(_every(4, images.labels.numpy())))
    few = Split(images.images[some], images.labels[some])
    for reading in _readings(classifier, architecture, data_constants):
        for tried in (few, images):
            candidates = list(_judged(classifier, reading, tried, classes, device))
            promising = [
                (error, with_order)
                for error, interval, with_order in candidates
                if error <= min(measured.error - (MUCH / 2 if tried is few else MUCH), _AT_LEAST * measured.chance)
                and (tried is few or interval[1] < measured.error_95[0])
            ]
            if not promising:
                break
        found += promising
    if not found:
        return None
    least = min(error for error, _ in found)
    # Of those that are about as good the one that changes least.
    error, reading = min(
        (each for each in found if each[0] <= least + _ABOUT), key=lambda each: (_changes(each[1]), each[0])
    )
    return reading, error


def _changes(reading: Reading) -> int:
    return (not reading.called.startswith("as it is")) + 2 * reading.swapped + 2 * (reading.order is not None)


def _judged(
    classifier: Classifier | ResizedClassifier, reading: Reading, images: Split, classes: int, device: torch.device
) -> Iterator[tuple[float, tuple[float, float], Reading]]:
    """Error and interval of a reading, and of the same with the best permutation of the classes."""
    with _read_as(classifier, reading):
        predicted = _logits(classifier, images, device, reversed_channels=reading.swapped).argmax(1).numpy()
    labels = images.labels.numpy()
    wrong = int((predicted != labels).sum())
    yield 100 * wrong / len(labels), wilson95(wrong, len(labels)), reading
    # Imported here: only a teacher's file needs it.
    from scipy.optimize import linear_sum_assignment

    half = _every(2, labels)
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels[half], predicted[half]), 1)
    _, order = linear_sum_assignment(counts, maximize=True)
    if np.array_equal(order, np.arange(classes)):
        return
    wrong = int((order[labels[~half]] != predicted[~half]).sum())
    judged = int((~half).sum())
    words = "with its classes in another order"
    called = words if reading.called == "as it is" else f"{reading.called} and {words}"
    permuted = Reading(reading.constants, called, reading.swapped, tuple(order.tolist()))
    if judged:
        yield 100 * wrong / judged, wilson95(wrong, judged), permuted


def _every(step: int, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which images are the first of each class, and every `step`-th of it after that."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    mask = np.empty(len(labels), dtype=np.bool_)
    mask[order] = (np.arange(len(labels)) - np.repeat(starts, counts)) % step == 0
    return mask


def _readings(
    classifier: Classifier | ResizedClassifier, architecture: str, data_constants: Constants
) -> Iterator[Reading]:
    normalize = _inner(classifier).normalize
    channels = normalize.mean.numel()
    own: Constants = (_numbers(normalize.mean), _numbers(normalize.std))
    named: dict[str, Constants | None] = {
        "as it is": own,
        "with its library's constants": external.constants(architecture)
        if external.is_external(architecture)
        else None,
        "with ImageNet's constants": _IMAGENET,
        "with the data's constants": data_constants,
        "with images in [-1, 1]": ((0.5,) * channels, (0.5,) * channels),
        "with images in [0, 1]": ((0.0,) * channels, (1.0,) * channels),
    }
    seen: list[Constants] = []
    for called, constants in named.items():
        if constants is None or len(constants[0]) != channels or any(_close(constants, each) for each in seen):
            continue
        seen.append(constants)
        yield Reading(constants, called)
        if channels == 3:
            reverse = "with blue, green and red in reverse"
            yield Reading(constants, reverse if called == "as it is" else f"{called} and {reverse[5:]}", swapped=True)


def _close(one: Constants, other: Constants) -> bool:
    return bool(np.allclose(one, other, atol=1e-3))


def _numbers(buffer: Tensor) -> tuple[float, ...]:
    return tuple(round(number, 6) for number in buffer.flatten().tolist())


def _inner(classifier: Classifier | ResizedClassifier) -> Classifier:
    return classifier.classifier if isinstance(classifier, ResizedClassifier) else classifier


@contextmanager
def _read_as(classifier: Classifier | ResizedClassifier, reading: Reading) -> Iterator[None]:
    inner = _inner(classifier)
    before = inner.normalize
    inner.normalize = Normalize(*reading.constants).to(before.mean.device)
    try:
        yield
    finally:
        inner.normalize = before


def _logits(network: nn.Module, images: Split, device: torch.device, *, reversed_channels: bool = False) -> Tensor:
    """Logits [N, C], float32, on the CPU."""

    def logits(batch: Tensor) -> Tensor:
        if reversed_channels:
            batch = batch.flip(1).contiguous(memory_format=torch.channels_last)
        found: Tensor = network(batch)
        return found.float().cpu()

    return torch.cat([found for found, _ in over_images(logits, EvaluationImages(images, device))])


def _keys(reading: Reading, classifier: Classifier | ResizedClassifier, classes: Sequence[str]) -> str:
    """What to write into the recipe, so that the file is read in this way."""
    normalize = _inner(classifier).normalize
    keys = []
    if not _close(reading.constants, (_numbers(normalize.mean), _numbers(normalize.std))):
        mean, std = (f"[{', '.join(f'{number:g}' for number in numbers)}]" for numbers in reading.constants)
        keys += [f"teacher.mean = {mean}", f"teacher.std = {std}"]
    if reading.order is not None:
        places = np.array(reading.order)
        if isinstance(classifier, ResizedClassifier) and classifier.classes is not None:
            places = classifier.classes.cpu().numpy()[places]
        # By class of the data, the place of its logit; `teacher.classes` names the classes in the order of the logits.
        named = ", ".join(json.dumps(classes[place], ensure_ascii=False) for place in np.argsort(places))
        keys.append(f"teacher.classes = [{named}]")
    text = "set " + " and ".join(keys) if keys else ""
    if reading.swapped:
        first = (
            "its first convolution was trained on blue, green, red: reverse that dimension of its weight and save it"
        )
        text = f"{text}; {first}" if text else first
    return text


def measure_teacher(teacher: Teacher, split: str, images: Split, device: torch.device) -> list[Measured]:
    """Measure each of a teacher's classifiers; where there are several, their mean at last."""
    moved = teacher.to(device)
    found = [measure(each, split, images, device) for each in moved.classifiers]
    return [*found, measure(moved, split, images, device)] if len(found) > 1 else found


def digest(classifier: Classifier | ResizedClassifier) -> str:
    """SHA-256 over the names and the numbers of its weights, in hexadecimal: the same for the same weights anywhere."""
    found = hashlib.sha256()
    for name, tensor in sorted(_inner(classifier).backbone.state_dict().items()):
        found.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

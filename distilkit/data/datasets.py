"""The data sets that a recipe can name, and how they become splits.

Neither torchvision nor scikit-learn is imported before images are read from them: listing names and describing a data
set stays quick.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distilkit.data.base import DataSpec, ImageData, Pixels, Source, Split
from distilkit.data.cifar import CIFAR10, CIFAR100
from distilkit.data.digits import Digits
from distilkit.data.image_folder import ImageFolder
from distilkit.errors import SettingError, did_you_mean
from distilkit.randomness import generator

__all__ = ["DataSpec", "ImageData", "Split", "fingerprint", "load", "names", "presence", "spec"]

SOURCES: dict[str, Source] = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "digits": Digits(),
    "image-folder": ImageFolder(),
}
SPLITS = ("train", "validation", "test")


def names() -> tuple[str, ...]:
    """List the data sets, as a recipe spells them."""
    return tuple(SOURCES)


def spec(name: str, root: Path, image_size: int | None = None) -> DataSpec:
    """Say what is known of a data set without reading its images.

    Only "image-folder" looks at `root`: its classes are folders there. `image_size`: pixels to a side, which only
    "image-folder" leaves open (None: 32). Raises `SettingError` for an unknown name or another set's `image_size`,
    `UserError` where a folder is missing.
    """
    return _source(name).spec(root.expanduser(), image_size)


def presence(name: str, root: Path, *, download: bool) -> tuple[bool, str]:
    """Say whether a data set's files are there, and in one line for people: where, or which file to put where.

    Looks for files, does not read them: damage shows itself when they are loaded.
    """
    return _source(name).presence(root.expanduser(), download=download)


def load(
    name: str,
    root: Path,
    *,
    download: bool,
    image_size: int | None = None,
    validation: int | float = 0,
    seed: int = 0,
    splits: Collection[str] = SPLITS,
) -> ImageData:
    """Read the splits asked for; files that none of them needs are not decoded.

    `validation`: what is held out of the training images and not trained on: an int counts images, a float is a
    fraction of them (rounded). It depends on (seed, labels) alone, see `held_out`. With 0 there is no "validation".
    A data set's mean and std are of all its training images, before any are held out: the published constants are
    so too, and a data set then has one normalisation whatever is held out.

    Raises `SettingError` ("data.dataset", "data.image_size", "data.validation") and `UserError` where files are
    missing or cannot be read.
    """
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"no such splits: {', '.join(sorted(unknown))}")
    source, root = _source(name), root.expanduser()
    described = source.spec(root, image_size)

    parts = [part for part, users in (("train", {"train", "validation"}), ("test", {"test"})) if users & set(splits)]
    read = source.read(root, described, parts, download=download)

    pixels: dict[str, Pixels] = {}
    if "train" in read:
        if described.mean is None:
            mean, std = channel_statistics(read["train"].images)
            described = replace(described, mean=mean, std=std)
        mask_N = held_out(read["train"].labels, validation, seed)
        if mask_N.any():
            pixels["train"], pixels["validation"] = _take(read["train"], ~mask_N), _take(read["train"], mask_N)
        else:
            pixels["train"] = read["train"]
        described = replace(described, train_images=len(mask_N))
    if "test" in read:
        pixels["test"] = read["test"]
        described = replace(described, test_images=len(read["test"].labels))

    found = {split: _split(pixels[split]) for split in SPLITS if split in pixels and split in splits}
    return ImageData(described, found, {key: fingerprint(split, described.classes) for key, split in found.items()})


def held_out(labels_N: np.ndarray, validation: int | float, seed: int) -> np.ndarray:
    """Choose the training images to hold out: bool [N], drawn in proportion from every class.

    The images are put in random order, then sorted by class (stably), and every (N / size)-th is taken from a random
    start: systematic sampling. Every image has the same chance; every class gives its share of `size` rounded up or
    down; and while at most half is held out, a class of two or more keeps an image to train on. Drawn from
    generator(seed, "validation"), so that a resumed run, every process and a later evaluation hold out the same.

    Raises `SettingError` where the amount makes no sense or leaves fewer than 2 images to train on.
    """
    count = len(labels_N)
    size = validation if isinstance(validation, int) else round(validation * count)
    if validation < 0:
        raise _validation_error(f"validation = {validation} is negative", count)
    if isinstance(validation, float) and validation >= 1:
        raise _validation_error(f"validation = {validation} is a fraction, and has to be below 1", count)
    if validation > 0 and size == 0:
        raise _validation_error(f"validation = {validation} of {count} training images rounds to no image", count)
    if size > count - 2:
        raise _validation_error(
            f"validation = {validation} takes {size} of {count} training images; 2 must be left to train on", count
        )

    mask_N = np.zeros(count, dtype=bool)
    if size:
        draws = generator(seed, "validation")
        order_N = torch.randperm(count, generator=draws).numpy()
        by_class_N = order_N[np.argsort(labels_N[order_N], kind="stable")]
        start = int(torch.randint(count, (), generator=draws))
        # In whole numbers, so that no rounding can take an image twice: consecutive places are N / size >= 1 apart.
        mask_N[by_class_N[(np.arange(size, dtype=np.int64) * count + start) // size]] = True
    return mask_N


def channel_statistics(images_NHWC: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and standard deviation per channel of uint8 images taken as [0, 1], rounded to 6 digits.

    Rounded, so that a recipe, a model card and an exported file carry the very numbers that trained the model. Summed
    over the 256 levels' counts in float64. A constant channel gets deviation 1: it has no scale to divide by.
    """
    levels = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images_NHWC.shape[-1]):
        counts = np.bincount(images_NHWC[..., channel].ravel(), minlength=256).astype(np.float64)
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ np.square(levels - mean) / counts.sum())
        means.append(round(mean, 6))
        stds.append(round(variance**0.5, 6) or 1.0)
    return tuple(means), tuple(stds)


def fingerprint(split: Split, classes: Collection[str]) -> str:
    """Hash (SHA-256, as hex) what a split means: shape, class names, pixels, labels.

    Pixels count in NCHW order and labels as little-endian int64, whatever the memory format and the machine. Two
    decoders that disagree about a JPEG file give two fingerprints, rightly.
    """
    digest = hashlib.sha256(json.dumps({"shape": list(split.images.shape), "classes": list(classes)}).encode())
    for start in range(0, len(split.images), 4096):  # a copy of the whole set in NCHW order would double the memory
        digest.update(split.images[start : start + 4096].contiguous().numpy().data)
    digest.update(split.labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise SettingError(
            "data.dataset",
            f"there is no data set {name!r}; there are {', '.join(names())}",
            did_you_mean(name, names()),
        )
    return SOURCES[name]


def _validation_error(problem: str, count: int) -> SettingError:
    return SettingError(
        "data.validation", problem, f"write a number of images up to {max(count - 2, 0)}, or a fraction such as 0.1"
    )


def _take(pixels: Pixels, mask_N: np.ndarray) -> Pixels:
    return Pixels(pixels.images[mask_N], pixels.labels[mask_N])


def _split(pixels: Pixels) -> Split:
    # Channels-last memory is NHWC seen as NCHW: nothing is copied.
    images: Tensor = torch.from_numpy(np.ascontiguousarray(pixels.images)).permute(0, 3, 1, 2)
    return Split(images, torch.from_numpy(np.ascontiguousarray(pixels.labels, dtype=np.int64)))

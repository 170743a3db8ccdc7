"""What a data set is known by, and what every source of images must be able to do.

Shape suffixes: N images, C channels, H height, W width.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from distilkit.errors import SettingError


@dataclass(frozen=True)
class DataSpec:
    """What is known of a data set without reading its images.

    `channels`: 1 or 3. `size`: height and width in pixels. `train_images`, `test_images`: None where not known
    without the files. `mean`, `std`: per channel, of images in [0, 1]; None where they are computed from the training
    pixels when those are loaded. `default_augment`: one of `augment.names()`.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: int
    train_images: int | None
    test_images: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    default_augment: str


@dataclass(frozen=True)
class Split:
    """`images`: uint8 [N, C, H, W] in channels-last memory. `labels`: int64 [N], indices into the classes."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageData:
    """A loaded data set.

    `spec`: with mean and std whenever the training images were read. `splits`: "train", "validation" (only if images
    were held out) and "test", as asked for. `fingerprints`: of each split, see `datasets.fingerprint`.
    """

    spec: DataSpec
    splits: dict[str, Split]
    fingerprints: dict[str, str]


class Pixels(NamedTuple):
    """A source's images as they were read: `images` uint8 [N, H, W, C] and `labels` int64 [N]."""

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: np.ndarray[Any, np.dtype[np.int64]]


class Source(Protocol):
    """Where a data set comes from. `root` is the recipe's data folder."""

    def spec(self, root: Path, image_size: int | None) -> DataSpec:
        """Describe the set without reading images. Raises `UserError` where the files are needed and missing."""

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Say whether the images are there, and in one line for people: where, or which file to put where."""

    def read(self, root: Path, spec: DataSpec, parts: Collection[str], *, download: bool) -> dict[str, Pixels]:
        """Read the images of `parts`, out of "train" and "test". Raises `UserError` that names the files at fault."""


def require_size(name: str, size: int, image_size: int | None) -> None:
    """Raise `SettingError` where a recipe asks a data set of one fixed size for another."""
    if image_size not in (None, size):
        raise SettingError(
            "data.image_size",
            f"the images of {name} are {size} x {size} pixels; image_size = {image_size} cannot be had",
            f"leave image_size out, or write {size}",
        )

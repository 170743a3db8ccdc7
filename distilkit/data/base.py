"""What a data set is known by, and what every source of images must be able to do.

Shape suffixes: N images, C channels, H height, W width.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from distilkit.data.pixels import Framing
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


class Images(Protocol):
    """Images uint8 [N, C, H, W] that wait in memory (a tensor) or in their files (`streaming.StreamedImages`)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, C, H, W]."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, chosen: Any, /) -> Tensor:
        """Those of a slice or an int64 tensor of places: uint8 [B, C, H, W] in channels-last memory, on the CPU."""


@dataclass(frozen=True)
class Split:
    """`images`: uint8 [N, C, H, W] in channels-last memory. `labels`: int64 [N], indices into the classes."""

    images: Images
    labels: Tensor


@dataclass(frozen=True)
class ImageData:
    """A loaded data set.

    `spec`: with mean and std whenever the training images were asked for. `splits`: "train", "validation" (only if
    images were held out) and "test", as asked for. `fingerprints`: of each split, see `datasets.fingerprint`.
    """

    spec: DataSpec
    splits: dict[str, Split]
    fingerprints: dict[str, str]


class Pixels(NamedTuple):
    """A source's images as they were read: `images` uint8 [N, H, W, C] and `labels` int64 [N]."""

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: np.ndarray[Any, np.dtype[np.int64]]


class Pictures(NamedTuple):
    """A source's images as files that have not been read.

    `root`: the folder that `paths` [N] start from. `labels`: int64 [N]. `framing`: how a file becomes pixels.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    framing: Framing


@dataclass(frozen=True)
class Traits:
    """What is known of a kind of data set without looking for its files.

    `augment`: the default, one of `augment.names()`. `image_size`: whether a recipe may choose it; `default_size`: what
    it is then, None if only the files tell. `channels`: whether a recipe may choose grey or colour. `reads_files`:
    whether `root` matters. `prepared`: whether its files can be downloaded or unpacked. `short_side`: to how many
    pixels a picture's shorter side is brought for every pixel of the central square that is cut out.
    """

    augment: str
    image_size: bool = False
    default_size: int | None = None
    channels: bool = False
    reads_files: bool = True
    prepared: bool = False
    short_side: float = 1.0

    def framing(self, size: int, channels: int) -> Framing:
        """Say how an original picture becomes one of the set's test images."""
        return Framing(size, round(size * self.short_side), channels)


class Source(Protocol):
    """Where a data set comes from. `root` is the recipe's data folder."""

    @property
    def traits(self) -> Traits:
        """What is known without files."""

    def spec(self, root: Path, image_size: int | None, channels: int | None) -> DataSpec:
        """Describe the set without reading images. Raises `UserError` where the files are needed and missing."""

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Say whether the images are there, and in one line for people: where, or which file to put where."""

    def prepare(self, root: Path, parts: Collection[str], *, download: bool) -> None:
        """Download or unpack what `parts` need: the only method that writes. Raises `UserError` where that fails."""

    def parts(self, root: Path) -> tuple[str, ...]:
        """Name the splits that the files are divided into: "train", "test", and "validation" where it is one."""

    def remarks(self, root: Path) -> list[str]:
        """Say in a line each what a person should know of the files."""

    def labels(self, root: Path) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]] | None:
        """Say the labels of "train" and "test" where that is cheap: nothing is decoded. None where it is not."""

    def pictures(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pictures] | None:
        """List the image files of `parts`; None where the images do not lie in files of their own."""

    def read(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pixels]:
        """Read the images of `parts`, out of "train" and "test". Raises `UserError` that names the files at fault."""


class Plain:
    """What most sources answer alike."""

    def prepare(self, root: Path, parts: Collection[str], *, download: bool) -> None:
        """Do nothing: the images are there or are not."""

    def parts(self, root: Path) -> tuple[str, ...]:
        """Know no validation images."""
        return ("train", "test")

    def remarks(self, root: Path) -> list[str]:
        """Say nothing."""
        return []

    def labels(self, root: Path) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]] | None:
        """Say nothing: the labels lie with the images."""
        return None

    def pictures(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pictures] | None:
        """Have no files of single images."""
        return None


def require_size(name: str, size: int, image_size: int | None, own_channels: int, channels: int | None) -> None:
    """Raise `SettingError` where a recipe asks a data set of one fixed form for another."""
    if image_size not in (None, size):
        raise SettingError(
            "image_size",
            f"the images of {name} are {size} x {size} pixels; image_size = {image_size} cannot be had",
            f"leave image_size out, or write {size}",
        )
    if channels not in (None, own_channels):
        raise SettingError(
            "channels",
            f"the images of {name} have {own_channels} channel{'s' * (own_channels > 1)}; {channels} cannot be had",
            "leave channels out",
        )

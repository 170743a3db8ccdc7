"""Handwritten digits that come with scikit-learn: real images that need no file and no connection."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from distilkit.data.base import DataSpec, Pixels, Plain, Traits, require_size
from distilkit.data.registry import register

TRAIN_IMAGES = 1297
TEST_IMAGES = 500
# Of the training images; a test computes them again.
MEAN, STD = 0.305940, 0.375377


class Digits(Plain):
    """The 1,797 test images of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998).

    Grey, 8 x 8 pixels, 17 levels: level v of 0..16 is stored as v * 255 / 16, rounded to even.

    They stay in scikit-learn's order, which goes writer by writer (each fills in the same form, which shows in the
    labels: a form starts at images 0, 130, 256 ... 1157, 1287, 1415 ...). The first 1,297 are for training and the
    last 500 for testing, so the test shows how a network does on hands that it has not seen, except that the writer
    at the boundary has the first ten images of the form among the training images. Its errors are higher than those
    of a shuffled split of the same images.
    """

    traits = Traits("crop", reads_files=False)

    def spec(self, root: Path, image_size: int | None, channels: int | None) -> DataSpec:
        """Describe the set; nothing depends on files. It is shifted only: a mirrored digit is another sign."""
        require_size("digits", 8, image_size, 1, channels)
        classes = tuple("0123456789")
        return DataSpec("digits", classes, 1, 8, TRAIN_IMAGES, TEST_IMAGES, (MEAN,), (STD,), self.traits.augment)

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Say that they are always there."""
        return True, "embedded in scikit-learn"

    def read(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pixels]:
        """Take the images out of scikit-learn."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images_NHWC = np.rint(digits.images[..., np.newaxis] * (255 / 16)).astype(np.uint8)
        labels_N = digits.target.astype(np.int64)
        ranges = {"train": slice(0, TRAIN_IMAGES), "test": slice(TRAIN_IMAGES, TRAIN_IMAGES + TEST_IMAGES)}
        return {part: Pixels(images_NHWC[ranges[part]], labels_N[ranges[part]]) for part in parts}


register("digits", Digits())

"""Street View House Numbers (Netzer et al. 2011), cropped digits, read and downloaded by torchvision."""

import http.client
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from distilkit.data.base import DataSpec, Pixels, Plain, Traits, require_size
from distilkit.data.registry import register
from distilkit.errors import UserError

FILES = {"train": ("train", "extra"), "test": ("test",)}
TRAIN_IMAGES = 73_257 + 531_131
TEST_IMAGES = 26_032


class Svhn(Plain):
    """604,388 training images (`train` and `extra` together, in this order) and 26,032 test images of 32 x 32 pixels.

    They are trained without augmentation, as in the papers; a mirrored digit is another sign. Mean and deviation are
    computed from the training images: the figures in circulation are of `train` without `extra`.
    """

    traits = Traits("none")

    def spec(self, root: Path, image_size: int | None, channels: int | None) -> DataSpec:
        """Describe the set; nothing depends on its files."""
        require_size("svhn", 32, image_size, 3, channels)
        classes = tuple("0123456789")
        return DataSpec("svhn", classes, 3, 32, TRAIN_IMAGES, TEST_IMAGES, None, None, self.traits.augment)

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Look for the three files."""
        missing = [name for name in ("train", "extra", "test") if not (root / self._file(name)[1]).is_file()]
        if not missing:
            return True, f"{root / self._file('train')[1]} and its two sisters"
        if download:
            files = ", ".join(self._file(name)[0] for name in missing)
            return False, f"{files} will be downloaded into {root}"
        return False, self._hint(root, missing)

    def read(self, root: Path, spec: DataSpec, parts: Collection[str], *, download: bool) -> dict[str, Pixels]:
        """Read the images in the files' order; with `download`, missing and damaged files are fetched first."""
        return {part: self._together([self._open(root, name, download) for name in FILES[part]]) for part in parts}

    def _open(self, root: Path, name: str, download: bool) -> Any:
        from torchvision import datasets

        url, file, _ = self._file(name)
        path = root / file
        try:
            return datasets.SVHN(root, name, download=False)
        except RuntimeError as error:  # torchvision's words for a file that is missing or not the published one
            state = f"{path} is damaged (not the published md5)" if path.is_file() else f"there is no {path}"
            if not download:
                raise UserError(state, self._hint(root, [name])) from error
        try:
            return datasets.SVHN(root, name, download=True)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise UserError(f"{state}, and fetching {url} failed: {said}", self._hint(root, [name])) from error

    def _together(self, opened: list[Any]) -> Pixels:
        images_NHWC = np.empty((sum(len(each.data) for each in opened), 32, 32, 3), dtype=np.uint8)
        labels, start = [], 0
        while opened:  # Each is let go before the next is copied: `extra` alone has 1.6 GB.
            each = opened.pop(0)
            images_NHWC[start : start + len(each.data)] = each.data.transpose(0, 2, 3, 1)
            start += len(each.data)
            labels.append(np.asarray(each.labels, dtype=np.int64).reshape(-1))
        return Pixels(images_NHWC, np.concatenate(labels))

    def _file(self, name: str) -> tuple[str, str, str]:
        """Address, name and md5 of a file."""
        from torchvision import datasets

        url, file, md5 = datasets.SVHN.split_list[name]
        return url, file, md5

    def _hint(self, root: Path, names: Collection[str]) -> str:
        files = ", ".join(f"{self._file(name)[1]} (md5 {self._file(name)[2]})" for name in names)
        return (
            f"put {files} from {self._file('train')[0].rpartition('/')[0]} into {root}; download = true under [data] "
            "fetches what is missing where there is a connection"
        )


register("svhn", Svhn())

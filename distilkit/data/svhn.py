"""Street View House Numbers (Netzer et al. 2011), cropped digits, read and downloaded by torchvision."""

import http.client
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from distilkit.data.base import DataSpec, Pixels, Plain, Traits, require_size
from distilkit.data.registry import register
from distilkit.errors import UserError, require_plain_file

FILES = {"train": ("train", "extra"), "test": ("test",)}
TRAIN_IMAGES = 73_257 + 531_131
TEST_IMAGES = 26_032


class Svhn(Plain):
    """604,388 training images (`train` and `extra` together, in this order) and 26,032 test images of 32 x 32 pixels.

    They are trained without augmentation, as in the papers; a mirrored digit is another sign. Mean and deviation are
    computed from the training images: the figures in circulation are of `train` without `extra`.
    """

    traits = Traits("none", prepared=True)

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

    def prepare(self, root: Path, parts: Collection[str], *, download: bool) -> None:
        """With `download`, fetch the files of `parts` that are missing or damaged."""
        from torchvision.datasets.utils import check_integrity, download_url

        for name in [name for part in parts for name in FILES[part]] if download else ():
            url, file, md5 = self._file(name)
            self._require_plain(root, name)
            if check_integrity(root / file, md5):
                continue
            try:
                download_url(url, root, file, md5)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                said = str(error) or type(error).__name__
                raise UserError(
                    f"{self._state(root, name)}, and fetching {url} failed: {said}", self._hint(root, [name])
                ) from error

    def read(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pixels]:
        """Read the images in the files' order."""
        return {part: self._together([self._open(root, name) for name in FILES[part]]) for part in parts}

    def _open(self, root: Path, name: str) -> Any:
        from torchvision import datasets

        self._require_plain(root, name)
        try:
            return datasets.SVHN(root, name, download=False)
        except RuntimeError as error:  # torchvision's words for a file that is missing or not the published one
            raise UserError(self._state(root, name), self._hint(root, [name])) from error

    def _state(self, root: Path, name: str) -> str:
        path = root / self._file(name)[1]
        return f"{path} is damaged (not the published md5)" if path.is_file() else f"there is no {path}"

    def _require_plain(self, root: Path, name: str) -> None:
        """Raise `UserError` for a pipe or a device in the place of a file, before it is read."""
        path = root / self._file(name)[1]
        try:
            require_plain_file(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}", self._hint(root, [name])) from error

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

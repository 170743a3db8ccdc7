"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read and downloaded by torchvision."""

import http.client
import tarfile
import warnings
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilkit.data.base import DataSpec, Pixels, Plain, Traits, require_size
from distilkit.data.registry import register
from distilkit.errors import UserError, require_plain_file


@dataclass(frozen=True)
class Cifar(Plain):
    """One of the two sets: 50,000 training and 10,000 test images of 32 x 32 pixels.

    `mean`, `std`: the published constants of the training images. `dataset`: torchvision's class, which knows the
    files, their checksums and their address.
    """

    name: str
    dataset: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def traits(self) -> Traits:
        """What is known without files."""
        return Traits("crop-flip", prepared=True)

    def spec(self, root: Path, image_size: int | None, channels: int | None) -> DataSpec:
        """Describe the set; nothing depends on its files."""
        require_size(self.name, 32, image_size, 3, channels)
        return DataSpec(self.name, self.classes, 3, 32, 50_000, 10_000, self.mean, self.std, self.traits.augment)

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Look for the unpacked folder or the archive."""
        files = self._torchvision()
        folder, archive = root / files.base_folder, self._archive(root)
        if all(path.is_file() for path, _ in self._files(root)):
            return True, str(folder)
        if archive.is_file():
            return True, f"{archive} (to be unpacked)"
        if download:
            return False, f"{files.filename} will be downloaded from {files.url} into {root}"
        return False, f"put {files.filename} (md5 {files.tgz_md5}) from {files.url} into {root}"

    def read(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pixels]:
        """Read the images in the files' order. torchvision unpickles no file whose checksum is another."""
        self._require_plain(root)
        files = self._torchvision()
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn of how pickles of 2009 spell a dtype (numpy issue 30786).
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            try:
                read = {part: files(root, train=part == "train", download=False) for part in parts}
            except RuntimeError as error:  # torchvision's, for what is missing or damaged, without its name
                raise self._error(root, self._state(root) or str(error)) from error
        return {part: Pixels(got.data, np.asarray(got.targets, dtype=np.int64)) for part, got in read.items()}

    def prepare(self, root: Path, parts: Collection[str], *, download: bool) -> None:
        """Unpack the archive beside the folder where files are missing or damaged, `download` or not.

        With `download` it is fetched first if it is not there.
        """
        from torchvision.datasets.utils import check_integrity

        self._require_plain(root)
        files, archive = self._torchvision(), self._archive(root)
        if state := self._state(root):
            if not download and not archive.is_file():
                raise self._error(root, state)
            if not download and not check_integrity(archive, files.tgz_md5):
                raise self._error(root, f"{archive} is damaged: its md5 is not {files.tgz_md5}")
            self._fetch(root, state)

    def _state(self, root: Path) -> str | None:
        """What is missing or damaged; None where all files are the published ones."""
        from torchvision.datasets.utils import check_integrity

        faulty = [path for path, md5 in self._files(root) if not check_integrity(path, md5)]
        damaged = [str(path) for path in faulty if path.is_file()]
        if damaged:
            return f"damaged (not the published md5): {', '.join(damaged)}"
        return f"there is no {faulty[0]}" if faulty else None

    def _require_plain(self, root: Path) -> None:
        """Raise `UserError` for a pipe or a device in the place of a file, before it is read."""
        for path in (self._archive(root), *(path for path, _ in self._files(root))):
            try:
                require_plain_file(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._error(root, f"{path} cannot be read: {error.strerror}") from error

    def _torchvision(self) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.dataset)

    def _files(self, root: Path) -> list[tuple[Path, str]]:
        """List every unpacked file with its md5."""
        files = self._torchvision()
        listed = [*files.train_list, *files.test_list, (files.meta["filename"], files.meta["md5"])]
        return [(root / files.base_folder / name, md5) for name, md5 in listed]

    def _archive(self, root: Path) -> Path:
        return root / str(self._torchvision().filename)

    def _fetch(self, root: Path, state: str) -> None:
        """Download the archive (unless it is there, whole) and unpack it. Raises `UserError` if that fails.

        `state`: what was missing or damaged, for the message.
        """
        from torchvision.datasets.utils import download_and_extract_archive

        files = self._torchvision()
        try:
            download_and_extract_archive(files.url, str(root), filename=files.filename, md5=files.tgz_md5)
        except (OSError, RuntimeError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error) as error:
            reason = str(error) or type(error).__name__
            raise self._error(root, f"{state}, and fetching {files.url} failed: {reason}") from error

    def _error(self, root: Path, problem: str) -> UserError:
        files = self._torchvision()
        return UserError(
            problem,
            f"put {files.filename} (md5 {files.tgz_md5}, from {files.url}) into {root}, or the folder"
            f" {files.base_folder} that it holds; download = true under [data] fetches it where there is a connection",
        )


# CIFAR-100's, in alphabetical order, as the labels count them.
# fmt: off
FINE_LABELS = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket",
    "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel",
    "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)
# fmt: on

CIFAR10 = Cifar(
    name="cifar10",
    dataset="CIFAR10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.482158, 0.446531),
    std=(0.247032, 0.243485, 0.261588),
)

CIFAR100 = Cifar(
    name="cifar100",
    dataset="CIFAR100",
    classes=FINE_LABELS,
    mean=(0.507075, 0.486549, 0.440918),
    std=(0.267334, 0.256438, 0.27615),
)

register("cifar10", CIFAR10)
register("cifar100", CIFAR100)

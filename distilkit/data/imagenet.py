"""ImageNet, ILSVRC2012 (Russakovsky et al. 2015): class folders, or the archives that torchvision unpacks."""

import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from distilkit.data.base import DataSpec, Pictures, Pixels, Plain, Traits
from distilkit.data.image_folder import Layout, checked_size, decode_all, described, find_images, listed
from distilkit.data.registry import register
from distilkit.errors import UserError, is_plain_file, require_plain_file

DEFAULT_SIZE = 224
# The test image's shorter side for every pixel of the crop, as is usual: 256 for 224.
SHORT_SIDE = 256 / 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN_IMAGES, TEST_IMAGES = 1_281_167, 50_000
FOLDERS = {"train": "train", "test": "val"}
TESTS = ("val",)


class ImageNet(Plain):
    """`root/train/<wnid>/*.JPEG` and `root/val/<wnid>/*.JPEG`; the validation images are the test images, as usual.

    Where a folder is missing, the published archive in `root` is unpacked into it once. Any number of class folders
    will do, so that subsets with the same layout can be named. Classes stand in the order of their WordNet ids and bear
    their names where `root` holds torchvision's `meta.bin` or the archive of the development kit that it is made
    from, otherwise the ids.

    An image is brought to `size` as in every evaluation on ImageNet: its shorter side to 256 / 224 of it, then the
    central square. The augmentation "random-resized-crop" cuts its boxes out of the original pictures when they are
    streamed, which is what training on ImageNet means; resident, out of the squares.
    """

    traits = Traits(
        "random-resized-crop", image_size=True, default_size=DEFAULT_SIZE, short_side=SHORT_SIDE, prepared=True
    )

    def spec(self, root: Path, image_size: int | None, channels: int | None) -> DataSpec:
        """Describe the folders; where there are none yet, the published set, so that a recipe can be looked at."""
        size = checked_size(image_size, DEFAULT_SIZE)
        counts: dict[str, int] = {"train": TRAIN_IMAGES, "test": TEST_IMAGES}
        if all((root / folder).is_dir() for folder in FOLDERS.values()):
            layout = find_images(root, TESTS)
            classes = self._names(root, layout.classes)
            counts = {part: len(samples) for part, samples in layout.samples.items()}
        else:
            classes = _published_names()
        return DataSpec("imagenet", classes, 3, size, counts["train"], counts["test"], MEAN, STD, self.traits.augment)

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Look for the folders and the archives."""
        missing = [part for part, folder in FOLDERS.items() if not (root / folder).is_dir()]
        if not missing:
            try:
                return True, described(root, find_images(root, TESTS))
            except UserError as error:
                return False, error.problem.replace("\n", " ")
        archives = [_archive(root, FOLDERS[part]) for part in missing]
        if all(is_plain_file(archive) for archive in archives):
            return True, f"{' and '.join(map(str, archives))} (to be unpacked)"
        return False, _hint(root)

    def prepare(self, root: Path, parts: Collection[str], *, download: bool) -> None:
        """Unpack the archives whose folders are missing, and the development kit's."""
        from torchvision.datasets import imagenet

        # Of both: the folders have to agree on the classes.
        missing = [folder for folder in FOLDERS.values() if not (root / folder).is_dir()]
        for folder in missing:
            if not is_plain_file(_archive(root, folder)):
                raise UserError(f"there is neither a folder {root / folder} nor {_archive(root, folder)}", _hint(root))
        if not (root / imagenet.META_FILE).is_file() and is_plain_file(_archive(root, "devkit")):
            _unpacked(root, lambda: imagenet.parse_devkit_archive(root))
        elif "val" in missing and not (root / imagenet.META_FILE).is_file():
            # The validation archive is flat: the kit alone knows which class an image is of.
            raise UserError(f"there is no {_archive(root, 'devkit')}", _hint(root))
        parsers = {"train": imagenet.parse_train_archive, "val": imagenet.parse_val_archive}
        for folder in missing:
            partial = root / f".partial-{folder}"
            shutil.rmtree(partial, ignore_errors=True)
            _unpacked(root, lambda folder=folder, partial=partial: parsers[folder](root, folder=partial.name))  # type: ignore[misc]
            partial.rename(root / folder)

    def labels(self, root: Path) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]] | None:
        """Count files by their folders."""
        if not all((root / folder).is_dir() for folder in FOLDERS.values()):
            return None
        layout = find_images(root, TESTS)
        return {part: layout.labels(part) for part in layout.samples}

    def pictures(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pictures]:
        """List the files."""
        return listed(root, self._layout(root), parts, self.traits.framing(spec.size, spec.channels))

    def read(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pixels]:
        """Decode the images of `parts`, on all cores. Raises one `UserError` for all files that cannot be read."""
        return decode_all(self.pictures(root, spec, parts))

    def _layout(self, root: Path) -> Layout:
        return find_images(root, TESTS)

    def _names(self, root: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
        from torchvision.datasets import imagenet

        if not (root / imagenet.META_FILE).is_file():
            return wnids
        try:
            require_plain_file(root / imagenet.META_FILE)
            known = imagenet.load_meta_file(root)[0]
            names = [", ".join(known[wnid]) if wnid in known else wnid for wnid in wnids]
        except Exception as error:
            # torch's reader refuses damaged files, and those that could execute code, in many ways.
            raise UserError(
                f"{root / imagenet.META_FILE} cannot be read: {str(error).strip().splitlines()[0]}",
                "remove it: it is made anew from the archive of the development kit, or the classes bear their ids",
            ) from error
        return _distinct(names, wnids)


def _distinct(names: Collection[str], wnids: Collection[str]) -> tuple[str, ...]:
    """Two kinds of crane are told apart by their ids."""
    often = Counter(names)
    return tuple(f"{name} ({wnid})" if often[name] > 1 else name for name, wnid in zip(names, wnids, strict=True))


def _published_names() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return _distinct(names, [str(place) for place in range(len(names))])


def _archive(root: Path, kind: str) -> Path:
    from torchvision.datasets import imagenet

    return root / str(imagenet.ARCHIVE_META[kind][0])


def _unpacked(root: Path, parse: Callable[[], None]) -> None:
    try:
        parse()
    except (RuntimeError, OSError, tarfile.TarError, EOFError, LookupError, ValueError) as error:
        raise UserError(f"an archive in {root} cannot be unpacked: {error}", _hint(root)) from error


def _hint(root: Path) -> str:
    archives = ", ".join(_archive(root, kind).name for kind in ("train", "val", "devkit"))
    return (
        f"ImageNet cannot be downloaded without an account at image-net.org: put the folders train/<wnid>/ and "
        f"val/<wnid>/, or the archives {archives}, into {root}"
    )


register("imagenet", ImageNet())

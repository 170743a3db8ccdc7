"""A user's own images: `root/train/<class>/*` and `root/test/<class>/*` (or `root/val`), one folder per class."""

import os
import struct
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from distilkit.data.base import DataSpec, Pixels
from distilkit.errors import SettingError, UserError

DEFAULT_SIZE = 32
NAMED_FILES = 10
# Files that a thread decodes at a time: one by one, handing them out costs as much as decoding 32 x 32 pixels.
RUN = 32

# What Pillow's readers raise on files that are empty, cut short, not images, or made to exhaust memory. Its limit on
# pixels (Image.MAX_IMAGE_PIXELS: a warning beyond it, an error beyond twice that) stays in force.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Layout(NamedTuple):
    """The class folders and, for "train" and "test", every image file with its label."""

    classes: tuple[str, ...]
    samples: dict[str, list[tuple[Path, int]]]
    folders: dict[str, Path]


class ImageFolder:
    """Images of any size and format that Pillow reads, brought to RGB squares of one size.

    Classes are the folders' names, sorted. Hidden files and folders (a leading dot) are passed over. Where there is
    a `test` folder, `val` is not read: what is held out for validation comes out of `train`, as for every data set.
    """

    def spec(self, root: Path, image_size: int | None) -> DataSpec:
        """Describe what the folders show: classes and numbers of files; nothing is decoded.

        Mirroring is in the default augmentation, as for most photographs; signs and scripts want augment = "crop".
        """
        size = DEFAULT_SIZE if image_size is None else image_size
        if size < 1:
            raise SettingError("data.image_size", f"image_size = {size} is not a number of pixels", "write 32, or 224")
        layout = find_images(root)
        counts = {part: len(samples) for part, samples in layout.samples.items()}
        return DataSpec(
            "image-folder", layout.classes, 3, size, counts["train"], counts["test"], None, None, "crop-flip"
        )

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Say whether the folders are there and fit each other."""
        try:
            layout = find_images(root)
        except UserError as error:
            return False, error.problem.replace("\n", " ")
        train, test = (f"{len(layout.samples[part])} in {layout.folders[part].name}" for part in ("train", "test"))
        return True, f"{root} ({len(layout.classes)} classes, images: {train}, {test})"

    def read(self, root: Path, spec: DataSpec, parts: Collection[str], *, download: bool) -> dict[str, Pixels]:
        """Decode the images of `parts`, on all cores. Raises one `UserError` for all files that cannot be read."""
        layout = find_images(root)
        samples = [sample for part in parts for sample in layout.samples[part]]
        images_NHWC = np.empty((len(samples), spec.size, spec.size, 3), dtype=np.uint8)

        def decode_run(start: int) -> list[str]:
            faults = []
            for place, (path, _) in enumerate(samples[start : start + RUN], start):
                try:
                    images_NHWC[place] = decode(path, spec.size)
                except UNREADABLE as error:
                    faults.append(f"{path}: {_reason(path, error)}")
            return faults

        # Threads: Pillow decodes and resizes outside Python's lock. Leaving `map` early cancels what has not begun.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            runs = pool.map(decode_run, range(0, len(samples), RUN))
            faults = [fault for found in runs for fault in found]
        if faults:
            more = [f"and {len(faults) - NAMED_FILES} more"] if len(faults) > NAMED_FILES else []
            lines = "".join(f"\n  {line}" for line in [*faults[:NAMED_FILES], *more])
            raise UserError(
                f"{len(faults)} of {len(samples)} image files cannot be read:{lines}", "replace or remove these files"
            )

        labels_N = np.array([label for _, label in samples], dtype=np.int64)
        read, start = {}, 0
        for part in parts:
            stop = start + len(layout.samples[part])
            read[part] = Pixels(images_NHWC[start:stop], labels_N[start:stop])
            start = stop
        return read


def find_images(root: Path) -> Layout:
    """List the class folders and image files. Raises `UserError` where the folders do not make a data set."""
    layout_hint = f"images go into {root / 'train'}/<class>/ and {root / 'test'}/<class>/ (or {root / 'val'}/<class>/)"
    if not root.is_dir():
        raise UserError(f"there is no folder {root}", layout_hint)
    test = next((folder for folder in (root / "test", root / "val") if folder.is_dir()), None)
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no folder train", layout_hint)
    if test is None:
        raise UserError(f"{root} has no folder test, nor val", layout_hint)

    folders = {"train": root / "train", "test": test}
    classes = {part: _class_folders(folder, layout_hint) for part, folder in folders.items()}
    faults = [
        f"{folders[there] / name} has no counterpart in {folders[other]}"
        for there, other in (("train", "test"), ("test", "train"))
        for name in sorted(set(classes[there]) - set(classes[other]))
    ]
    if faults:
        raise UserError("; ".join(faults), "every class needs its folder, of one name, for training and for testing")
    if len(classes["train"]) < 2:
        raise UserError(f"{folders['train']} has one class only; a classifier needs at least 2", layout_hint)

    samples = {part: _samples(folder, classes[part]) for part, folder in folders.items()}
    if not any(samples.values()):
        raise UserError(f"there are no images under {root}", f"{layout_hint}; read are: {_endings()}")
    empty = [
        str(folders[part] / name)
        for part, found in samples.items()
        for label, name in enumerate(classes[part])
        if label not in {label for _, label in found}
    ]
    if empty:
        raise UserError(f"no images in {', '.join(empty)}", f"fill or remove these folders; read are: {_endings()}")
    return Layout(tuple(classes["train"]), samples, folders)


def decode(path: Path, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read one file as uint8 [size, size, 3]: turned as its EXIF data says, in RGB, its central square resized.

    Resized bilinearly with antialiasing, which leaves the pixels of an image of that size as they are. Raises one of
    `UNREADABLE`.
    """
    with Image.open(path) as image:
        image.load()
        upright = to_rgb(ImageOps.exif_transpose(image))
    return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to 8-bit RGB: 16-bit greys scaled (Pillow itself would clip them), transparency laid on white.

    Raises `ValueError` for what has no range to scale from (floating point, 32-bit integers).
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):
        grey_HW = np.asarray(image).astype(np.int64)
        if grey_HW.min() < 0 or grey_HW.max() > 65535:
            raise ValueError("grey levels outside 16 bits")
        # 65535 / 257 = 255
        return Image.fromarray(((grey_HW + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose own words are the path again
        return "not an image that Pillow can read" if path.stat().st_size else "empty"
    return str(error) or type(error).__name__


def _class_folders(folder: Path, layout_hint: str) -> list[str]:
    from torchvision.datasets.folder import find_classes

    try:
        found, _ = find_classes(folder)
    except FileNotFoundError:
        found = []
    if not (classes := [name for name in found if not name.startswith(".")]):
        raise UserError(f"{folder} has no class folders", layout_hint)
    return classes


def _samples(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    from torchvision.datasets.folder import is_image_file, make_dataset

    found = make_dataset(
        folder,
        {name: label for label, name in enumerate(classes)},
        # "._cat.png" is what macOS leaves beside cat.png on foreign disks; it is no image.
        is_valid_file=lambda path: is_image_file(path) and f"{os.sep}." not in path.removeprefix(str(folder)),
        allow_empty=True,
    )
    return [(Path(path), label) for path, label in found]


def _endings() -> str:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return " ".join(IMG_EXTENSIONS)

"""A user's own images: `root/train/<class>/*` and `root/test/<class>/*` (or `root/val`), one folder per class."""

import os
import unicodedata
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilkit.data.base import DataSpec, Pictures, Pixels, Plain, Traits
from distilkit.data.decoding import RUN, unreadable
from distilkit.data.listing import TEST_FOLDERS, TRAIN_FOLDERS, VALIDATION_FOLDERS, divided, inside, named_by_ending
from distilkit.data.pixels import FORMATS, UNREADABLE, Framing, decode, is_left_behind, reason
from distilkit.data.registry import register
from distilkit.errors import SettingError, UserError

DEFAULT_SIZE = 32


class Layout(NamedTuple):
    """The class folders and, for each split that has a folder, every image file with its label.

    `passed_over`: the files in them that are no pictures.
    """

    classes: tuple[str, ...]
    samples: dict[str, list[tuple[str, int]]]
    folders: dict[str, Path]
    passed_over: list[str]

    def labels(self, part: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Every image's class, int64 [N]."""
        return np.array([label for _, label in self.samples[part]], dtype=np.int64)


class ImageFolder(Plain):
    """Images of any size, of the formats in `pixels.FORMATS`, brought to squares of one size, in RGB or grey.

    Classes are the folders' names, sorted. Hidden files and folders (a leading dot) are passed over. A folder `val`
    beside `test` is the validation split; without `test` it is the test set.
    """

    traits = Traits("crop-flip", image_size=True, default_size=DEFAULT_SIZE, channels=True)

    def spec(self, root: Path, image_size: int | None, channels: int | None) -> DataSpec:
        """Describe what the folders show: classes and numbers of files; nothing is decoded.

        Mirroring is in the default augmentation, as for most photographs; signs and scripts want augment = "crop".
        """
        size = checked_size(image_size, DEFAULT_SIZE)
        layout = find_images(root)
        counts = {part: len(samples) for part, samples in layout.samples.items()}
        return DataSpec(
            "image-folder",
            layout.classes,
            channels or 3,
            size,
            counts["train"],
            counts["test"],
            None,
            None,
            self.traits.augment,
        )

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Say whether the folders are there and fit each other."""
        try:
            layout = find_images(root)
        except UserError as error:
            return False, error.problem.replace("\n", " ")
        return True, described(root, layout)

    def labels(self, root: Path) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]] | None:
        """Count files by their folders."""
        layout = find_images(root)
        return {part: layout.labels(part) for part in layout.samples}

    def parts(self, root: Path) -> tuple[str, ...]:
        """Name the splits that have a folder."""
        return tuple(find_images(root).samples)

    def remarks(self, root: Path) -> list[str]:
        """Say what is left out, and where validation images are the test set."""
        layout = find_images(root)
        said = named_by_ending(layout.passed_over)
        if layout.folders["test"].name in VALIDATION_FOLDERS:
            said.append(f"there is no folder test: the test images are those in {layout.folders['test'].name}")
        return said

    def pictures(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pictures]:
        """List the files."""
        return listed(root, find_images(root), parts, self.traits.framing(spec.size, spec.channels))

    def read(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pixels]:
        """Decode the images of `parts`, on all cores. Raises one `UserError` for all files that cannot be read."""
        return decode_all(self.pictures(root, spec, parts))


def checked_size(image_size: int | None, default: int) -> int:
    """Give the size, `default` for None. Raises `SettingError` where it is none."""
    size = default if image_size is None else image_size
    if size < 1:
        raise SettingError("image_size", f"image_size = {size} is not a number of pixels", "write 32, or 224")
    return size


def described(root: Path, layout: Layout) -> str:
    """Tell in one line what is there."""
    counts = ", ".join(f"{len(found)} in {layout.folders[part].name}" for part, found in layout.samples.items())
    return f"{root} ({len(layout.classes)} classes, images: {counts})"


def listed(root: Path, layout: Layout, parts: Collection[str], framing: Framing) -> dict[str, Pictures]:
    """List the files of `parts` below `root`."""
    base = len(str(root / "x")) - 1
    return {
        part: Pictures(root, [path[base:] for path, _ in layout.samples[part]], layout.labels(part), framing)
        for part in parts
    }


def decode_all(pictures: dict[str, Pictures]) -> dict[str, Pixels]:
    """Decode every file, on all cores. Raises one `UserError` for all that cannot be read."""
    paths = [os.path.join(each.root, path) for each in pictures.values() for path in each.paths]  # noqa: PTH118
    framing = next(iter(pictures.values())).framing
    images_NHWC = np.empty((len(paths), framing.size, framing.size, framing.channels), dtype=np.uint8)

    def decode_run(start: int) -> list[str]:
        faults = []
        for place, path in enumerate(paths[start : start + RUN], start):
            try:
                images_NHWC[place] = decode(path, framing)
            except UNREADABLE as error:
                faults.append(f"{path}: {reason(path, error)}")
        return faults

    # Threads: Pillow decodes and resizes outside Python's lock. Leaving `map` early cancels what has not begun.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = [fault for found in pool.map(decode_run, range(0, len(paths), RUN)) for fault in found]
    if faults:
        raise unreadable(faults, len(paths))
    read, start = {}, 0
    for part, each in pictures.items():
        stop = start + len(each.paths)
        read[part] = Pixels(images_NHWC[start:stop], each.labels)
        start = stop
    return read


def find_images(root: Path, tests: Sequence[str] | None = None) -> Layout:
    """List the class folders and image files; `tests`: where the test images are, if that is known.

    Raises `UserError` where the folders do not make a data set.
    """
    expected = tests or ("test", "val")
    named = [f"{root / name}/<class>/" for name in expected]
    layout_hint = f"images go into {root / 'train'}/<class>/ and {named[0]}" + "".join(f" (or {n})" for n in named[1:])
    if not root.is_dir():
        raise UserError(f"there is no folder {root}", layout_hint)
    train, test, validation = (
        _first_of(root, names) for names in (TRAIN_FOLDERS, tests or TEST_FOLDERS, VALIDATION_FOLDERS)
    )
    if tests is None and test is None:
        test, validation = validation, None
    if train is None:
        raise UserError(f"{root} has no folder train", layout_hint)
    if test is None:
        raise UserError(f"{root} has no folder {', nor '.join(expected)}", layout_hint)

    folders = {"train": train, "test": test}
    if tests is None and validation is not None:
        folders["validation"] = validation
    classes = {part: _class_folders(folder, layout_hint) for part, folder in folders.items()}
    faults = [
        f"{folders[there] / name} has no counterpart in {folders[other]}"
        for held in list(folders)[1:]
        for there, other in (("train", held), (held, "train"))
        for name in sorted(set(classes[there]) - set(classes[other]))
    ]
    if faults:
        hint = "every class needs its folder, of one name, for training and for testing"
        alike = [{unicodedata.normalize("NFC", name) for name in names} for names in classes.values()]
        if all(names == alike[0] for names in alike):
            hint = "they look alike and are spelled with other characters (accents of their own): rename the folders"
        raise UserError("; ".join(faults), hint)
    if len(classes["train"]) < 2:
        raise UserError(f"{folders['train']} has one class only; a classifier needs at least 2", layout_hint)

    passed_over: list[str] = []
    samples = {part: _samples(folder, classes[part], passed_over) for part, folder in folders.items()}
    if not any(samples.values()):
        raise UserError(f"there are no images under {root}", f"{layout_hint}; read are: {', '.join(FORMATS.values())}")
    filled = {part: {label for _, label in found} for part, found in samples.items()}
    empty = [
        str(folders[part] / name)
        for part in samples
        for label, name in enumerate(classes[part])
        if label not in filled[part]
    ]
    if empty:
        raise UserError(
            f"no images in {', '.join(empty)}", f"fill or remove these folders; read are: {', '.join(FORMATS.values())}"
        )
    return Layout(tuple(classes["train"]), samples, folders, passed_over)


def _first_of(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_folders(folder: Path, layout_hint: str) -> list[str]:
    from torchvision.datasets.folder import find_classes

    try:
        found, _ = find_classes(folder)
    except FileNotFoundError:
        found = []
    if not (classes := [name for name in found if not is_left_behind(name)]):
        raise UserError(f"{folder} has no class folders", layout_hint)
    return classes


def _samples(folder: Path, classes: list[str], passed_over: list[str]) -> list[tuple[str, int]]:
    """In the order in which torchvision's `make_dataset` has them; adds the files that are no pictures."""
    samples = []
    for label, of_class in enumerate(classes):
        for where, names in sorted(inside(folder / of_class)):
            pictures, others = divided(where, names)
            samples += [(picture, label) for picture in pictures]
            passed_over += others
    return samples


register("image-folder", ImageFolder())

"""Which files in folders are pictures, and of which class. Imports no torch.

`find_labelled` finds a test set by itself: class folders without training images beside them.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distilkit.data.pixels import FORMATS, is_left_behind, is_picture
from distilkit.errors import UserError, did_you_mean

TRAIN_FOLDERS, TEST_FOLDERS = ("train", "training"), ("test", "testing")
VALIDATION_FOLDERS = ("val", "valid", "validation", "dev")
"""Beside a folder of test images: the validation split. Without one: the test images."""


def divided(where: str, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths of the pictures among a folder's files, in the order of their names, and of the others."""
    paths = [os.path.join(where, name) for name in sorted(names) if not is_left_behind(name)]  # noqa: PTH118
    taken = [is_picture(path) for path in paths]
    pictures = [path for path, is_one in zip(paths, taken, strict=True) if is_one]
    return pictures, [path for path, is_one in zip(paths, taken, strict=True) if not is_one]


def named_by_ending(passed_over: Sequence[str]) -> list[str]:
    """What a person should know of files that are no pictures, in a line; nothing where there are none."""
    if not passed_over:
        return []
    endings = Counter(Path(path).suffix.lower() or "without an ending" for path in passed_over)
    named = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(5))
    more = ", ..." if len(endings) > 5 else ""
    return [
        f"left out, being no pictures that are read: {len(passed_over):,} files ({named}{more}), {passed_over[0]} say"
    ]


def inside(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder in a class folder with its files' names; links are followed, but never back and never up."""
    seen = {str(above) for above in folder.resolve().parents}
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_left_behind(name))
        yield where, names


class Labelled(NamedTuple):
    """Pictures in class folders of `folder`, their classes by place among the model's, and classes that have none."""

    folder: Path
    paths: list[str]
    labels: list[int]
    missing: tuple[str, ...]


def find_labelled(root: Path, classes: Sequence[str]) -> Labelled:
    """The pictures in `root/test/<class>/`, or in `root/<class>/`; not all of the classes need a folder.

    Raises `UserError` where there are no class folders, one of them is of no class that the model knows, or none of
    them holds a picture.
    """
    hint = f"images go into {root / 'test'}/<class>/ or {root}/<class>/, the folders called as the model's classes are"
    if not root.is_dir():
        raise UserError(f"there is no folder {root}", hint)
    folder = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), root)
    named = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_left_behind(entry.name))
    if not named:
        raise UserError(f"{folder} has no class folders", hint)
    # Accents are one character or two, as the system that wrote them likes.
    places = {unicodedata.normalize("NFC", name): place for place, name in enumerate(classes)}
    unknown = [name for name in named if unicodedata.normalize("NFC", name) not in places]
    if unknown:
        nearest = did_you_mean(unknown[0], classes)
        more = f" (nor are {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(f"{folder / unknown[0]} is none of the model's {len(classes)} classes{more}", nearest or hint)
    paths, labels = [], []
    for name in named:
        place = places[unicodedata.normalize("NFC", name)]
        for where, files in sorted(inside(folder / name)):
            pictures, _ = divided(where, files)
            paths += pictures
            labels += [place] * len(pictures)
    if not paths:
        raise UserError(f"there are no images under {folder}", f"{hint}; read are: {', '.join(FORMATS.values())}")
    missing = tuple(name for place, name in enumerate(classes) if place not in set(labels))
    return Labelled(folder, paths, labels, missing)

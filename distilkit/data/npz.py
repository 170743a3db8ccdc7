"""A user's own images as arrays: one .npz file, as NumPy, Keras and MedMNIST write them."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from distilkit.data.base import DataSpec, Pixels, Plain, Traits
from distilkit.data.image_folder import checked_size
from distilkit.data.pixels import Framing, framed
from distilkit.data.registry import register
from distilkit.errors import SettingError, UserError
from distilkit.memory import free_memory
from distilkit.reading import opened_archive

# What NumPy and zipfile raise on files that are damaged, or hold what is not numbers.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, SyntaxError, EOFError, zipfile.BadZipFile, zlib.error)
# An array's head is Python's own notation, of which NumPy asks Python's tokenizer where it is not understood at once.
UNREADABLE_TOO = (NotImplementedError, RuntimeError, MemoryError, tokenize.TokenError)

IMAGES = ("x_{}", "{}_x", "{}_images", "images_{}", "X_{}")
LABELS = ("y_{}", "{}_y", "{}_labels", "labels_{}", "Y_{}")
# Where there are test arrays, validation arrays are not read: what is held out comes out of the training images.
PARTS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
_LARGEST_HEAD = 20_000  # bytes; NumPy takes 10,000, but would unpack four gigabytes to say so
CLASSES = ("classes", "class_names", "label_names")
LAYOUT = (
    "it needs images uint8 [N, H, W] or [N, H, W, C] and integer labels [N], named x_train, y_train, x_test, y_test, "
    "or train_images, train_labels, test_images, test_labels; class names may be added as `classes`"
)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _File(NamedTuple):
    """What the arrays' heads tell. `images`, `labels`: by part, the arrays' names."""

    path: Path
    headers: dict[str, _Header]
    images: dict[str, str]
    labels: dict[str, str]


class Npz(Plain):
    """`root` is the file, or a folder that holds no other .npz file.

    Grey [N, H, W] or [N, H, W, 1], or colour [N, H, W, 3], uint8. Labels are integers from 0; one column is as good as
    none. Images that are no squares of `image_size` become such as an image folder's do. Nothing is unpickled.
    """

    traits = Traits("crop-flip", image_size=True)

    def spec(self, root: Path, image_size: int | None, channels: int | None) -> DataSpec:
        """Describe the set from the arrays' heads, the labels and the class names."""
        file = _open(root)
        height, width = file.headers[file.images["train"]].shape[1:3]
        if image_size is None and height != width:
            raise SettingError(
                "image_size",
                f"the images in {file.path} are {height} x {width} pixels, and networks take squares",
                f"write image_size = {min(height, width)}: of every image its central square",
            )
        labels = {part: self._labels(file, part) for part in PARTS}
        shape = file.headers[file.images["train"]].shape
        return DataSpec(
            "npz",
            self._classes(file, max(int(each.max()) for each in labels.values()) + 1),
            1 if len(shape) == 3 else shape[3],
            checked_size(image_size, height),
            len(labels["train"]),
            len(labels["test"]),
            None,
            None,
            self.traits.augment,
        )

    def presence(self, root: Path, *, download: bool) -> tuple[bool, str]:
        """Say whether the file is there and its arrays fit each other."""
        try:
            file = _open(root)
        except UserError as error:
            return False, error.problem.replace("\n", " ")
        counts = [f"{len(self._labels(file, part)):,} in {part}" for part in file.images]
        return True, f"{file.path} (images: {', '.join(counts)})"

    def labels(self, root: Path) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]] | None:
        """Read the labels."""
        file = _open(root)
        return {part: self._labels(file, part) for part in PARTS}

    def read(self, root: Path, spec: DataSpec, parts: Collection[str]) -> dict[str, Pixels]:
        """Read the arrays."""
        file, read = _open(root), {}
        for part in parts:
            images = _array(file.path, file.images[part])
            images_NHWC = images[..., np.newaxis] if images.ndim == 3 else images
            read[part] = Pixels(_squares(images_NHWC, spec.size), self._labels(file, part))
        return read

    def _labels(self, file: _File, part: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        name = file.labels[part]
        labels = _array(file.path, name).reshape(-1)
        if labels.min() < 0 or labels.max() > 1_000_000:
            raise _fault(file.path, f"{name} holds {labels.min()} to {labels.max()}; labels count the classes from 0")
        return labels.astype(np.int64)

    def _classes(self, file: _File, count: int) -> tuple[str, ...]:
        name = next((name for name in CLASSES if name in file.headers), None)
        if name is None:
            if count < 2:
                raise _fault(file.path, "all labels are 0; a classifier needs at least 2 classes")
            return tuple(map(str, range(count)))
        classes = _array(file.path, name)
        if classes.ndim != 1 or classes.dtype.kind not in "UST":
            raise _fault(file.path, f"{name} is {_shown(file.headers[name])}; class names are text [C]")
        try:
            names = tuple(each.decode() if isinstance(each, bytes) else str(each) for each in classes.tolist())
        except (SystemError, ValueError) as error:  # NumPy's, for numbers that are no characters; bytes not in UTF-8
            raise _fault(file.path, f"{name} holds what is no text") from error
        if len(names) < max(2, count):
            raise _fault(file.path, f"{name} has {len(names)} names, and there are {count} labels")
        if len(set(names)) < len(names):
            raise _fault(file.path, f"{name} has two classes of one name")
        return names


def image_shape(root: Path) -> tuple[int, int]:
    """Height and width of the images in the file. Raises `UserError` where it is no such file."""
    file = _open(root)
    height, width = file.headers[file.images["train"]].shape[1:3]
    return height, width


def _open(root: Path) -> _File:
    """Read the heads of all arrays. Raises `UserError` naming what is missing or does not fit."""
    path = _path(root)
    headers = _headers(path)
    images, labels = {}, {}
    for part, spellings in PARTS.items():
        pairs = [(x.format(word), y.format(word)) for word in spellings for x in IMAGES for y in LABELS]
        found = next(((x, y) for x, y in pairs if x in headers and y in headers), None)
        if found is None:
            raise _fault(path, f"it has no {part} images with their labels; it has {', '.join(headers) or 'no arrays'}")
        images[part], labels[part] = found
    for part in PARTS:
        _check(path, headers, images[part], labels[part])
    first, second = (headers[images[part]].shape[1:] for part in PARTS)
    if first != second:
        raise _fault(path, f"{images['train']} and {images['test']} have images of two shapes: {first} and {second}")
    read = {*images.values(), *labels.values(), *(name for name in CLASSES if name in headers)}
    _check_room(path, [headers[name] for name in read])
    return _File(path, headers, images, labels)


def _check_room(path: Path, headers: Sequence[_Header]) -> None:
    """Refuse a file of a few megabytes that unpacks to more than the memory."""
    needed = sum(int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize for header in headers)
    free = free_memory()
    if free is not None and needed > free:
        raise _fault(path, f"its arrays take {needed / 1e9:,.1f} GB unpacked, and {free / 1e9:,.1f} GB are free")


def _path(root: Path) -> Path:
    if root.is_file():
        return root
    if not root.is_dir():
        raise UserError(f"there is no file {root}", "data.root names the .npz file, or the folder it lies in")
    files = sorted(root.glob("*.npz"))
    if len(files) != 1:
        there = ", ".join(file.name for file in files[:5]) if files else "none"
        raise UserError(
            f"{root} does not hold one .npz file: there {'are' if files else 'is'} {there}", "name the file: data.root"
        )
    return files[0]


def _headers(path: Path) -> dict[str, _Header]:
    headers = {}
    name = ""
    try:
        with opened_archive(path) as archive:
            for entry in archive.infolist():
                # Of an archive that is none of NumPy's no name is quoted.
                name = entry.filename.removesuffix(".npy") if entry.filename.endswith(".npy") else ""
                if not name:
                    raise ValueError("it holds something else than arrays")
                if name in headers:
                    raise ValueError("it is there twice")
                with archive.open(entry) as file:
                    head = io.BytesIO(file.read(_LARGEST_HEAD))
                    header = _header(head)
                    size = int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
                    if not header.dtype.hasobject and head.tell() + size != entry.file_size:
                        raise ValueError("its size is not what its head says")
                headers[name] = header
    except (*UNREADABLE, *UNREADABLE_TOO) as error:
        which = f" (array {name})" if name else ""
        hint = "np.savez(file, x_train=..., y_train=..., x_test=..., y_test=...) writes such a file"
        raise UserError(f"{path} cannot be read as .npz{which}: {error or type(error).__name__}", hint) from error
    return headers


def _header(file: io.BytesIO) -> _Header:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:  # NumPy's words quote what is there
        raise ValueError("its head is no array's") from error
    return _Header(tuple(shape), dtype)


def _check(path: Path, headers: dict[str, _Header], images: str, labels: str) -> None:
    shape, dtype = headers[images]
    if dtype != np.uint8:
        hint = " (pixels in [0, 1]: (255 * x).round().astype('uint8'))" if dtype.kind == "f" else ""
        raise _fault(path, f"{images} is {_shown(headers[images])}, not uint8{hint}")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        first = len(shape) == 4 and shape[1] in (1, 3)
        raise _fault(
            path,
            f"{images} is {_shown(headers[images])}{'; channels come last: np.moveaxis(x, 1, -1)' if first else ''}",
        )
    if 0 in shape:
        raise _fault(path, f"{images} is empty: {_shown(headers[images])}")
    counts, kind = headers[labels]
    if kind.kind not in "iu":
        raise _fault(path, f"{labels} is {_shown(headers[labels])}; labels are integers")
    if counts not in ((shape[0],), (shape[0], 1)):
        one_hot = len(counts) == 2 and counts[0] == shape[0]
        more = "; one-hot labels become plain ones by y.argmax(1), and several labels of one image cannot be learned"
        raise _fault(path, f"{labels} is {_shown(headers[labels])} for {shape[0]} images{more if one_hot else ''}")


def _array(path: Path, name: str) -> np.ndarray[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            array: np.ndarray[Any, Any] = file[name]
            return array
    except MemoryError:
        raise
    except (*UNREADABLE, *UNREADABLE_TOO) as error:
        raise UserError(f"{path} cannot be read (array {name}): {error or type(error).__name__}", LAYOUT) from error


def _squares(images_NHWC: np.ndarray[Any, np.dtype[np.uint8]], size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if images_NHWC.shape[1:3] == (size, size):
        return images_NHWC
    channels = images_NHWC.shape[3]
    squares = np.empty((len(images_NHWC), size, size, channels), dtype=np.uint8)
    for place, image in enumerate(images_NHWC):
        picture = Image.fromarray(image if channels == 3 else image[..., 0])
        squares[place] = framed(picture, Framing(size, size, channels))
    return squares


def _shown(header: _Header) -> str:
    return f"{header.dtype} [{', '.join(map(str, header.shape))}]"


def _fault(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: {problem}", LAYOUT)


register("npz", Npz())

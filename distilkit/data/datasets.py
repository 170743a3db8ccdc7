"""The data sets that a recipe can name, and how they become splits.

Neither torchvision nor scikit-learn is imported before images are read from them: listing names and describing a data
set stays quick.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from distilkit.data.base import DataSpec, ImageData, Images, Pictures, Pixels, Source, Split, Traits
from distilkit.data.image_folder import ImageFolder, decode_all
from distilkit.data.imagenet import ImageNet
from distilkit.data.listing import find_labelled
from distilkit.data.pictures import StreamedImages, evenly
from distilkit.data.registry import sources
from distilkit.errors import SettingError, UserError, did_you_mean
from distilkit.memory import free_memory
from distilkit.randomness import generator

__all__ = ["DataSpec", "ImageData", "Split", "fingerprint", "load", "names", "presence", "spec", "traits"]

SPLITS = ("train", "validation", "test")
MEASURED = 10_000
"""Mean and deviation of streamed images are computed from up to so many of them, evenly spread over the files."""

NOTABLE = 1.5
"""Class counts that differ by more than this factor are worth a word."""

Constants = tuple[tuple[float, ...], tuple[float, ...]]


def names() -> tuple[str, ...]:
    """List the data sets, as a recipe spells them."""
    return tuple(sources())


def traits(name: str) -> Traits:
    """Say what is known of a data set without looking for its files. Raises `SettingError` for an unknown name."""
    return _source(name).traits


def spec(name: str, root: Path, image_size: int | None = None, channels: int | None = None) -> DataSpec:
    """Say what is known of a data set without reading its images.

    "image-folder", "imagenet" and "npz" look at `root`: their classes are there. `image_size`: pixels to a side, which
    only these leave open (None: 32, 224, the arrays' own). `channels`: 1 or 3, which only "image-folder" leaves open
    (None: 3). Raises `SettingError` for an unknown name or what a set does not leave open, `UserError` where a
    folder is missing.
    """
    return _source(name).spec(_place(root), image_size, channels)


def presence(name: str, root: Path, *, download: bool) -> tuple[bool, str]:
    """Say whether a data set's files are there, and in one line for people: where, or which file to put where.

    Looks for files, does not read them: damage shows itself when they are loaded.
    """
    return _source(name).presence(_place(root), download=download)


def load(
    name: str,
    root: Path,
    *,
    download: bool,
    image_size: int | None = None,
    channels: int | None = None,
    validation: int | float | Literal["folder"] = 0,
    seed: int = 0,
    splits: Collection[str] = SPLITS,
    storage: str = "resident",
    workers: int | None = None,
    constants: Constants | None = None,
    prepare: bool = True,
) -> ImageData:
    """Read the splits asked for; files that none of them needs are not decoded.

    `validation`: what is held out of the training images and not trained on: an int counts images, a float is a
    fraction of them (rounded). It depends on (seed, labels) alone, see `held_out`. With 0 there is no "validation".
    "folder": the images that the set itself has for it.
    A data set's mean and std are of all its training images, before any are held out: the published constants are
    so too, and a data set then has one normalisation whatever is held out.

    `storage`: with "stream", images that lie in files of their own stay there (`pictures.StreamedImages`), to be
    decoded by `workers` processes (None: one per core) when they are asked for; their mean and std are of up to
    `MEASURED` training images. All other images are read into the host's memory. `constants`: mean and std that are
    known from before, and not computed again. `prepare`: with False nothing is downloaded or unpacked, whatever
    `download` says, and nothing is written to `root`.

    Raises `SettingError` ("dataset", "image_size", "channels", "validation", "storage") and
    `UserError` where files are missing or cannot be read.
    """
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"no such splits: {', '.join(sorted(unknown))}")
    source, root = _source(name), _place(root)
    own_folder = validation == "folder"
    users = {"train": {"train", "validation"}, "test": {"test"}, "validation": {"validation"} if own_folder else set()}
    if own_folder:
        users["train"] = {"train"}
        if "validation" not in source.parts(root):
            raise SettingError("validation", f"{root} has no folder of validation images", "write a share, as 0.1")
    parts = [part for part, of_part in users.items() if of_part & set(splits)]
    if prepare:
        source.prepare(root, parts, download=download)
    described = source.spec(root, image_size, channels)
    if not prepare and source.traits.prepared and storage != "stream":
        # Folders that are missing are named before the room for what they would hold.
        source.pictures(root, described, parts)
    if constants:
        described = replace(described, mean=constants[0], std=constants[1])

    read: dict[str, Pixels] | dict[str, Pictures] | None = None
    if storage == "stream":
        read = source.pictures(root, described, parts)
    if read is None:
        read = _in_memory(source, root, described, parts)
    images = {part: _images(each, workers) for part, each in read.items()}
    labels = {part: each.labels for part, each in read.items()}

    wanted: dict[str, tuple[Images, np.ndarray]] = {}
    if "train" in read:
        mask_N = held_out(labels["train"], 0 if validation == "folder" else validation, seed)
        if described.mean is None:
            mean, std = _constants(images["train"])
            described = replace(described, mean=mean, std=std)
        if mask_N.any():
            for split, mask in (("train", ~mask_N), ("validation", mask_N)):
                wanted[split] = _take(images["train"], mask), labels["train"][mask]
        else:
            wanted["train"] = images["train"], labels["train"]
        described = replace(described, train_images=len(mask_N))
    if "validation" in read:
        wanted["validation"] = images["validation"], labels["validation"]
    if "test" in read:
        wanted["test"] = images["test"], labels["test"]
        described = replace(described, test_images=len(labels["test"]))

    found = {
        split: Split(wanted[split][0], torch.from_numpy(np.ascontiguousarray(wanted[split][1], dtype=np.int64)))
        for split in SPLITS
        if split in wanted and split in splits
    }
    return ImageData(described, found, {key: fingerprint(split, described.classes) for key, split in found.items()})


def _place(root: Path) -> Path:
    """The folder that is meant. Raises `SettingError` for the home of nobody."""
    try:
        return expanded(root)
    except UserError as error:
        raise SettingError("root", error.problem, error.hint) from error


def expanded(path: Path) -> Path:
    """`~` and `~user` in full. Raises `UserError` for a user whom this machine does not know."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no user {path.parts[0][1:]!r} here", "write the folder in full") from error


def load_test_folder(root: Path, known: DataSpec, storage: str, workers: int | None) -> ImageData:
    """Read a test set by itself, for a model whose data are `known`: see `listing.find_labelled`.

    Raises `UserError` for folders that are none, and for files that cannot be read.
    """
    found = find_labelled(_place(root), known.classes)
    framing = traits(known.name).framing(known.size, known.channels)
    labels = np.array(found.labels, dtype=np.int64)
    base = len(str(found.folder / "x")) - 1
    pictures = Pictures(found.folder, [path[base:] for path in found.paths], labels, framing)
    read: Pixels | Pictures = pictures if storage == "stream" else decode_all({"test": pictures})["test"]
    split = Split(_images(read, workers), torch.from_numpy(labels))
    described = replace(known, test_images=len(labels))
    return ImageData(described, {"test": split}, {"test": fingerprint(split, described.classes)})


def has_validation_folder(name: str, root: Path) -> bool:
    """Whether the set's files have a validation split of their own. Raises `UserError` where they are missing."""
    return "validation" in _source(name).parts(_place(root))


def notes(name: str, root: Path) -> list[str]:
    """Say in a line each what a person should know of a data set's files, which are there."""
    return _source(name).remarks(_place(root))


def balance(labels: Tensor | np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Count the images of each class: the smallest and the largest class, and all that have no image."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(classes))
    ends = {"smallest": int(counts.argmin()), "largest": int(counts.argmax())}
    return {
        **{end: {"class": classes[place], "images": int(counts[place])} for end, place in ends.items()},
        "empty": [classes[place] for place in np.flatnonzero(counts == 0).tolist()],
    }


def balances(name: str, root: Path, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Count the images of each class before any is read; empty where only reading them would tell."""
    labels = _source(name).labels(_place(root)) or {}
    return {part: balance(each, classes) for part, each in labels.items()}


def counts(name: str, root: Path) -> dict[str, int]:
    """Count the images of each split before any is read; empty where only reading them would tell."""
    return {part: len(each) for part, each in (_source(name).labels(_place(root)) or {}).items()}


def remarks(balanced: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in a line each what a person should know of how the classes are filled."""
    said = []
    for split, counts in balanced.items():
        small, large = counts["smallest"], counts["largest"]
        if counts["empty"]:
            more = f" and {len(counts['empty']) - 5} more" if len(counts["empty"]) > 5 else ""
            said.append(f"warning: no {split} image of {_kind(counts['empty'][:5])}{more}")
        elif split != "test" and large["images"] > NOTABLE * small["images"]:
            said.append(
                f"class imbalance: a class has from {small['images']:,} ({small['class']}) to {large['images']:,} "
                f"({large['class']}) {split} images"
            )
    return said


def held_out(labels_N: np.ndarray, validation: int | float, seed: int) -> np.ndarray:
    """Choose the training images to hold out: bool [N], drawn in proportion from every class.

    The images are put in random order, then sorted by class (stably), and every (N / size)-th is taken from a random
    start: systematic sampling. Every image has the same chance; every class gives its share of `size` rounded up or
    down; and while at most half is held out, a class of two or more keeps an image to train on. Drawn from
    generator(seed, "validation"), so that a resumed run, every process and a later evaluation hold out the same.

    Raises `SettingError` where the amount makes no sense or leaves fewer than 2 images to train on.
    """
    count = len(labels_N)
    size = validation if isinstance(validation, int) else round(validation * count)
    if validation < 0:
        raise _validation_error(f"validation = {validation} is negative", count)
    if isinstance(validation, float) and validation >= 1:
        raise _validation_error(f"validation = {validation} is a fraction, and has to be below 1", count)
    if validation > 0 and size == 0:
        raise _validation_error(f"validation = {validation} of {count} training images rounds to no image", count)
    if size > count - 2:
        raise _validation_error(
            f"validation = {validation} takes {size} of {count} training images; 2 must be left to train on", count
        )

    mask_N = np.zeros(count, dtype=bool)
    if size:
        draws = generator(seed, "validation")
        order_N = torch.randperm(count, generator=draws).numpy()
        by_class_N = order_N[np.argsort(labels_N[order_N], kind="stable")]
        start = int(torch.randint(count, (), generator=draws))
        # In whole numbers, so that no rounding can take an image twice: consecutive places are N / size >= 1 apart.
        mask_N[by_class_N[(np.arange(size, dtype=np.int64) * count + start) // size]] = True
    return mask_N


def channel_statistics(images_NHWC: np.ndarray) -> Constants:
    """Compute the mean and standard deviation per channel of uint8 images taken as [0, 1], rounded to 6 digits.

    Rounded, so that a recipe, a model card and an exported file carry the very numbers that trained the model. Summed
    over the 256 levels' counts in float64. A constant channel gets deviation 1: it has no scale to divide by.
    """
    return _statistics(_level_counts(images_NHWC))


def _level_counts(images_NHWC: np.ndarray) -> np.ndarray:
    """Count the pixels of each level: int64 [C, 256]."""
    counts = np.zeros((images_NHWC.shape[-1], 256), dtype=np.int64)
    for start in range(0, len(images_NHWC), 1024):  # NumPy counts integers of 8 bytes
        run = images_NHWC[start : start + 1024]
        for channel in range(run.shape[-1]):
            counts[channel] += np.bincount(run[..., channel].ravel(), minlength=256)
    return counts


def _statistics(counts_CL: np.ndarray) -> Constants:
    levels = np.arange(256) / 255
    means, stds = [], []
    for counts in counts_CL.astype(np.float64):
        mean = float(counts @ levels / counts.sum())
        variance = float(counts @ np.square(levels - mean) / counts.sum())
        means.append(round(mean, 6))
        stds.append(round(variance**0.5, 6) or 1.0)
    return tuple(means), tuple(stds)


def _constants(images: Images) -> Constants:
    if isinstance(images, Tensor):
        return channel_statistics(images.permute(0, 2, 3, 1).numpy())
    assert isinstance(images, StreamedImages)
    places = torch.tensor(evenly(len(images), MEASURED))
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for batch in images.batches(torch.split(places, 256)):
        counts += _level_counts(batch.permute(0, 2, 3, 1).numpy())
    return _statistics(counts)


def fingerprint(split: Split, classes: Collection[str]) -> str:
    """Hash (SHA-256, as hex) what a split means: shape, class names, pixels, labels.

    Pixels count in NCHW order and labels as little-endian int64, whatever the memory format and the machine. Two
    decoders that disagree about a JPEG file give two fingerprints, rightly. Of images that wait in their files it is
    another one, see `StreamedImages.fingerprint`.
    """
    if isinstance(split.images, StreamedImages):
        return split.images.fingerprint(classes)
    digest = hashlib.sha256(json.dumps({"shape": list(split.images.shape), "classes": list(classes)}).encode())
    for start in range(0, len(split.images), 4096):  # a copy of the whole set in NCHW order would double the memory
        digest.update(split.images[start : start + 4096].contiguous().numpy().data)
    digest.update(split.labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _source(name: str) -> Source:
    known = sources()
    if name not in known:
        raise SettingError(
            "dataset",
            f"there is no data set {name!r}; there are {', '.join(known)}",
            did_you_mean(name, known),
        )
    return known[name]


def _validation_error(problem: str, count: int) -> SettingError:
    return SettingError(
        "validation", problem, f"write a number of images up to {max(count - 2, 0)}, or a fraction such as 0.1"
    )


def _in_memory(source: Source, root: Path, described: DataSpec, parts: Collection[str]) -> dict[str, Pixels]:
    counts = {"train": described.train_images, "test": described.test_images}
    need, free = sum(counts.get(part) or 0 for part in parts) * described.size**2 * described.channels, free_memory()
    problem = f"the pixels of {described.name} take {need / 1e9:.1f} GB as {described.size} x {described.size} images"
    hint = "a smaller image_size"
    if isinstance(source, ImageFolder | ImageNet):
        hint += ', or storage = "stream" under [data], which leaves them in their files'
    if free is not None and need > free:
        raise SettingError("storage", f"{problem}, more than the {free / 1e9:.1f} GB of free memory", hint)
    try:
        return source.read(root, described, parts)
    except MemoryError as error:
        raise SettingError("storage", f"{problem}, more than the memory gives", hint) from error


def _images(each: Pixels | Pictures, workers: int | None) -> Images:
    if isinstance(each, Pictures):
        return StreamedImages(each, workers)
    # Channels-last memory is NHWC seen as NCHW: nothing is copied.
    return torch.from_numpy(np.ascontiguousarray(each.images)).permute(0, 3, 1, 2)


def _take(images: Images, mask_N: np.ndarray) -> Images:
    if isinstance(images, StreamedImages):
        return images.take(mask_N)
    # Of the memory's order, so that channels last stays what it is.
    return images[:].permute(0, 2, 3, 1)[torch.from_numpy(mask_N)].permute(0, 3, 1, 2)


def _kind(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {', '.join(names)}"

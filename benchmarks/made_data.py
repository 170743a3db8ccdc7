"""Data sets of a few random images in their published formats, and a distilkit that takes them for the published ones.

    python benchmarks/made_data.py FOLDER train one_resnet32 --set data.root=FOLDER

is `distilkit train one_resnet32 ...`, but for the checksums: torchvision's classes are made to expect the files that
`write` has left in FOLDER, as the tests do. What is trained on them is worth nothing.
"""

import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distilkit.data import datasets

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")
"""The first of ImageNet's classes: as class folders some will do, see `distilkit.data.imagenet`."""
PICTURE = (375, 500)
"""Height and width of most of ImageNet's pictures."""


def write(dataset: str, root: Path, train: int, test: int) -> None:
    """Write `train` and `test` images of a data set below `root`: the same ones every time, the labels in turn.

    What needs no files (digits) gets none.
    """
    if dataset in WRITERS:
        root.mkdir(parents=True, exist_ok=True)
        WRITERS[dataset](root, train, test)


def expect(root: Path) -> None:
    """Have torchvision take CIFAR's and SVHN's files in `root`, where there are any, for the published ones."""
    from torchvision import datasets as published

    for cifar in (published.CIFAR10, published.CIFAR100):
        folder = root / cifar.base_folder
        if folder.is_dir():
            cifar.train_list, cifar.test_list = (
                [[name, _md5(folder / name)] for name, _ in listed] for listed in (cifar.train_list, cifar.test_list)
            )
            cifar.meta = cifar.meta | {"md5": _md5(folder / cifar.meta["filename"])}
    svhn = published.SVHN
    if all((root / file).is_file() for _, file, _ in svhn.split_list.values()):
        svhn.split_list = {name: [url, file, _md5(root / file)] for name, (url, file, _) in svhn.split_list.items()}


def _cifar(name: str, root: Path, train: int, test: int) -> None:
    from torchvision import datasets as published

    files: Any = {"cifar10": published.CIFAR10, "cifar100": published.CIFAR100}[name]
    classes = list(datasets.spec(name, root).classes)
    key = "labels" if name == "cifar10" else "fine_labels"
    (root / files.base_folder).mkdir(exist_ok=True)
    for split, (listed, count) in enumerate(((files.train_list, train), (files.test_list, test))):
        planes, labels = _pixels(split, count, 3072), _labels(count, len(classes))
        for (file, _), part in zip(listed, np.array_split(np.arange(count), len(listed)), strict=True):
            _pickle(root / files.base_folder / file, {"data": planes[part], key: labels[part].tolist()})
    _pickle(root / files.base_folder / files.meta["filename"], {files.meta["key"]: classes})


def _svhn(root: Path, train: int, test: int) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    labels = _labels(train, 10)
    parts = {"train": labels[: train // 2], "extra": labels[train // 2 :], "test": _labels(test, 10)}
    for seed, (split, of_split) in enumerate(parts.items()):
        published = np.where(of_split == 0, 10, of_split)
        images = _pixels(seed, 32, 32, 3, len(of_split))
        savemat(root / SVHN.split_list[split][1], {"X": images, "y": published[:, None]})


def _imagenet(root: Path, train: int, test: int) -> None:
    from PIL import Image

    for seed, (folder, count) in enumerate((("train", train), ("val", test))):
        for number, (pixels, label) in enumerate(zip(_pictures(seed, count), _labels(count, len(WNIDS)), strict=True)):
            file = root / folder / WNIDS[label] / f"{WNIDS[label]}_{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, "JPEG")


WRITERS: dict[str, Callable[[Path, int, int], None]] = {
    "cifar10": lambda *arguments: _cifar("cifar10", *arguments),
    "cifar100": lambda *arguments: _cifar("cifar100", *arguments),
    "svhn": _svhn,
    "imagenet": _imagenet,
}


def _pixels(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def _pictures(seed: int, count: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    return (_pixels(1000 * seed + number, *PICTURE, 3) for number in range(count))


def _labels(count: int, classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(count, dtype=np.int64) % classes


def _pickle(file: Path, content: dict[str, Any]) -> None:
    file.write_bytes(pickle.dumps(content, protocol=2))


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    expect(Path(sys.argv.pop(1)))
    from distilkit.cli import main

    main()

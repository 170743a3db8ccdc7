"""Make the small protocol's image folder: 100 training images of each CIFAR-100 class, and all 10,000 test images.

    python benchmarks/small_data.py images                          # downloads CIFAR-100 into data/ with torchvision
    python benchmarks/small_data.py images --from-folder cifar100   # or takes a folder train/<class>/*, test/<class>/*

Which images they are depends on nothing but their pixels: in each class those whose SHA-256 comes first. A file is
named after its digest, so its place in the folder's order is fixed as well. Prints the digest of all names.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distilkit.data.pixels import open_image

EACH = 100
"""Training images taken of every class."""

Pictures = dict[str, list[tuple[str, np.ndarray[Any, Any]]]]


def write(source: dict[str, Pictures], target: Path) -> str:
    """Write the chosen images of `source` (split -> class -> (digest, pixels)) below `target`; returns their digest."""
    listed = hashlib.sha256()
    for split, classes in sorted(source.items()):
        for name, pictures in sorted(classes.items()):
            folder = target / split / name
            folder.mkdir(parents=True, exist_ok=True)
            chosen = sorted(pictures, key=lambda picture: picture[0])[: EACH if split == "train" else None]
            for digest, pixels in chosen:
                file = folder / f"{digest[:16]}.png"
                Image.fromarray(pixels).save(file)
                listed.update(f"{split}/{name}/{digest}\n".encode())
    return listed.hexdigest()


def _gather(pictures: Iterator[tuple[str, np.ndarray[Any, Any]]]) -> Pictures:
    found: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for name, pixels in pictures:
        # By digest: a picture that the set holds twice is taken once.
        found.setdefault(name, {})[hashlib.sha256(pixels.tobytes()).hexdigest()] = pixels
    return {name: list(by_digest.items()) for name, by_digest in found.items()}


def from_torchvision(root: Path) -> dict[str, Pictures]:
    """All of CIFAR-100, downloaded into `root` if it is not there."""
    from torchvision.datasets import CIFAR100

    source = {}
    for split in ("train", "test"):
        read = CIFAR100(str(root), train=split == "train", download=True)
        names = [read.classes[label] for label in read.targets]
        source[split] = _gather(zip(names, read.data, strict=True))
    return source


def from_folder(root: Path) -> dict[str, Pictures]:
    """The same from a folder of pictures, `train/<class>/*` and `test/<class>/*`."""
    source = {}
    for split in ("train", "test"):
        files = sorted(file for file in (root / split).glob("*/*") if file.is_file())
        source[split] = _gather((file.parent.name, np.asarray(open_image(file).convert("RGB"))) for file in files)
    return source


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 where the source is not CIFAR-100 by its numbers."""
    parser = argparse.ArgumentParser(description="Make the small protocol's image folder.")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--root", type=Path, default=Path("data"), help="where torchvision keeps CIFAR-100")
    parser.add_argument("--from-folder", type=Path, help="take the pictures from this image folder instead")
    options = parser.parse_args(arguments)
    source = from_folder(options.from_folder) if options.from_folder else from_torchvision(options.root)
    short = [name for name, pictures in source["train"].items() if len(pictures) < EACH]
    if not source["train"] or short:
        print(f"fewer than {EACH} training images in {short or 'every class'}", file=sys.stderr)  # noqa: T201
        return 1
    print(write(source, options.target))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

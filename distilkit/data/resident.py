"""A split that stays in the device's memory, and the batches that are made of it there.

Shape suffixes: G images of a global batch, B images of this process.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from distilkit.data import augment as augmentation
from distilkit.data.base import Split
from distilkit.data.pictures import StreamedImages
from distilkit.errors import SettingError, did_you_mean
from distilkit.randomness import generator

EVALUATION_BATCH = {"cpu": 125}
"""By type of device: images at a time where a network only answers, as docs/performance.md found them the fastest."""

UNMEASURED_EVALUATION_BATCH = 250


def evaluation_batch(device: torch.device) -> int:
    """How many images at a time a network answers to on `device`."""
    return EVALUATION_BATCH.get(device.type, UNMEASURED_EVALUATION_BATCH)


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """Draw the order of the training images in an epoch: int64 [count], a permutation that depends on nothing else."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def check_augment(augment: str) -> None:
    """Raise `SettingError` ("augment") for an unknown augmentation."""
    if augment not in augmentation.names():
        raise SettingError(
            "augment",
            f"there is no augmentation {augment!r}; there are {', '.join(augmentation.names())}",
            did_you_mean(augment, augmentation.names()),
        )


class TrainingSource(Protocol):
    """Where training batches come from: `TrainingImages`, or `streaming.StreamingImages`."""

    def __len__(self) -> int:
        """How many images there are."""

    def batch(self, indices: Tensor, step: int, part: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """Make the images of a step, see `TrainingImages.batch`."""

    def upcoming(self, steps: Iterable[tuple[int, Tensor, slice | Tensor]]) -> None:
        """Announce (step, indices, part) of the batches that will be asked for, in order."""

    def close(self) -> None:
        """Let go of what was announced."""


class TrainingImages(TrainingSource):
    """A training split in the device's memory, augmented there in batches.

    `augment`: one of `augment.names()`. The split's own images are never written to. "crop" and "crop-flip" keep
    framed copies of the images (see `augment.padded`) so that a batch is one gather.

    Raises `SettingError` ("augment") for an unknown augmentation.
    """

    def __init__(self, split: Split, *, augment: str, seed: int, device: torch.device) -> None:
        check_augment(augment)
        self._augment = augment
        self._seed = seed
        self._device = device
        self._labels = split.labels.to(device)
        images_NHWC = split.images[:].to(device).permute(0, 2, 3, 1).contiguous()
        self._size = images_NHWC.shape[2]
        self._pad = augmentation.padding(self._size) if augment in ("crop", "crop-flip") else 0
        self._mirror = augment == "crop-flip"
        if self._pad or self._mirror:
            images_NHWC = augmentation.padded(images_NHWC, self._pad, self._mirror)
        self._frames = images_NHWC

    def __len__(self) -> int:
        return len(self._labels)

    def upcoming(self, steps: Iterable[tuple[int, Tensor, slice | Tensor]]) -> None:
        """Do nothing: all images are at hand."""

    def close(self) -> None:
        """Do nothing."""

    def batch(self, indices: Tensor, step: int, part: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """Make the images of global step `step`, or this process's part of them.

        `indices`: int64 [G], on the CPU: the whole global batch. `part`: the positions in it that this process takes,
        as a slice or int64 [B] on the CPU, in any order.
        Returns images uint8 [B, C, H, W] in channels-last memory and labels int64 [B], both on the device. What is
        random is drawn for all G images from generator(seed, "augment", step): the parts of several processes, put
        together, are the batch of one.
        """
        draws = generator(self._seed, "augment", step)
        if self._augment == "random-resized-crop":
            boxes_5G = augmentation.draw_resized_crops(len(indices), self._size, draws)
            places = torch.cat([indices[None], boxes_5G])[:, part].to(self._device, non_blocking=True)
            images_NHWC = augmentation.resized_crops(self._frames[places[0]], places[1:])
        elif self._augment == "none":
            places = indices[None, part].to(self._device, non_blocking=True)
            images_NHWC = self._frames[places[0]]
        else:
            dy, dx, mirrored = augmentation.draw_crops(len(indices), self._pad, self._mirror, draws)
            frames = indices + mirrored * len(self)
            # One transfer for all four rows.
            places = torch.stack([indices, frames, dy, dx])[:, part].to(self._device, non_blocking=True)
            images_NHWC = augmentation.crops(self._frames, self._pad, places[1:])
        return images_NHWC.permute(0, 3, 1, 2), self._labels[places[0]]


def evaluation_batches(
    split: Split, batch_size: int, device: torch.device, share: slice = slice(None)
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in order: images uint8 [B, C, H, W] (channels last) and labels int64 [B] on the device.

    The last batch is as small as what is left. `share`: which of the batches this process takes. Images that wait in
    their files are decoded ahead, by workers if there are several batches.
    """
    starts = range(0, len(split.labels), batch_size)[share]
    parts = [slice(start, start + batch_size) for start in starts]
    images = split.images
    if isinstance(images, StreamedImages) and len(parts) > 1:
        batches = images.batches(parts, pin=device.type == "cuda")
    else:
        batches = (images[part] for part in parts)
    for part, batch in zip(parts, batches, strict=True):
        yield batch.to(device, non_blocking=True), split.labels[part].to(device, non_blocking=True)


@dataclass(frozen=True)
class EvaluationImages:
    """`evaluation_batches` of the size that suits the device; they can be gone through again and again."""

    split: Split
    device: torch.device
    share: slice = field(default_factory=lambda: slice(None))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_batches(self.split, evaluation_batch(self.device), self.device, self.share)

"""Splits that do not fit into memory: images that wait in their files, and training batches made of them.

Workers decode, and cut random boxes out of the original pictures; everything else is done for whole batches on the
device, by the operations that resident images go through, with the same draws. So the batches are the same ones, bit
for bit, except for random boxes in pictures that are not of their final size yet.

Shape suffixes: N images, G images of a global batch, B images of this process, C channels, H height, W width.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distilkit.data import augment as augmentation
from distilkit.data.base import Images, Split
from distilkit.data.decoding import Decoded, Request
from distilkit.data.pictures import StreamedImages, nchw
from distilkit.data.resident import TrainingImages, TrainingSource, check_augment
from distilkit.randomness import generator


class _Step(NamedTuple):
    """What was announced of a step: `positions` in its global batch, increasing."""

    step: int
    indices_G: Tensor
    positions: Tensor


class StreamingImages(TrainingSource):
    """A training split that stays in its files, or in the host's memory, augmented in batches on the device.

    Gives the batches of `resident.TrainingImages`, see the head of this module. What `upcoming` announces is decoded
    ahead, once for each step whatever `batch` then asks of it; the rest is decoded when it is asked for.

    Raises `SettingError` ("augment") for an unknown augmentation.
    """

    def __init__(self, split: Split, *, augment: str, seed: int, device: torch.device) -> None:
        check_augment(augment)
        self._images, self._augment, self._seed, self._device = split.images, augment, seed, device
        self._labels = split.labels
        self._size = split.images.shape[-1]
        self._pad = augmentation.padding(self._size) if augment in ("crop", "crop-flip") else 0
        self._announced: deque[_Step] = deque()
        self._stream: Iterator[Decoded] | None = None
        # The step that is at hand: which rows of its global batch, as they were decoded.
        self._held: tuple[_Step, Decoded] | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def upcoming(self, steps: Iterable[tuple[int, Tensor, slice | Tensor]]) -> None:
        """Announce (step, indices, part) of the batches that will be asked for, in order.

        `part`: all the positions that this process will take of the global batch of `indices`, in one call of `batch`
        or several. Replaces what was announced before. `steps` is taken from as far ahead as the workers are.
        """
        self.close()
        if isinstance(images := self._images, Tensor):
            return
        self._stream = _streamed(images).stream(self._requests(steps), pin=self._device.type == "cuda")

    def close(self) -> None:
        """End the workers."""
        self._stream, self._held = None, None
        self._announced.clear()

    def batch(self, indices: Tensor, step: int, part: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """Make the images of global step `step`, or this process's part of them; see `resident.TrainingImages`."""
        positions = torch.arange(len(indices))[part]
        decoded = self._decoded(indices, step, positions)
        images_BHWC = decoded.images_BHWC.to(self._device, non_blocking=True)
        if decoded.boxes_5B is not None:
            images_BHWC = self._boxed(images_BHWC, decoded.boxes_5B)
        elif self._augment in ("crop", "crop-flip"):
            draws = generator(self._seed, "augment", step)
            crops_3G = augmentation.draw_crops(len(indices), self._pad, self._augment == "crop-flip", draws)
            dy, dx, mirrored = crops_3G[:, positions].to(self._device, non_blocking=True)
            # First mirrored: a box counts from the mirrored image's left.
            images_BHWC = _mirror(images_BHWC, mirrored)
            frames = augmentation.padded(images_BHWC, self._pad, mirror=False)
            frame = torch.arange(len(positions), device=self._device)
            images_BHWC = augmentation.crops(frames, self._pad, torch.stack([frame, dy, dx]))
        labels = self._labels[indices[positions]].to(self._device, non_blocking=True)
        return nchw(images_BHWC), labels

    def _decoded(self, indices_G: Tensor, step: int, positions: Tensor) -> Decoded:
        """Take the images of these positions, from what is at hand or else from their files."""
        if isinstance(self._images, Tensor):
            images_BHWC = self._images[indices_G[positions]].permute(0, 2, 3, 1).contiguous()
            numbers = self._numbers(indices_G, step, positions)
            size = self._size
            return Decoded(
                images_BHWC, None if numbers is None else augmentation.place_resized_crops(numbers, size, size), []
            )
        images = _streamed(self._images)
        held = self._held_for(step)
        if held and torch.equal(held[0].indices_G, indices_G):
            rows = torch.searchsorted(held[0].positions, positions).clamp(max=len(held[0].positions) - 1)
            if torch.equal(held[0].positions[rows], positions):
                if len(rows) == len(held[1].images_BHWC) and torch.equal(rows, torch.arange(len(rows))):
                    return held[1]
                boxes = held[1].boxes_5B
                return Decoded(held[1].images_BHWC[rows], None if boxes is None else boxes[:, rows], [])
        decoded = images.now(images.request(indices_G[positions], self._numbers(indices_G, step, positions)))
        images.checked(decoded)
        return decoded

    def _held_for(self, step: int) -> tuple[_Step, Decoded] | None:
        """The announced step of this number, or None; those before it are let go."""
        while self._stream is not None and (self._held is None or self._held[0].step < step):
            decoded = next(self._stream, None)
            if decoded is None:
                self._stream = None
                break
            self._held = self._announced.popleft(), decoded
            _streamed(self._images).checked(decoded)
        return self._held if self._held and self._held[0].step == step else None

    def _requests(self, steps: Iterable[tuple[int, Tensor, slice | Tensor]]) -> Iterator[Request]:
        images = _streamed(self._images)
        for step, indices_G, part in steps:
            positions = torch.unique(torch.arange(len(indices_G))[part])
            self._announced.append(_Step(step, indices_G, positions))
            yield images.request(indices_G[positions], self._numbers(indices_G, step, positions))

    def _numbers(self, indices_G: Tensor, step: int, positions: Tensor) -> Tensor | None:
        """Draw what boxes are made of, for the whole global batch, and take these positions' part of it."""
        if self._augment != "random-resized-crop":
            return None
        return augmentation.draw_numbers(len(indices_G), generator(self._seed, "augment", step))[:, positions]

    def _boxed(self, images_BHWC: Tensor, boxes_5B: Tensor) -> Tensor:
        if bool((boxes_5B[2:4] == self._size).all()):  # Looked at on the CPU: the workers have cut all of them.
            return _mirror(images_BHWC, boxes_5B[4].to(self._device, non_blocking=True))
        return augmentation.resized_crops(images_BHWC, boxes_5B)


def training_source(
    split: Split, storage: str, *, augment: str, seed: int, device: torch.device
) -> TrainingImages | StreamingImages:
    """Make the source of training batches; `storage`: "stream", or anything else for images that are in memory."""
    if storage == "stream" or not isinstance(split.images, Tensor):
        return StreamingImages(split, augment=augment, seed=seed, device=device)
    return TrainingImages(split, augment=augment, seed=seed, device=device)


def _streamed(images: Images) -> StreamedImages:
    assert isinstance(images, StreamedImages)
    return images


def _mirror(images_BHWC: Tensor, mirrored_B: Tensor) -> Tensor:
    return torch.where(mirrored_B.bool()[:, None, None, None], images_BHWC.flip(2), images_BHWC)

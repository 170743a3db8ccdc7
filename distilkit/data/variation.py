"""What strong recipes do to training images after the crop: RandAugment, random erasing, mixup and CutMix.

All are torchvision's (v2); what is new is where their random numbers come from. They are a function of (seed, step) and
of an image's position in the global batch, so that a resumed run, several processes, and a batch computed in parts see
the images that one process sees at once.

Shape suffixes: G images of a global batch, B images of this process, C channels or classes, H height, W width.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from distilkit.data import rand_augment as rand_augmentation
from distilkit.data.base import DataSpec
from distilkit.data.resident import TrainingSource
from distilkit.randomness import generator, seeded

# The settings of torchvision's RandomErasing, which are those of Zhong et al. 2020.
ERASED_SHARE = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
TRIES = 10


class VariedImages:
    """The batches of `source`, varied.

    `rand_augment`: how many operations each image goes through, and `rand_augment_magnitude` how strong they are, 0 to
    30. `random_erasing`: the chance of an image to lose a rectangle, which is filled with the data set's mean colour.
    `mixup`, `cutmix`: the two equal parameters of the Beta distribution of the shares in which two images are mixed;
    with both, one of the two is drawn for each batch. 0 leaves each of them out.

    Images are varied in this order, each for itself before it is mixed. The image at a position of the global batch is
    mixed with the one before it, the first with the last: batches are shuffled, so that any pairing is a random one.
    """

    def __init__(
        self,
        source: TrainingSource,
        *,
        spec: DataSpec,
        seed: int,
        device: torch.device,
        rand_augment: int = 0,
        rand_augment_magnitude: int | None = None,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        self._source, self._seed, self._size = source, seed, spec.size
        self._operations = rand_augment
        if rand_augment:
            magnitude = 9 if rand_augment_magnitude is None else rand_augment_magnitude
            self._rand_augment = rand_augmentation.RandAugment(spec.size, magnitude, device)
        self._random_erasing = random_erasing
        if random_erasing:
            levels = torch.tensor([round(255 * mean) for mean in spec.mean or (0.0,) * spec.channels])
            self._colour = levels.to(device, torch.uint8)
        self._blends = mixup > 0
        self._mixes = mixup > 0 or cutmix > 0
        if self._mixes:
            from torchvision.transforms import v2

            classes = len(spec.classes)
            mixing = [v2.MixUp(alpha=float(mixup), num_classes=classes)] if mixup else []
            cutting = [v2.CutMix(alpha=float(cutmix), num_classes=classes)] if cutmix else []
            self._mix = v2.RandomChoice([*mixing, *cutting])

    def __len__(self) -> int:
        return len(self._source)

    def upcoming(self, steps: Iterable[tuple[int, Tensor, slice]]) -> None:
        """Announce (step, indices, part) of the batches that will be asked for, in order."""
        self._source.upcoming((step, indices, self._positions(len(indices), part)[0]) for step, indices, part in steps)

    def close(self) -> None:
        """Let go of what was announced."""
        self._source.close()

    def _positions(self, count: int, part: slice) -> tuple[Tensor, int]:
        """The positions that a part of a global batch needs of the source, and how many of them are left out at last.

        Every image needs the one before it. The operators roll the batch by one, which brings the last image to the
        first place: in a whole batch that is right, a part begins with an image that is then left out.
        """
        first, last, _ = part.indices(count)
        ahead = int(self._mixes and last - first < count)
        return torch.arange(first - ahead, last) % count, ahead

    def batch(self, indices: Tensor, step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Make the images of global step `step`, or this process's part of them, adjacent positions of the batch.

        `indices`: int64 [G], on the CPU: the whole global batch. Returns images [B, C, H, W] in channels-last memory,
        with mixup float32 in [0, 1], otherwise uint8; and labels, with mixup or CutMix the classes' shares float32
        [B, C], otherwise int64 [B].
        """
        count = len(indices)
        positions_B, ahead = self._positions(count, part)
        images, labels = self._source.batch(indices, step, positions_B)
        if self._operations:
            drawn_NG = rand_augmentation.draw(count, self._operations, generator(self._seed, "rand-augment", step))
            images = self._rand_augment(images, drawn_NG[:, positions_B])
        if self._random_erasing:
            draws = generator(self._seed, "random-erasing", step)
            boxes_4G = draw_erasings(count, self._size, self._random_erasing, draws)
            images = erased(images, boxes_4G[:, positions_B], self._colour)
        if self._mixes:
            # In CutMix's turn too: a training has one type of images.
            images = images.float() / 255 if self._blends else images
            with seeded(self._seed, "mix", step):
                images, labels = self._mix(images, labels)
        return images[ahead:], labels[ahead:]


def draw_erasings(count: int, size: int, chance: float, draws: torch.Generator) -> Tensor:
    """Draw rectangles to erase: int64 [4, G], rows top, left, height, width (pixels); height 0 where none is.

    As torchvision's RandomErasing samples them: up to ten tries at an area (2 to 33 % of the image) and a log-uniform
    ratio (0.3 to 3.3) whose rectangle is smaller than the image both ways, none erased if none is. All ten are drawn,
    the first that fits is taken: a tenth of a millisecond for a batch, where torchvision takes that for an image.
    """
    chosen_draw, top_draw, left_draw = torch.rand((3, count), generator=draws, dtype=torch.float64)
    area_draw, ratio_draw = torch.rand((2, TRIES, count), generator=draws, dtype=torch.float64)
    area = size * size * (ERASED_SHARE[0] + (ERASED_SHARE[1] - ERASED_SHARE[0]) * area_draw)
    low, high = math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])
    ratio = torch.exp(low + (high - low) * ratio_draw)
    height, width = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()

    fits = (height < size) & (width < size)
    first = fits.long().argmax(0, keepdim=True)
    erases = fits.any(0) & (chosen_draw < chance)
    height = torch.where(erases, height.gather(0, first)[0], 0)
    width = torch.where(erases, width.gather(0, first)[0], 0)
    # A uniform number in [0, 1) makes a whole one in 0..size - height.
    top, left = (top_draw * (size - height + 1)).long(), (left_draw * (size - width + 1)).long()
    return torch.stack([top, left, height, width])


def erased(images: Tensor, boxes_4B: Tensor, colour_C: Tensor) -> Tensor:
    """Fill each image's rectangle with a colour: uint8 [B, C, H, W] -> the same."""
    H, W = images.shape[2:]
    top, left, height, width = boxes_4B.to(images.device, non_blocking=True)[:, :, None]
    y_H, x_W = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    in_rows_BH, in_columns_BW = (y_H >= top) & (y_H < top + height), (x_W >= left) & (x_W < left + width)
    inside_B1HW = (in_rows_BH[:, :, None] & in_columns_BW[:, None, :])[:, None]
    return torch.where(inside_B1HW, colour_C[:, None, None], images)

"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) as torchvision's v2 defines it, for a batch at a time.

torchvision draws one operation for whatever it is given; here every image draws its own, and the images that drew the
same one go through torchvision's function together. The operations that move pixels (shear, translate, rotate) take
each pixel from the nearest place, which is the same for all images: torchvision moves an image of pixel numbers once,
and a batch is then one gather, whatever mixture of them it drew. Nor does that wait for the device, as torchvision does
whenever it builds a matrix there.

Shape suffixes: G images of a global batch, B images of this process, C channels, P pixels, N operations an image.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

MAGNITUDES = 31
"""Magnitudes are 0 to 30, as in torchvision's default."""

MOVING = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate")
SIGNED = ("brightness", "color", "contrast", "sharpness")
UNSIGNED = ("posterize", "solarize", "autocontrast", "equalize")


def operations() -> tuple[str, ...]:
    """List the operations, of which each image draws with equal chances."""
    return ("identity", *MOVING, *SIGNED, *UNSIGNED)


class RandAugment:
    """Applies what `draw` drew to images of `size` x `size` pixels on `device`, at one magnitude (0 to 30)."""

    def __init__(self, size: int, magnitude: int, device: torch.device) -> None:
        numbers_1HW = torch.arange(1, size * size + 1, dtype=torch.float32).view(1, size, size)
        moved = [numbers_1HW, *(move(numbers_1HW) for move in _moves(size, magnitude))]
        # Where a pixel comes from, -1 where from outside the image.
        self._sources = torch.stack([image.flatten() for image in moved]).long().sub(1).to(device)
        self._changes = list(_changes(magnitude, device))

    def __call__(self, images: Tensor, drawn_NB: Tensor) -> Tensor:
        """Images uint8 [B, C, H, W], C 1 or 3, and their columns of what was drawn (on the CPU) -> likewise."""
        images = images.contiguous()
        for variant_B in drawn_NB:
            counts = variant_B.bincount(minlength=len(self._sources) + len(self._changes)).tolist()
            order_B = variant_B.argsort(stable=True)
            # One transfer for all three rows.
            places = torch.stack([order_B, order_B.argsort(), variant_B[order_B]]).to(images.device, non_blocking=True)
            start = sum(counts[: len(self._sources)])
            images = images.index_select(0, places[0])
            pieces = [self._moved(images[:start], places[2, :start])]
            for change, count in zip(self._changes, counts[len(self._sources) :], strict=True):
                if count:
                    pieces.append(change(images[start : start + count]))
                start += count
            images = torch.cat(pieces).index_select(0, places[1])
        return images.contiguous(memory_format=torch.channels_last)

    def _moved(self, images: Tensor, variant_B: Tensor) -> Tensor:
        pixels_BCP, source_B1P = images.flatten(2), self._sources[variant_B][:, None]
        moved_BCP = pixels_BCP.gather(2, source_B1P.clamp(min=0).expand_as(pixels_BCP))
        return (moved_BCP * (source_B1P >= 0)).view_as(images)


def draw(count: int, operations_each: int, draws: torch.Generator) -> Tensor:
    """Draw what is done to each image: int64 [N, G], the operation and, where it has two directions, the direction.

    Numbered are: the identity, both directions of each moving operation, both of each that has a sign, the rest.
    """
    operation_NG = torch.randint(len(operations()), (operations_each, count), generator=draws)
    sign_NG = torch.randint(2, (operations_each, count), generator=draws)
    # The first of each operation's numbers: 0, 1, 3, 5, ... while they come in pairs.
    pairs = len(MOVING) + len(SIGNED)
    in_pairs_NG = (operation_NG > 0) & (operation_NG <= pairs)
    number_NG = torch.where(operation_NG > pairs, operation_NG + pairs, 2 * operation_NG - 1)
    return torch.where(in_pairs_NG, number_NG + sign_NG, number_NG.clamp(min=0))


def _moves(size: int, magnitude: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Both directions of every operation that moves pixels: the positive one, then the negative one."""
    import math

    from torchvision.transforms.v2 import functional

    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    for axis in (0, 1):
        degrees = math.degrees(math.atan(_level(magnitude, 0.3)))
        for signed in (degrees, -degrees):
            shear = [signed, 0.0] if axis == 0 else [0.0, signed]
            yield partial(functional.affine, **{**still, "shear": shear, "center": [0, 0]})
    for axis in (0, 1):
        pixels = int(_level(magnitude, 150 / 331 * size))
        for shift in (pixels, -pixels):
            yield partial(functional.affine, **{**still, "translate": [shift, 0] if axis == 0 else [0, shift]})
    for angle in (_level(magnitude, 30.0), -_level(magnitude, 30.0)):
        yield partial(functional.rotate, angle=angle)


def _changes(magnitude: int, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
    """Every operation that changes colours, those with a sign twice."""
    from torchvision.transforms.v2 import functional

    level = _level(magnitude, 0.9)
    for factor in (1 + level, 1 - level):
        yield partial(functional.adjust_brightness, brightness_factor=factor)
    for factor in (1 + level, 1 - level):
        yield partial(functional.adjust_saturation, saturation_factor=factor)
    for factor in (1 + level, 1 - level):
        yield partial(functional.adjust_contrast, contrast_factor=factor)
    for factor in (1 + level, 1 - level):
        yield partial(_sharpened, factor=factor, kernel=_blurring().to(device))
    yield partial(functional.posterize, bits=8 - round(4 * magnitude / (MAGNITUDES - 1)))
    yield partial(functional.solarize, threshold=255 * _level(MAGNITUDES - 1 - magnitude, 1.0))
    yield functional.autocontrast
    yield functional.equalize


def _blurring() -> Tensor:
    """A pixel counts five times, each of its eight neighbours once: [1, 1, 3, 3]."""
    weights = torch.ones((1, 1, 3, 3), dtype=torch.float32)
    weights[..., 1, 1] = 5.0
    return weights / 13


def _sharpened(images: Tensor, factor: float, kernel: Tensor) -> Tensor:
    """What torchvision's adjust_sharpness does, which brings its kernel to the device, and waits, at every call.

    Takes the images, but for their border, `factor` times as far from their blurred selves.
    """
    channels, pixels = images.shape[1], images.float()
    blurred = F.conv2d(pixels, kernel.expand(channels, 1, 3, 3), groups=channels).round()
    inner = pixels[..., 1:-1, 1:-1]
    inner.add_(blurred - inner, alpha=1 - factor)
    return pixels.clamp(0, 255).to(images.dtype)


def _level(magnitude: int, most: float) -> float:
    """A magnitude's share of an operation's range, rounded as torchvision rounds it."""
    return float(torch.linspace(0.0, most, MAGNITUDES, dtype=torch.float32)[magnitude])

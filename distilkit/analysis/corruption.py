"""Perturbed images: noise, blur, brightness, contrast and JPEG at five severities, on whole uint8 batches.

The kinds are those of Hendrycks & Dietterich 2019 ("Benchmarking neural network robustness to common corruptions and
perturbations") that need no pictures of their own. The severities are ours, in units of pixels and of the 256 levels,
so that a figure says what was done to the image; they are no ImageNet-C, and no figures here compare with its.
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distilkit.data.pixels import open_image
from distilkit.randomness import generator

SEVERITIES = 5


@dataclass(frozen=True)
class Corruption:
    """`amounts`: of severities 1 to 5, in `unit`. `apply(images uint8 [B, C, H, W], amount, draws)`: the same shape."""

    amounts: tuple[float, ...]
    unit: str
    apply: Callable[[Tensor, float, torch.Generator], Tensor]


def names() -> tuple[str, ...]:
    """The kinds, in the order in which they are reported."""
    return tuple(CORRUPTIONS)


def corrupt(images: Tensor, name: str, severity: int, *, seed: int, start: int) -> Tensor:
    """Images uint8 [B, C, H, W] of any device, perturbed: the same shape, type and device.

    `severity`: 1 to 5. What is random depends on (seed, name, severity, start) alone, `start` being the place of the
    batch's first image in its split. Raises `ValueError` for another kind or severity.
    """
    if name not in CORRUPTIONS or not 1 <= severity <= SEVERITIES:
        raise ValueError(f"there is no perturbation {name!r} of severity {severity}")
    kind = CORRUPTIONS[name]
    draws = generator(seed, f"corruption-{name}-{severity}", start)
    return kind.apply(images, kind.amounts[severity - 1], draws)


def _noise(images: Tensor, amount: float, draws: torch.Generator) -> Tensor:
    # Drawn on the CPU: every device gets the same numbers.
    noise = torch.randn(images.shape, generator=draws).mul_(amount).to(images.device)
    return _levels(images + noise)


def _blur(images: Tensor, amount: float, draws: torch.Generator) -> Tensor:
    from torchvision.transforms.v2 import functional

    # Three deviations to each side hold 99.7 % of the bell; a kernel may not be wider than what reflection can fill.
    reach = min(max(1, round(3 * amount)), min(images.shape[-2:]) - 1)
    blurred: Tensor = functional.gaussian_blur(images.float(), [2 * reach + 1] * 2, [amount] * 2)
    return _levels(blurred)


def _brightness(images: Tensor, amount: float, draws: torch.Generator) -> Tensor:
    return _levels(images.float() + amount)


def _contrast(images: Tensor, amount: float, draws: torch.Generator) -> Tensor:
    pixels = images.float()
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return _levels(mean + amount * (pixels - mean))


def _jpeg(images: Tensor, amount: float, draws: torch.Generator) -> Tensor:
    """Each image through a JPEG file in memory: Pillow works outside Python's lock, so in threads."""
    pixels_NHWC: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = list(
        images.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    )

    def through_a_file(pixels_HWC: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
        file = io.BytesIO()
        Image.fromarray(pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1 else pixels_HWC).save(
            file, "JPEG", quality=int(amount)
        )
        decoded = np.asarray(open_image(file))
        return torch.from_numpy(decoded.reshape(pixels_HWC.shape).copy())

    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(through_a_file, pixels_NHWC))
    return torch.stack(decoded).permute(0, 3, 1, 2).to(images.device)


def _levels(pixels: Tensor) -> Tensor:
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


CORRUPTIONS = {
    "noise": Corruption((4.0, 8.0, 12.0, 18.0, 26.0), "levels of standard deviation", _noise),
    "blur": Corruption((0.4, 0.6, 0.8, 1.0, 1.5), "pixels of standard deviation", _blur),
    "brightness": Corruption((16.0, 32.0, 48.0, 64.0, 96.0), "levels added", _brightness),
    "contrast": Corruption((0.75, 0.5, 0.35, 0.25, 0.15), "share of the contrast left", _contrast),
    "jpeg": Corruption((80.0, 60.0, 40.0, 20.0, 10.0), "JPEG quality", _jpeg),
}
"""By name. 8-bit levels: 0 to 255."""

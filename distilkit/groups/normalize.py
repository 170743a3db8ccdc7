"""Images to a network's input, and the classifier that is deployed: a network behind its normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """The first step of every network that takes raw images: (images - mean) / std, per channel.

    `mean`, `std`: one number for every channel, of images in [0, 1]. They are buffers, to move with the module, but not
    part of its `state_dict()`. Takes images [B, C, H, W], uint8 in [0, 255] or floating point in [0, 1]; gives the same
    shape and memory format in the module's own precision, float32 unless it has been converted. Raises `TypeError` on
    images of any other type, and `ValueError` if the numbers do not fit together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0.0) <= 0:
            raise ValueError(f"one mean and one positive std per channel, not {list(mean)} and {list(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W], uint8 or in [0, 1] -> normalised images [B, C, H, W]."""
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images are uint8, or floating point in [0, 1], not {images.dtype}")
        if _has_rows(images):
            return self._by_rows(images)
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def _by_rows(self, images: Tensor) -> Tensor:
        """Compute the same numbers, a row of W * C of them at a time instead of C."""
        B, C, H, W = images.shape
        rows = images.permute(0, 2, 3, 1).view(B, H, W * C)
        scaled = rows.to(self.mean.dtype).div_(255) if images.dtype == torch.uint8 else rows.to(self.mean.dtype)
        mean, std = self.mean.view(C).repeat(W), self.std.view(C).repeat(W)
        return scaled.sub(mean).div_(std).view(B, H, W, C).permute(0, 3, 1, 2)


def _has_rows(images: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side in memory, and nobody is writing down what is computed."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last)


class Classifier(nn.Module):
    """One network that takes raw images: `backbone` after `normalize`. What is deployed, and what teaches."""

    def __init__(self, normalize: Normalize, backbone: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W], uint8 or in [0, 1] -> logits [B, C]."""
        logits: Tensor = self.backbone(self.normalize(images))
        return logits

"""Frozen classifiers outside the learner, from which all its students learn (Hinton et al. 2015; OKDDip + KD)."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distilkit.groups.normalize import Classifier


class ResizedClassifier(nn.Module):
    """A classifier for images of another size, or with its classes in another order, or with more of them.

    `size`: the images become so many pixels to a side (bilinear, antialiased); None: they stay. `classes`: which of the
    classifier's logits is that of each class of the data; None: all, in their order.
    """

    classes: Tensor | None

    def __init__(self, classifier: Classifier, size: int | None, classes: Sequence[int] | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = size
        places = None if classes is None else torch.tensor(list(classes))
        self.register_buffer("classes", places, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W], uint8 or in [0, 1] -> logits [B, C] of the data's classes."""
        if self.size is not None and images.shape[-1] != self.size:
            scaled = images.float() / 255 if images.dtype == torch.uint8 else images
            size = (self.size, self.size)
            images = F.interpolate(scaled, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        logits: Tensor = self.classifier(images)
        return logits if self.classes is None else logits[:, self.classes]


class Teacher(nn.Module):
    """One classifier or several, whose logits are averaged.

    Its parameters take no gradient and it stays in eval mode whatever is called on it, so nothing wakes its batch
    norm. Every classifier normalises for itself. It is not part of the learner: no process group wraps it, no
    optimizer and no checkpoint holds it.
    """

    def __init__(self, classifiers: Sequence[Classifier | ResizedClassifier]) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Raw images [B, channels, H, W] -> the mean of the classifiers' logits [B, C], float32, without gradient."""
        return torch.stack([classifier(images).float() for classifier in self.classifiers]).mean(0)

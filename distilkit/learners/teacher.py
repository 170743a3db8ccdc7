"""Frozen classifiers outside the learner, from which all its students learn (Hinton et al. 2015; OKDDip + KD)."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from distilkit.groups.normalize import Classifier


class Teacher(nn.Module):
    """One classifier or several, whose logits are averaged.

    Its parameters take no gradient and it stays in eval mode whatever is called on it, so nothing wakes its batch
    norm. Every classifier normalises for itself. It is not part of the learner: no process group wraps it, no
    optimizer and no checkpoint holds it.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
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

"""How differently the members of a group see the same images.

Shape suffixes: S members, N images, C classes.
"""

import math

import torch
from torch import Tensor


def diversity(logits_SNC: Tensor) -> float | None:
    """Mean Euclidean distance between two members' predictions (Chen et al. 2020, OKDDip's diversity measurement).

    Predictions are softmax outputs at T = 1; the mean is over images and unordered pairs of members; between 0 and
    sqrt(2). None for a single member, which has no pair.
    """
    return None if len(logits_SNC) < 2 else float(distances(logits_SNC).mean())


def distances(logits_SNC: Tensor) -> Tensor:
    """For each image the mean over unordered pairs of members of that distance, float64 [N]; two members or more.

    Computed in float32 or better from the differences themselves, not from a product of matrices, which would lose
    half the digits where members nearly agree; one member with all that follow it at a time, which is three to five
    times as fast as `torch.cdist`. Nothing here waits for the device.
    """
    members, images = logits_SNC.shape[:2]
    probabilities_SNC = logits_SNC.to(torch.promote_types(logits_SNC.dtype, torch.float32)).softmax(-1)
    sums_N = torch.zeros(images, dtype=torch.float64, device=logits_SNC.device)
    for first in range(members - 1):
        differences_PNC = probabilities_SNC[first + 1 :] - probabilities_SNC[first]
        sums_N += torch.linalg.vector_norm(differences_PNC, dim=-1).sum(0, dtype=torch.float64)
    return sums_N / math.comb(members, 2)


def agreement(logits_SNC: Tensor) -> Tensor:
    """Fraction of images on which two members predict the same class: float64 [S, S], symmetric, diagonal 1.

    A member whose logits hold a NaN predicts no class, and agrees with nobody, itself included, on that image.
    """
    predictions_SN = logits_SNC.argmax(-1)
    sound_SN = ~logits_SNC.isnan().any(-1)
    same_SSN = (predictions_SN[:, None] == predictions_SN[None]) & sound_SN[:, None] & sound_SN[None]
    return same_SSN.double().mean(-1)

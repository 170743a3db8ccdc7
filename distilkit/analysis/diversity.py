"""How differently the members of a group see the same images.

Shape suffixes: S members, N images, C classes.
"""

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
    half the digits where members nearly agree. Nothing here waits for the device.
    """
    members = logits_SNC.shape[0]
    dtype = torch.promote_types(logits_SNC.dtype, torch.float32)
    probabilities_NSC = logits_SNC.to(dtype).softmax(-1).transpose(0, 1)
    distances_NSS = torch.cdist(probabilities_NSC, probabilities_NSC, compute_mode="donot_use_mm_for_euclid_dist")
    first, second = torch.triu_indices(members, members, offset=1, device=logits_SNC.device)
    return distances_NSS[:, first, second].mean(-1, dtype=torch.float64)


def agreement(logits_SNC: Tensor) -> Tensor:
    """Fraction of images on which two members predict the same class: float64 [S, S], symmetric, diagonal 1.

    A member whose logits hold a NaN predicts no class, and agrees with nobody, itself included, on that image.
    """
    predictions_SN = logits_SNC.argmax(-1)
    sound_SN = ~logits_SNC.isnan().any(-1)
    same_SSN = (predictions_SN[:, None] == predictions_SN[None]) & sound_SN[:, None] & sound_SN[None]
    return same_SSN.double().mean(-1)

"""DML, CL-ILR, OKDDip and the teacher's term once more, as `oracles` does it for ONE: float64, in plain loops.

Nothing here imports distilkit. Gradients come by autograd; a stop-gradient is a `detach()` that stands where the
mathematics has sg[.].

Shape suffixes: S students, A peers, B images, C classes, D features.
"""

from collections.abc import Sequence
from math import pi

import numpy as np
import torch
from oracles import kl_divergence, log_softmax, sum_of_cross_entropies
from torch import Tensor


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def mean_of_logits(logits: Sequence[Tensor]) -> Tensor:
    """Of some students: [B, C]."""
    total = torch.zeros_like(logits[0])
    for logits_BC in logits:
        total = total + logits_BC
    return total / len(logits)


def softened(logits_BC: Tensor, temperature: float) -> Tensor:
    """q' = softmax(z / T): [B, C]."""
    return torch.stack([torch.exp(log_softmax(logits_C / temperature)) for logits_C in logits_BC])


def kl_from_probabilities(target_BC: Tensor, student_BC: Tensor, temperature: float) -> Tensor:
    """Mean over images of KL(target || softmax(student / T)) for a target that is a distribution already.

    A class of probability 0 adds nothing: p log p goes to 0.
    """
    total = zero()
    for target_C, student_C in zip(target_BC, student_BC, strict=True):
        for p, log_q in zip(target_C, log_softmax(student_C / temperature), strict=True):
            if p.item() > 0.0:
                total = total + p * (torch.log(p) - log_q)
    return total / len(target_BC)


def entropy(logits_BC: Tensor, temperature: float) -> Tensor:
    """Mean over images of -sum_c q'_c log q'_c."""
    total = zero()
    for logits_C in logits_BC:
        for log_q in log_softmax(logits_C / temperature):
            total = total - torch.exp(log_q) * log_q
    return total / len(logits_BC)


# DML


def dml_terms(
    logits_SBC: Tensor,
    labels: Sequence[int],
    *,
    temperature: float,
    target: str,
    detach_targets: bool,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """sum_i CE(z_i, y), and the KLs towards each other student or towards the mean of the others' logits."""
    num_students = len(logits_SBC)
    distillation = zero()
    for i in range(num_students):
        others = [logits_SBC[j] for j in range(num_students) if j != i]
        targets, share = (others, 1 / (num_students - 1)) if target == "pairwise" else ([mean_of_logits(others)], 1.0)
        for target_BC in targets:
            if detach_targets:
                target_BC = target_BC.detach()
            distillation = distillation + share * temperature**2 * kl_divergence(target_BC, logits_SBC[i], temperature)
    return {
        "cross_entropy": sum_of_cross_entropies(logits_SBC, labels, label_smoothing),
        "distillation": distillation,
    }


# CL-ILR


def cl_ilr_terms(
    logits_SBC: Tensor,
    labels: Sequence[int],
    *,
    temperature: float,
    detach_target: bool,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """sum_i CE(z_i, y) and sum_i T^2 KL(softmax(mean of the others' logits / T) || q'_i)."""
    num_students = len(logits_SBC)
    distillation = zero()
    for i in range(num_students):
        target_BC = torch.zeros_like(logits_SBC[i])
        for j in range(num_students):
            if j != i:
                target_BC = target_BC + logits_SBC[j] / (num_students - 1)
        if detach_target:
            target_BC = target_BC.detach()
        distillation = distillation + temperature**2 * kl_divergence(target_BC, logits_SBC[i], temperature)
    return {
        "cross_entropy": sum_of_cross_entropies(logits_SBC, labels, label_smoothing),
        "distillation": distillation,
    }


# OKDDip


def softmax_of_scores(scores_BAA: Tensor) -> Tensor:
    """alpha_ab = exp s_ab / sum_f exp s_af: [B, A, A], rows a, columns b."""
    return torch.stack(
        [torch.stack([torch.exp(log_softmax(row_A)) for row_A in scores_AA]) for scores_AA in scores_BAA]
    )


def attention(features: Sequence[Tensor], w_l: Tensor | None, w_e: Tensor | None) -> Tensor:
    """alpha [B, A, A] (Chen et al. 2020, Eqs. 9 and 10). `w_l`, `w_e`: [D // 8, D], or None for the identity."""
    images = []
    for b in range(len(features[0])):
        rows = []
        for left_BD in features:
            left = left_BD[b] if w_l is None else torch.stack([(row_D * left_BD[b]).sum() for row_D in w_l])
            row = []
            for right_BD in features:
                right = right_BD[b] if w_e is None else torch.stack([(row_D * right_BD[b]).sum() for row_D in w_e])
                row.append((left * right).sum())
            rows.append(torch.stack(row))
        images.append(torch.stack(rows))
    return softmax_of_scores(torch.stack(images))


def mixture(weights_BA: Tensor, ingredients: Sequence[Tensor]) -> Tensor:
    """sum_b alpha_b x_b, image by image: [B, C]."""
    rows = []
    for image in range(len(weights_BA)):
        row_C = torch.zeros_like(ingredients[0][image])
        for weight, ingredient_BC in zip(weights_BA[image], ingredients, strict=True):
            row_C = row_C + weight * ingredient_BC[image]
        rows.append(row_C)
    return torch.stack(rows)


def okddip_weights(
    peer_targets: str,
    features: Sequence[Tensor],
    w_l: Tensor | None,
    w_e: Tensor | None,
    scores_BAA: Tensor | None,
    *,
    detach_features: bool = False,
) -> Tensor:
    """alpha [B, A, A]. `features`: the peers', without the leader's. `scores_BAA`: the random numbers of "random"."""
    num_peers, num_images = len(features), len(features[0])
    if detach_features:
        features = [features_BD.detach() for features_BD in features]
    if peer_targets == "attention":
        return attention(features, w_l, w_e)
    if peer_targets == "symmetric":
        return attention(features, None, None)
    if peer_targets == "random":
        assert scores_BAA is not None
        return softmax_of_scores(scores_BAA)
    assert peer_targets == "mean"
    return torch.full((num_images, num_peers, num_peers), 1 / num_peers, dtype=torch.float64)


def okddip_terms(
    logits_SBC: Tensor,
    features: Sequence[Tensor],
    labels: Sequence[int],
    *,
    temperature: float,
    mix: str,
    target_gradient: str,
    peer_targets: str,
    leader: bool,
    w_l: Tensor | None = None,
    w_e: Tensor | None = None,
    scores_BAA: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """OKDDip's terms, unweighted (Chen et al. 2020, Eqs. 5 to 8); the leader, where there is one, stands last."""
    num_peers = len(logits_SBC) - 1 if leader else len(logits_SBC)
    peers = [logits_SBC[a] for a in range(num_peers)]
    in_probabilities = mix == "probabilities"
    kl = kl_from_probabilities if in_probabilities else kl_divergence
    ingredients = [softened(z_BC, temperature) for z_BC in peers] if in_probabilities else peers
    terms = {"cross_entropy": sum_of_cross_entropies(logits_SBC, labels, label_smoothing)}

    if peer_targets == "entropy":
        penalty = zero()
        for z_BC in peers:
            penalty = penalty - temperature**2 * entropy(z_BC, temperature)
        terms["confidence_penalty"] = penalty
    else:
        attention_only = target_gradient == "attention-only"
        alpha_BAA = okddip_weights(
            peer_targets, features[:num_peers], w_l, w_e, scores_BAA, detach_features=attention_only
        )
        mixed = [x_BC.detach() for x_BC in ingredients] if attention_only else ingredients
        among_peers = zero()
        for a in range(num_peers):
            among_peers = among_peers + temperature**2 * kl(mixture(alpha_BAA[:, a], mixed), peers[a], temperature)
        terms["peer_distillation"] = among_peers

    if leader:
        target_BC = mean_of_logits(ingredients)
        if target_gradient != "full":
            target_BC = target_BC.detach()
        terms["leader_distillation"] = temperature**2 * kl(target_BC, logits_SBC[num_peers], temperature)
    return terms


def expected_random_distillation(height: float, temperature: float) -> float:
    """What "random" gives on average for two peers and two classes with logits (height, 0) and (0, 0).

    alpha_a1 = 1 / (1 + exp(n_2 - n_1)) with n_2 - n_1 of variance 2. Logits are mixed: t_a is the softmax of
    (alpha_a1 height / T, 0). Peer 1 compares it with the softmax of (height / T, 0), peer 2 with (1/2, 1/2).
    """
    difference = np.linspace(-12.0, 12.0, 20_001)
    density = np.exp(-(difference**2) / 4.0) / np.sqrt(4.0 * pi)

    def on_first(logit: np.ndarray | float) -> np.ndarray:
        return np.asarray(1.0 / (1.0 + np.exp(-logit)))

    target = on_first(1.0 / (1.0 + np.exp(-difference)) * height / temperature)
    values = np.zeros_like(target)
    for student in (on_first(height / temperature), np.asarray(0.5)):
        values += target * np.log(target / student) + (1 - target) * np.log((1 - target) / (1 - student))
    return float(temperature**2 * np.sum(values * density) * (difference[1] - difference[0]))


# The teacher


def teacher_term(teacher_BC: Tensor, logits_SBC: Tensor, temperature: float) -> Tensor:
    """T^2 sum_i KL(softmax(teacher / T) || softmax(z_i / T)) over all students; the teacher is a constant."""
    total = zero()
    for logits_BC in logits_SBC:
        total = total + temperature**2 * kl_divergence(teacher_BC.detach().double(), logits_BC, temperature)
    return total

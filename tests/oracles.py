"""The losses once more, written from the mathematics alone, in float64, to judge the implementations by.

Nothing here imports distilkit, and no ready-made loss, softmax or batch norm of torch is used: students, images and
classes are walked through in plain loops, so that a factor or an axis that is wrong has nowhere to hide.
The first half gives values (gradients by autograd), the second half ONE's gradients derived on paper, in numpy.

Shape suffixes: S students, B images, C classes, D inputs of the gate.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1


# Values


def log_softmax(values_C: Tensor) -> Tensor:
    """log q_c = z_c - log sum_k exp z_k, of one image; the largest is taken out first so that exp cannot overflow."""
    shifted_C = values_C - values_C.detach().max()
    return shifted_C - torch.log(torch.exp(shifted_C).sum())


def target_distribution(label: int, num_classes: int, label_smoothing: float) -> list[float]:
    """(1 - s) on the label, and s / C on every class, the label's own included."""
    return [(1.0 - label_smoothing) * (c == label) + label_smoothing / num_classes for c in range(num_classes)]


def cross_entropy(logits_BC: Tensor, labels: Sequence[int], label_smoothing: float = 0.0) -> Tensor:
    """Mean over images of -sum_c target_c log q_c."""
    num_images, num_classes = logits_BC.shape
    total = torch.zeros((), dtype=torch.float64)
    for b in range(num_images):
        log_q_C = log_softmax(logits_BC[b])
        for c, target in enumerate(target_distribution(labels[b], num_classes, label_smoothing)):
            total = total - target * log_q_C[c]
    return total / num_images


def kl_divergence(target_BC: Tensor, student_BC: Tensor, temperature: float) -> Tensor:
    """Mean over images of KL(softmax(target / T) || softmax(student / T)), without the factor T^2."""
    num_images = target_BC.shape[0]
    total = torch.zeros((), dtype=torch.float64)
    for b in range(num_images):
        log_p_C = log_softmax(target_BC[b] / temperature)
        log_q_C = log_softmax(student_BC[b] / temperature)
        for log_p, log_q in zip(log_p_C, log_q_C, strict=True):
            total = total + torch.exp(log_p) * (log_p - log_q)
    return total / num_images


def pooled(trunk: Tensor) -> Tensor:
    """The mean over rows and columns of [B, D, H, W]: [B, D]."""
    _, _, height, width = trunk.shape
    total = torch.zeros(trunk.shape[:2], dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            total = total + trunk[:, :, row, column]
    return total / (height * width)


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for tensor in tensors:
        total = total + tensor
    return total / len(tensors)


class Gate(NamedTuple):
    """g = softmax(ReLU(BN(FC(x)))): its parameters, under the names they have in the network, and BN's memory.

    `fc_weight` is [S, D], the others [S].
    """

    fc_weight: Tensor
    fc_bias: Tensor
    bn_weight: Tensor
    bn_bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def scores(self, input_BD: Tensor) -> Tensor:
        """FC: [B, S]."""
        num_images, num_students = len(input_BD), len(self.fc_weight)
        return torch.stack(
            [
                torch.stack([(self.fc_weight[s] * input_BD[b]).sum() + self.fc_bias[s] for s in range(num_students)])
                for b in range(num_images)
            ]
        )

    def weights(self, input_BD: Tensor, training: bool) -> Tensor:
        """g [B, S]. Training: BN with the batch's mean and its variance over B, not over B - 1."""
        scores_BS = self.scores(input_BD)
        num_images, num_students = scores_BS.shape
        columns = []
        for s in range(num_students):
            mean, variance = self.running_mean[s], self.running_var[s]
            if training:
                mean = scores_BS[:, s].sum() / num_images
                variance = ((scores_BS[:, s] - mean) ** 2).sum() / num_images
            normalised_B = (scores_BS[:, s] - mean) / torch.sqrt(variance + BATCH_NORM_EPS)
            scaled_B = self.bn_weight[s] * normalised_B + self.bn_bias[s]
            columns.append(torch.where(scaled_B > 0, scaled_B, torch.zeros_like(scaled_B)))
        rectified_BS = torch.stack(columns, dim=1)
        return torch.stack([torch.exp(log_softmax(rectified_BS[b])) for b in range(num_images)])

    def running_statistics_after(self, input_BD: Tensor) -> tuple[Tensor, Tensor]:
        """BN's memory after one training batch: the remembered variance is the one over B - 1."""
        scores_BS = self.scores(input_BD).detach()
        num_images = len(scores_BS)
        mean_S = scores_BS.sum(0) / num_images
        variance_S = ((scores_BS - mean_S) ** 2).sum(0) / (num_images - 1)
        keep = 1.0 - BATCH_NORM_MOMENTUM
        return (
            keep * self.running_mean + BATCH_NORM_MOMENTUM * mean_S,
            keep * self.running_var + BATCH_NORM_MOMENTUM * variance_S,
        )


def gated_ensemble(logits_SBC: Tensor, weights_BS: Tensor) -> Tensor:
    """z_e = sum_i g_i z_i, image by image (Lan et al. 2018, Eq. 3)."""
    num_students, num_images, _ = logits_SBC.shape
    rows = []
    for b in range(num_images):
        row_C = torch.zeros_like(logits_SBC[0, b])
        for i in range(num_students):
            row_C = row_C + weights_BS[b, i] * logits_SBC[i, b]
        rows.append(row_C)
    return torch.stack(rows)


def sum_of_cross_entropies(logits_SBC: Tensor, labels: Sequence[int], label_smoothing: float = 0.0) -> Tensor:
    """sum_i CE(z_i, y)."""
    total = torch.zeros((), dtype=torch.float64)
    for logits_BC in logits_SBC:
        total = total + cross_entropy(logits_BC, labels, label_smoothing)
    return total


def one_terms(
    logits_SBC: Tensor,
    labels: Sequence[int],
    weights_BS: Tensor | None,
    *,
    temperature: float,
    detach_target: bool,
    distillation: bool,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """ONE's terms, unweighted (Lan et al. 2018, Eq. 7). `weights_BS`: the gate's, or None for the plain mean."""
    num_students, num_images, _ = logits_SBC.shape
    terms = {"cross_entropy": sum_of_cross_entropies(logits_SBC, labels, label_smoothing)}
    if num_students == 1:
        return terms
    if weights_BS is None:
        weights_BS = torch.full((num_images, num_students), 1.0 / num_students, dtype=torch.float64)
    ensemble_BC = gated_ensemble(logits_SBC, weights_BS)
    terms["ensemble_cross_entropy"] = cross_entropy(ensemble_BC, labels, label_smoothing)
    if distillation:
        target_BC = ensemble_BC.detach() if detach_target else ensemble_BC
        total = torch.zeros((), dtype=torch.float64)
        for logits_BC in logits_SBC:
            total = total + temperature**2 * kl_divergence(target_BC, logits_BC, temperature)
        terms["distillation"] = total
    return terms


def weighted_total(terms: dict[str, Tensor], ramp: float) -> Tensor:
    """cross_entropy + ensemble_cross_entropy + w distillation."""
    total = torch.zeros((), dtype=torch.float64)
    for name, term in terms.items():
        total = total + (ramp * term if name == "distillation" else term)
    return total


# Gradients, derived on paper


def softmax_rows(values: Array) -> Array:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def one_gradients(
    logits_SBC: Array,
    labels: Sequence[int],
    gate: dict[str, Array] | None,
    input_BD: Array,
    *,
    temperature: float,
    ramp: float,
    detach_target: bool,
    training: bool,
    label_smoothing: float = 0.0,
) -> dict[str, Array]:
    """d total / d each tensor for S > 1 with distillation, by the chain rule on paper.

    `gate`: the parameters and running statistics by `Gate`'s field names, or None for the plain mean. `input_BD`:
    what enters the gate. Returns "logits" [S, B, C], "input" [B, D], and, with a gate, one entry per parameter.

    With t the (smoothed) label distribution, q = softmax(z), p = softmax(z_e / T), u_i = log p - log q'_i:
        d CE(z, y) / dz              = (q - t) / B
        d T^2 KL(p || q'_i) / dz_i   = T^2 (1/T) (q'_i - p) / B = T (q'_i - p) / B
        d T^2 KL(p || q'_i) / dz_e   = T p (u_i - KL_i) / B        only where the target is not detached: from
                                       dKL/dp_c = u_ic + 1 and dp_c/dz_ek = p_c (delta_ck - p_k) / T; the 1 drops out
        d z_e / dz_i = g_i,   d z_e / dg_i = z_i
        d g_i / dr_j = g_i (delta_ij - g_j)
        ReLU passes where its input is positive
        batch norm, n = (f - mean f) / sqrt(var f + eps):  df = (dn - mean dn - n mean(n dn)) / sqrt(var f + eps)
    """
    S, B, C = logits_SBC.shape
    T = temperature
    t_BC = np.array([target_distribution(label, C, label_smoothing) for label in labels])

    if gate is None:
        g_BS = np.full((B, S), 1.0 / S)
    else:
        f_BS = input_BD @ gate["fc_weight"].T + gate["fc_bias"]
        mean_S = f_BS.mean(axis=0) if training else gate["running_mean"]
        var_S = f_BS.var(axis=0) if training else gate["running_var"]
        inverse_S = 1.0 / np.sqrt(var_S + BATCH_NORM_EPS)
        n_BS = (f_BS - mean_S) * inverse_S
        a_BS = gate["bn_weight"] * n_BS + gate["bn_bias"]
        g_BS = softmax_rows(np.maximum(a_BS, 0.0))

    ensemble_BC = np.einsum("bs,sbc->bc", g_BS, logits_SBC)
    p_BC = softmax_rows(ensemble_BC / T)
    d_ensemble_BC = (softmax_rows(ensemble_BC) - t_BC) / B
    d_logits_SBC = np.zeros_like(logits_SBC)
    for i in range(S):
        q_BC = softmax_rows(logits_SBC[i] / T)
        d_logits_SBC[i] += (softmax_rows(logits_SBC[i]) - t_BC) / B
        d_logits_SBC[i] += ramp * T * (q_BC - p_BC) / B
        if not detach_target:
            u_BC = np.log(p_BC) - np.log(q_BC)
            kl_B1 = (p_BC * u_BC).sum(axis=1, keepdims=True)
            d_ensemble_BC += ramp * T * p_BC * (u_BC - kl_B1) / B
    for i in range(S):
        d_logits_SBC[i] += g_BS[:, i : i + 1] * d_ensemble_BC

    gradients: dict[str, Any] = {"logits": d_logits_SBC, "input": np.zeros_like(input_BD)}
    if gate is not None:
        d_g_BS = np.einsum("sbc,bc->bs", logits_SBC, d_ensemble_BC)
        d_a_BS = g_BS * (d_g_BS - (g_BS * d_g_BS).sum(axis=1, keepdims=True)) * (a_BS > 0)
        d_n_BS = d_a_BS * gate["bn_weight"]
        if training:
            d_f_BS = inverse_S * (d_n_BS - d_n_BS.mean(axis=0) - n_BS * (n_BS * d_n_BS).mean(axis=0))
        else:
            d_f_BS = inverse_S * d_n_BS
        gradients |= {
            "fc_weight": d_f_BS.T @ input_BD,
            "fc_bias": d_f_BS.sum(axis=0),
            "bn_weight": (d_a_BS * n_BS).sum(axis=0),
            "bn_bias": d_a_BS.sum(axis=0),
            "input": d_f_BS @ gate["fc_weight"],
        }
    return gradients

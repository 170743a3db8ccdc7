"""The two terms that the methods share, vectorised over students.

Shape suffixes: S students, B images, C classes. Everything is computed in float32 or wider, whatever autocast says:
log-softmax in bfloat16 has three significant digits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits_SBC: Tensor, labels_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels: mean over images, **sum** over students (Lan et al. 2018, Eq. 6, first term).

    `logits_SBC`: logits. `labels_B`: class indices, int64 [B], or the classes' shares [B, C] of mixed images, which sum
    to one. `label_smoothing` spreads that share of either evenly over all classes. Returns a scalar, nats.
    """
    students, logits = logits_SBC.shape[0], wide(logits_SBC).flatten(0, 1)
    if labels_B.is_floating_point():
        labels = labels_B.to(logits.dtype).repeat(students, 1)
    else:
        labels = labels_B.repeat(students)
    mean = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return students * mean


def distillation(target: Tensor, logits_SBC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(logits / T)): mean over images, **sum** over students.

    `target`: logits of the target, first argument of the KL (Lan et al. 2018, Eq. 5): [B, C] where all students share
    one, [S, B, C] where each has its own. A target that is known as probabilities t is given as T log t. It keeps its
    gradient, so detach it where none may cross. T^2 keeps the gradient's size independent of the temperature (Hinton
    et al. 2015, section 2). Returns a scalar, nats.
    """
    target = F.log_softmax(wide(target) / temperature, dim=-1)
    log_q_SBC = F.log_softmax(wide(logits_SBC) / temperature, dim=-1)
    kl_SBC = F.kl_div(log_q_SBC, target.expand_as(log_q_SBC), reduction="none", log_target=True)
    return temperature**2 * kl_SBC.sum() / logits_SBC.shape[1]


def leave_one_out_mean(logits_SBC: Tensor) -> Tensor:
    """For each student the mean of all the others' logits, [S, B, C]; needs two students or more."""
    students, logits_SBC = logits_SBC.shape[0], wide(logits_SBC)
    return (logits_SBC.sum(0, keepdim=True) - logits_SBC) / (students - 1)


def wide(logits: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 if they are: what log-softmax needs under autocast."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()

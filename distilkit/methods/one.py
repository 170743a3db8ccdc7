"""`one`: Knowledge Distillation by On-the-fly Native Ensemble (Lan, Zhu, Gong; NeurIPS 2018, arXiv 1806.04606).

Several branches on a shared trunk. A gate, fed by the trunk, weighs the branches' logits into one ensemble, which is
trained as a classifier and at the same time teaches every branch:

    g   = softmax(ReLU(BN(FC(pool(trunk)))))                         the gate, [B, S]
    z_e = sum_i g_i z_i                                              Eq. 3, the native ensemble
    L   = sum_i CE(z_i, y) + CE(z_e, y) + w T^2 sum_i KL(q'_e || q'_i)    Eqs. 4-7

with q' = softmax(z / T). The ramp-up weight w is not in the paper's equations; the authors' code has it.

Shape suffixes: S students, B images, C classes, D channels of the gate's input.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distilkit.methods.base import DistillationOptions, GroupKind, GroupOutput, GroupShape, Method, MethodLosses
from distilkit.methods.losses import cross_entropy, distillation, wide
from distilkit.methods.registry import register
from distilkit.models.pooling import mean_over_positions


class OneOptions(DistillationOptions):
    """Keys of `[method]` for `one`; the defaults are the authors' code."""

    distillation: bool = Field(True, description="Let the ensemble teach the students; `false` leaves the term out.")
    gate: bool = Field(
        True, description="Weigh the students image by image; `false` takes the mean of their logits as the ensemble."
    )
    detach_target: bool = Field(
        True,
        description="Let the distillation term train the students alone; `false`, which needs `distillation` and "
        "`gate`, lets its gradient into the gate too and, through the ensemble, into all students.",
    )

    default_students: ClassVar[int] = 3

    def faults(self, kind: GroupKind, students: int) -> Iterator[tuple[str, str, str | None]]:
        """A single student has no ensemble to switch off parts of; a target needs a distillation to be detached."""
        if students == 1 and not (self.distillation and self.gate):
            yield (
                "students",
                "an ablation of 'one' needs at least 2 students; with 1 there is neither gate nor distillation",
                "set group.students = 3, or use method 'baseline'",
            )
        if not self.detach_target and not (self.distillation and self.gate):
            # Without a gate the KL's gradient through the mean of logits is zero: the mean minimises the sum of KLs.
            yield (
                "detach_target",
                "detach_target = false changes nothing unless distillation and gate are both on",
                "leave detach_target out",
            )


class Gate(nn.Module):
    """Weights of the branches for every image (Lan et al. 2018, section 3.1): FC, batch norm, ReLU, softmax.

    Because of the ReLU no logit of the softmax is negative, so that no branch can be shut out entirely.
    """

    def __init__(self, width: int, students: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, students)
        self.bn = nn.BatchNorm1d(students)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Pooled features [B, D] -> weights [B, S], each row summing to one."""
        return F.softmax(F.relu(self.bn(self.fc(pooled_BD))), dim=-1)


@register("one", OneOptions)
class One(Method):
    """ONE over a group of branches, or of whole networks (the paper's ablation without sharing).

    `gate = false` takes the plain mean of logits as the ensemble; `distillation = false` leaves out the KL.
    `detach_target = true` (the ONE authors' code): branches learn from the KL, the gate learns from CE(z_e, y) alone.
    `false` (the ONE inside OKDDip's code): the KL's gradient also enters the gate and, through z_e, all branches.
    A group of one is the plain baseline.
    """

    def __init__(self, options: OneOptions, shape: GroupShape, label_smoothing: float = 0.0) -> None:
        super().__init__(options, shape, label_smoothing)
        self.trunk_channels = shape.trunk_channels
        # Not to be read off the features: where a network is traced their sizes are no plain numbers.
        self.widths_differ = len(set(shape.feature_widths)) > 1
        self.temperature = options.temperature
        self.distils = options.distillation
        self.detach_target = options.detach_target
        students = len(shape.members)
        self.gate = Gate(_gate_width(shape), students) if options.gate and students > 1 else None
        self.ensemble_is_learned = self.gate is not None
        self.ensemble_name = None if students == 1 else "gated" if options.gate else "mean_of_logits"

    @staticmethod
    def summed_over(members: tuple[str, ...]) -> dict[str, int]:
        """The ensemble is one."""
        return {"ensemble_cross_entropy": 1}

    def forward(self, outputs: GroupOutput, labels_B: Tensor, ramp: float | Tensor) -> MethodLosses:
        """Eq. 7 for one batch; `ramp` is the weight w of the distillation term. Terms are unweighted, in nats."""
        terms = {"cross_entropy": cross_entropy(outputs.logits_SBC, labels_B, self.label_smoothing)}
        total = terms["cross_entropy"]
        if len(outputs.members) == 1:
            return MethodLosses(total, terms)
        ensemble_BC = self.ensemble(outputs)
        terms["ensemble_cross_entropy"] = cross_entropy(ensemble_BC[None], labels_B, self.label_smoothing)
        total = total + terms["ensemble_cross_entropy"]
        if self.distils:
            target_BC = ensemble_BC.detach() if self.detach_target else ensemble_BC
            terms["distillation"] = distillation(target_BC, outputs.logits_SBC, self.temperature)
            total = total + ramp * terms["distillation"]
        return MethodLosses(total, terms)

    def ensemble(self, outputs: GroupOutput) -> Tensor:
        """z_e [B, C] (Eq. 3), ONE-E when deployed; the mean of logits without a gate."""
        if self.gate is None:
            return wide(outputs.logits_SBC).mean(0)
        gate_BS = self.weights(outputs)["gate"]
        # A product and a sum, not a matmul: autocast would run that one in bfloat16.
        return (gate_BS.t().unsqueeze(-1) * outputs.logits_SBC).sum(0)

    def weights(self, outputs: GroupOutput) -> dict[str, Tensor]:
        """`gate`: the weights of the branches for each image, [B, S]; nothing without a gate."""
        if self.gate is None:
            return {}
        return {"gate": self.gate(_gate_input(outputs, self.trunk_channels, self.widths_differ, self.training))}


def _gate_input(outputs: GroupOutput, channels: int | None, widths_differ: bool, training: bool) -> Tensor:
    """Pooled features [B, D] that all branches share.

    Where nothing is shared neither paper nor code defines the gate's input; our choice is what the students hand to
    their classifiers: the mean over students or, where their widths differ, so that there is none, all of it side by
    side.
    """
    if outputs.trunk is None:
        return torch.cat(outputs.features, dim=1) if widths_differ else torch.stack(outputs.features).mean(0)
    trunk = outputs.trunk
    # Maps [B, D, H, W], tokens [B, N, D], maps with channels last [B, H, W, D], or vectors [B, D].
    dimension = 1 if trunk.dim() == 4 and trunk.shape[1] == channels else trunk.dim() - 1
    if training and trunk.dim() == 4 and dimension == 1:
        return mean_over_positions(trunk)
    others = [d for d in range(1, trunk.dim()) if d != dimension]
    return trunk.mean(others) if others else trunk


def _gate_width(shape: GroupShape) -> int:
    if shape.trunk_channels is not None:
        return shape.trunk_channels
    widths = shape.feature_widths
    return widths[0] if len(set(widths)) == 1 else sum(widths)

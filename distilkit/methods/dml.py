"""`dml`: Deep Mutual Learning (Zhang, Xiang, Hospedales, Lu; CVPR 2018, arXiv 1706.00384).

Students that teach one another: each learns from the labels and from every other's predictions,

    L = sum_i [ CE(z_i, y) + w / (S - 1) sum_{j != i} T^2 KL(q'_j || q'_i) ]        Eqs. 6-8 for S = 2, 9 for more

The paper updates its networks in turn, with T = 1 and targets that are constants. Here all are updated in one step,
from detached targets. The DML inside OKDDip's code has T = 3 and one term for each student, whose target is the mean of
the others' logits, with its gradient: `target = "leave-one-out-mean"`, `detach_targets = false`.
"""

from itertools import permutations
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from distilkit.methods.base import (
    DistillationOptions,
    GroupKind,
    GroupOutput,
    GroupShape,
    Method,
    MethodLosses,
    RampupEpochs,
)
from distilkit.methods.losses import cross_entropy, distillation, leave_one_out_mean
from distilkit.methods.registry import register


class DmlOptions(DistillationOptions):
    """`dml`: students that teach one another."""

    rampup_epochs: RampupEpochs = 0
    target: Annotated[
        Literal["pairwise", "leave-one-out-mean"],
        Field(description="Learn from each other student, or from the mean of all others' logits."),
    ] = "pairwise"
    detach_targets: Annotated[bool, Field(description="Whether targets are constants.")] = True

    default_kind: ClassVar[GroupKind] = "networks"
    default_students: ClassVar[int] = 2
    min_students: ClassVar[int] = 2


@register("dml", DmlOptions)
class Dml(Method):
    """Mutual learning among all students; their ensemble is the mean of their logits."""

    ensemble_name = "mean_of_logits"

    def __init__(self, options: DmlOptions, shape: GroupShape, label_smoothing: float = 0.0) -> None:
        super().__init__(options, shape, label_smoothing)
        self.options = options

    def forward(self, outputs: GroupOutput, labels_B: Tensor, ramp: float | Tensor) -> MethodLosses:
        """The sum above for one batch; `ramp` is w. Terms are unweighted, in nats."""
        logits_SBC = outputs.logits_SBC
        targets_SBC = logits_SBC.detach() if self.options.detach_targets else logits_SBC
        labels = cross_entropy(logits_SBC, labels_B, self.label_smoothing)
        if self.options.target == "pairwise":
            teachers, students = zip(*permutations(range(len(logits_SBC)), 2), strict=True)
            pairs = distillation(targets_SBC[list(teachers)], logits_SBC[list(students)], self.options.temperature)
            mutual = pairs / (len(logits_SBC) - 1)
        else:
            mutual = distillation(leave_one_out_mean(targets_SBC), logits_SBC, self.options.temperature)
        return MethodLosses(labels + ramp * mutual, {"cross_entropy": labels, "distillation": mutual})

    def ensemble(self, outputs: GroupOutput) -> Tensor:
        """Mean of the students' logits, [B, C]."""
        return outputs.logits_SBC.mean(0)

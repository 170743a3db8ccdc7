"""`baseline`: one network, cross-entropy, nothing else; `kd`: the same with a teacher. `independent`: several, alone.

What online distillation is compared with. With branches, `independent` students still share the trunk, and so learn
from one another's gradients there (Chen et al. 2020, "Ind", Tables 2 and 3).
"""

from typing import ClassVar

from torch import Tensor

from distilkit.methods.base import GroupKind, GroupOutput, GroupShape, Method, MethodLosses, MethodOptions
from distilkit.methods.losses import cross_entropy
from distilkit.methods.registry import register


class BaselineOptions(MethodOptions):
    """`baseline` has no keys of its own."""

    default_kind: ClassVar[GroupKind] = "networks"
    default_students: ClassVar[int] = 1
    max_students: ClassVar[int | None] = 1


class IndependentOptions(MethodOptions):
    """`independent` has no keys of its own."""


class KdOptions(BaselineOptions):
    """`kd` (Hinton et al. 2015) is the baseline with a `[teacher]`, whose section has the keys of its own."""

    needs_teacher: ClassVar[bool] = True


@register("baseline", BaselineOptions)
@register("independent", IndependentOptions)
@register("kd", KdOptions)
class Independent(Method):
    """Sum over students of the cross-entropy with the labels; the ensemble is the mean of their logits."""

    def __init__(self, options: MethodOptions, shape: GroupShape, label_smoothing: float = 0.0) -> None:
        super().__init__(options, shape, label_smoothing)
        self.ensemble_name = "mean_of_logits" if len(shape.members) > 1 else None

    def forward(self, outputs: GroupOutput, labels_B: Tensor, ramp: float | Tensor) -> MethodLosses:
        """Sum over students of CE(z_i, y), nats; there is nothing for `ramp` to weigh."""
        loss = cross_entropy(outputs.logits_SBC, labels_B, self.label_smoothing)
        return MethodLosses(loss, {"cross_entropy": loss})

    def ensemble(self, outputs: GroupOutput) -> Tensor:
        """Mean of the students' logits, [B, C]."""
        return outputs.logits_SBC.mean(0)

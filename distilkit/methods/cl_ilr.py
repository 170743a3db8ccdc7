"""`cl-ilr`: Collaborative Learning with intermediate-layer rescaling (Song, Chai; NeurIPS 2018, arXiv 1805.11761).

Branches on a trunk; each learns from the labels and from the mean of the other branches' logits,

    L = sum_i [ a CE(z_i, y) + b w T^2 KL(t_i || q'_i) ],    t_i = softmax(mean_{j != i} z_j / T)

The gradients of S branches add up in the trunk, so there, once, they are divided by S (the forward is the identity).
OKDDip's code has a = b = 1, T = 3, and targets that keep their gradient: the defaults. The original has the weights
a = b = 0.5 (its beta) and T = 2.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from distilkit.methods.base import DistillationOptions, GroupKind, GroupOutput, GroupShape, Method, MethodLosses
from distilkit.methods.losses import cross_entropy, distillation, leave_one_out_mean
from distilkit.methods.registry import register


class ClIlrOptions(DistillationOptions):
    """`cl-ilr`: branches that learn from the mean of the others; the trunk's gradient is rescaled."""

    label_weight: Annotated[float, Field(ge=0, description="Weight of the cross-entropy; the original has 0.5.")] = 1.0
    distillation_weight: Annotated[float, Field(ge=0, description="Weight of the KL; the original has 0.5.")] = 1.0
    detach_target: Annotated[bool, Field(description="Whether targets are constants.")] = False

    default_students: ClassVar[int] = 3
    min_students: ClassVar[int] = 2
    allowed_kinds: ClassVar[tuple[GroupKind, ...]] = ("branches",)

    def faults(self, kind: GroupKind, students: int) -> Iterator[tuple[str, str, str | None]]:
        """Something must be learned from."""
        if not (self.label_weight or self.distillation_weight):
            yield (
                "label_weight",
                "label_weight and distillation_weight are both 0, so that nothing is learned",
                "leave label_weight out",
            )


@register("cl-ilr", ClIlrOptions)
class ClIlr(Method):
    """Collaborative learning of branches; the ensemble is the mean of their logits."""

    ensemble_name = "mean_of_logits"

    def __init__(self, options: ClIlrOptions, shape: GroupShape, label_smoothing: float = 0.0) -> None:
        super().__init__(options, shape, label_smoothing)
        self.options = options

    def forward(self, outputs: GroupOutput, labels_B: Tensor, ramp: float | Tensor) -> MethodLosses:
        """The sum above for one batch; `ramp` is w. Terms are unweighted, in nats. Rescales the trunk's gradient."""
        logits_SBC, students = outputs.logits_SBC, len(outputs.members)
        if outputs.trunk is not None and outputs.trunk.requires_grad and not hasattr(outputs.trunk, "is_rescaled"):
            # The hook is called once, with the sum of what all branches send back. Marked, so that looking at the
            # losses of the same outputs twice does not divide twice.
            outputs.trunk.is_rescaled = True  # type: ignore[attr-defined]
            outputs.trunk.register_hook(lambda gradient: gradient / students)  # type: ignore[no-untyped-call]
        labels = cross_entropy(logits_SBC, labels_B, self.label_smoothing)
        target_SBC = leave_one_out_mean(logits_SBC.detach() if self.options.detach_target else logits_SBC)
        others = distillation(target_SBC, logits_SBC, self.options.temperature)
        total = self.options.label_weight * labels + self.options.distillation_weight * ramp * others
        return MethodLosses(total, {"cross_entropy": labels, "distillation": others})

    def ensemble(self, outputs: GroupOutput) -> Tensor:
        """Mean of the branches' logits, [B, C]."""
        return outputs.logits_SBC.mean(0)

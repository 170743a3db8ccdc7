"""Group and method in one module: the thing that trains, and the one that a distributed wrapper wraps."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from distilkit.groups.group import Group
from distilkit.methods.base import GroupOutput, Method
from distilkit.methods.losses import distillation


class LearnerOutput(NamedTuple):
    """`loss`: scalar, nats, minimised. `terms`: its unweighted parts. `logits_SBC`: the members' logits."""

    loss: Tensor
    terms: dict[str, Tensor]
    logits_SBC: Tensor


def classifiers(method: Method, members: tuple[str, ...]) -> list[str]:
    """What a learner can be evaluated as: its members, then the method's own ensemble where it has one."""
    return [*members, *([method.ensemble_name] if method.ensemble_name else [])]


def classifier_logits(method: Method, outputs: GroupOutput) -> Tensor:
    """The logits of `classifiers`, [S or S + 1, B, C]."""
    logits = outputs.logits_SBC
    return torch.cat([logits, method.ensemble(outputs)[None]]) if method.ensemble_name else logits


class Learner(nn.Module):
    """Images and labels in, losses out."""

    def __init__(self, group: Group, method: Method) -> None:
        super().__init__()
        self.group = group
        self.method = method

    @property
    def leader(self) -> str:
        """The member that is deployed."""
        return self.method.leader(self.group.members)

    def forward(
        self,
        images: Tensor,
        labels_B: Tensor,
        ramp: float | Tensor,
        teacher_logits: Tensor | None = None,
        teacher_weight: float = 1.0,
        teacher_temperature: float = 3.0,
    ) -> LearnerOutput:
        """`images`: uint8 or [0, 1], [B, channels, H, W]; `ramp`: weight of the method's distillation terms.

        `labels_B`: int64 [B], or where images are mixed the classes' shares [B, C].
        With `teacher_logits` [B, C] every student also learns from the teacher: w_t T^2 sum_i KL(q'_teacher || q'_i)
        is added (Hinton et al. 2015; Chen et al. 2020, "OKDDip + KD"), here and once, for any method; `ramp` does not
        weigh it. No gradient goes to the teacher.
        """
        outputs: GroupOutput = self.group(images)
        total, terms = self.method(outputs, labels_B, ramp)
        if teacher_logits is not None:
            taught = distillation(teacher_logits.detach(), outputs.logits_SBC, teacher_temperature)
            terms, total = {**terms, "teacher": taught}, total + teacher_weight * taught
        return LearnerOutput(total, terms, outputs.logits_SBC)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Members' logits [S, B, C] and the method's own ensemble's [B, C] (None where it has none)."""
        outputs: GroupOutput = self.group(images)
        ensemble = self.method.ensemble(outputs) if self.method.ensemble_name else None
        return outputs.logits_SBC, ensemble

"""What a group of students computes and what is known of its shape: the words that groups and methods share.

Shape suffixes: S students, B images, C classes, D features before the classifier.
"""

from typing import Literal, NamedTuple

from torch import Tensor

GroupKind = Literal["branches", "networks"]


class GroupOutput(NamedTuple):
    """What a group computes for one batch.

    `logits_SBC`: the students' logits, in the order of `members`. `features`: the input of each student's last
    linear layer, S tensors [B, D]. `trunk`: what the shared trunk hands to the branches, [B, ...], or None where
    nothing is shared. `members`: the students' names.
    """

    logits_SBC: Tensor
    features: tuple[Tensor, ...]
    trunk: Tensor | None
    members: tuple[str, ...]


class GroupShape(NamedTuple):
    """What a method must know of its group to build its own learnable parts.

    `trunk_channels`: channels of the trunk's output, None where nothing is shared. `feature_widths`: D of every
    student. `num_classes`: C.
    """

    kind: GroupKind
    members: tuple[str, ...]
    trunk_channels: int | None
    feature_widths: tuple[int, ...]
    num_classes: int

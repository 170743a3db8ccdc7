"""What every method works on and what it returns.

Shape suffixes: S students, B images, C classes, D features before the classifier.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from distilkit.groups.outputs import GroupKind, GroupOutput, GroupShape

__all__ = ["DistillationOptions", "GroupKind", "GroupOutput", "GroupShape", "Method", "MethodLosses", "MethodOptions"]

# A count of epochs, or a fraction of the run: see `recipe.resolve_epochs`.
Epochs = Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]


class MethodLosses(NamedTuple):
    """`total`: the weighted sum that is minimised, a scalar in nats. `terms`: what it is the sum of, unweighted."""

    total: Tensor
    terms: dict[str, Tensor]


class MethodOptions(BaseModel):
    """The keys a recipe's `[method]` section may have; each method adds its own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: str

    default_kind: ClassVar[GroupKind] = "branches"
    default_students: ClassVar[int] = 3
    allowed_kinds: ClassVar[tuple[GroupKind, ...]] = ("branches", "networks")
    min_students: ClassVar[int] = 1
    max_students: ClassVar[int | None] = None
    needs_teacher: ClassVar[bool] = False

    def faults(self, kind: GroupKind, students: int) -> Iterator[tuple[str, str, str | None]]:
        """Combinations that this method cannot do, beyond the class's limits: (setting, problem, hint).

        The setting is "kind", "students", or an option of the method's own.
        """
        return iter(())


RampupEpochs = Annotated[
    Epochs,
    Field(
        description="Epochs, or a fraction of the run, over which the distillation gains its full weight; 0 gives it "
        "from the start."
    ),
]


class DistillationOptions(MethodOptions):
    """The keys of a method whose students learn from softened predictions, with a weight that rises at first."""

    temperature: Annotated[float, Field(gt=0, description="Divides the logits of target and student.")] = 3.0
    rampup_epochs: RampupEpochs = 80 / 300  # as in the code of ONE and of OKDDip


class Method(nn.Module, ABC):
    """The loss over a group's outputs, with its own learnable parts and its own ensemble.

    It holds no clock: the ramp-up weight of its distillation terms is handed in. `label_smoothing` is the recipe's
    `train.label_smoothing`, for `losses.cross_entropy`.
    """

    ensemble_name: str | None = None
    """What the method's own ensemble is called in results; None where there is none (a single student)."""

    ensemble_is_learned: bool = False
    """Whether the ensemble needs the method's own parameters, which then are deployed with it."""

    def __init__(self, options: Any, shape: GroupShape, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    @staticmethod
    def member_names(options: Any, students: int) -> tuple[str, ...]:
        """The names of a group's members, in order."""
        return tuple(f"student_{i}" for i in range(students))

    @staticmethod
    def leader(members: tuple[str, ...]) -> str:
        """The member that is deployed."""
        return members[0]

    @staticmethod
    def peers(members: tuple[str, ...]) -> tuple[str, ...]:
        """The members whose diversity counts and whose predictions are averaged: all, unless a leader stands apart."""
        return members

    @abstractmethod
    def forward(self, outputs: GroupOutput, labels_B: Tensor, ramp: float | Tensor) -> MethodLosses:
        """Losses of one batch: means over images, sums over students.

        `labels_B`: int64 [B], or the classes' shares [B, C]; see `losses.cross_entropy`, which alone looks at them.
        """

    @abstractmethod
    def ensemble(self, outputs: GroupOutput) -> Tensor:
        """Logits [B, C] of the method's own ensemble; the single student's own where there is one."""

    @staticmethod
    def summed_over(members: tuple[str, ...]) -> dict[str, int]:
        """The terms that are no sum over all members, and over how many they are."""
        return {}

    def weights(self, outputs: GroupOutput) -> dict[str, Tensor]:
        """What the method itself computes for each image to weigh students, by name, [B, ...]; for looking at."""
        return {}

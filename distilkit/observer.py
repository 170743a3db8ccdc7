"""What a workflow tells while it works. It prints nothing itself; whoever calls it decides what is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainingPlan:
    """What is about to be trained. `start_step`: global steps done already, above 0 when resuming.

    `summed_over`: the losses that are no sum over all members, and over how many.
    """

    run: str
    method: str
    architecture: str
    members: Sequence[str]
    leader: str
    ensemble: str | None
    epochs: int
    steps_per_epoch: int
    start_step: int
    images: int
    device: str
    precision: str
    summed_over: Mapping[str, int] = field(default_factory=dict)


class Observer:
    """Hears everything, does nothing. Subclass what you want to show."""

    def note(self, message: str) -> None:
        """Something a person should know, one line."""

    def training_started(self, plan: TrainingPlan) -> None:
        """Before the first step."""

    def steps_finished(self, epoch: int, step_in_epoch: int, losses: Mapping[str, float]) -> None:
        """Some steps of epoch `epoch` (from 1) are done; `losses`: means by term over the epoch so far."""

    def epoch_finished(self, line: Mapping[str, Any]) -> None:
        """`line`: what was written to metrics.jsonl."""

    def training_finished(self) -> None:
        """After the last step, or when it was interrupted or failed."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Other long work: `done` of `total` parts of `what`."""

"""The run's clock as pure functions of epoch and step: nothing to save, nothing to restore."""

import itertools
import math

from distilkit.recipe import (
    CosineSection,
    OptimizerSection,
    ScheduleSection,
    SnapshotSection,
    StepSection,
    resolve_epochs,
)


def ramp(epoch: int, rampup_epochs: int) -> float:
    """Weight of the distillation terms after `epoch` whole epochs: exp(-5 (1 - min(e, R) / R)^2), 1 where R = 0.

    Constant within an epoch. Not in the papers' equations; the authors' code of ONE and OKDDip has it with R = 80 of
    300 epochs (after Laine & Aila 2017, who ramp so over 80 epochs).
    """
    if rampup_epochs == 0:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(epoch, rampup_epochs) / rampup_epochs) ** 2)


def learning_rate(
    optimizer: OptimizerSection, schedule: ScheduleSection, *, step: int, steps_per_epoch: int, epochs: int
) -> float:
    """The learning rate of global step `step` (counted from 0).

    `step`: lr times gamma for every milestone that has passed, in completed epochs. `cosine`: half a cosine from lr
    to `final_lr`, step by step, over what the warm-up leaves. A warm-up rises linearly, step by step, and its first
    step already has a rate above zero. `snapshot`: see `cycle_bounds`.
    """
    warmup_steps = resolve_epochs(schedule.warmup_epochs, epochs) * steps_per_epoch
    if step < warmup_steps:
        return optimizer.lr * (step + 1) / warmup_steps
    if isinstance(schedule, StepSection):
        epoch = step // steps_per_epoch
        passed = sum(epoch >= resolve_epochs(milestone, epochs) for milestone in schedule.milestones)
        return float(optimizer.lr * schedule.gamma**passed)
    if isinstance(schedule, CosineSection):
        progress = (step - warmup_steps) / max(1, epochs * steps_per_epoch - warmup_steps)
        return schedule.final_lr + (optimizer.lr - schedule.final_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if isinstance(schedule, SnapshotSection):
        first, last = cycle_bounds(step // steps_per_epoch, epochs, schedule.cycles)
        length = (last - first) * steps_per_epoch
        return optimizer.lr * 0.5 * (1.0 + math.cos(math.pi * (step - first * steps_per_epoch) / length))
    return optimizer.lr


def cycle_bounds(epoch: int, epochs: int, cycles: int) -> tuple[int, int]:
    """The epochs at which the cycle of `epoch` (from 0) begins and ends; cycles differ by one epoch at most.

    Snapshot ensembles (Huang et al. 2017): half a cosine from the full rate to 0 in each cycle, M cycles in the time
    of one training, the weights at the end of each kept.
    """
    edges = itertools.pairwise(cycle_edges(epochs, cycles))
    return next((first, last) for first, last in edges if first <= epoch < last)


def cycle_edges(epochs: int, cycles: int) -> list[int]:
    """Completed epochs at which the cycles begin and end: 0, the end of each."""
    return [epochs * cycle // cycles for cycle in range(cycles + 1)]

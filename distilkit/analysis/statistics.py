"""What several trainings say of one method, and of the difference between two.

The unit is a training: seeds differ, images do not. What the sampling of test images does to one training's error is
`metrics.wilson95`.
"""

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation (n - 1) of one figure over `count` trainings; `deviation` None for one training."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """The difference of two means with Welch's 95 % interval, in the figures' own unit.

    `low` and `high` are None where one side has a single training, or where neither side varies: nothing can be
    concluded then. `counts`: trainings on either side.
    """

    difference: float
    low: float | None
    high: float | None
    counts: tuple[int, int]

    @property
    def conclusive(self) -> bool:
        """Whether the interval is known and does not hold 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    @property
    def unknown(self) -> Literal["one training", "no spread"] | None:
        """Why there is no interval; None where there is one."""
        if min(self.counts) < 2:
            return "one training"
        return "no spread" if self.low is None else None


def spread(values: Sequence[float]) -> Spread:
    """Describe the figures of several trainings. Raises `ValueError` if there are none."""
    if not values:
        raise ValueError("no trainings")
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Mean of `ours` minus mean of `theirs`, with the interval of Welch's t test (unequal variances, two sides).

    No correction for there being several comparisons. Raises `ValueError` if either side is empty.
    """
    difference = spread(ours).mean - spread(theirs).mean
    counts = (len(ours), len(theirs))
    if min(counts) < 2 or (len(set(ours)) == 1 and len(set(theirs)) == 1):
        return Difference(difference, None, None, counts)
    # Imported here: it takes longer than most commands.
    from scipy import stats

    with warnings.catch_warnings():
        # One side without any variation is a fact here, no loss of precision.
        warnings.filterwarnings("ignore", message="Precision loss occurred", category=RuntimeWarning)
        interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(LEVEL)
    return Difference(difference, float(interval.low), float(interval.high), counts)

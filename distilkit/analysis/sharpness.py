"""Two numbers for a perturbation curve: the area under its rise, and how far it goes before it has risen by P points.

ONE (Lan et al. 2018, section 4.5) shows curves and no number; these are ours. Each is measured for every direction,
and its spread over directions says how far it can be trusted.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A figure over directions. `deviation`: the sample's, None for one direction. Values are infinite where one is."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]


def area(magnitudes: Sequence[float], curves: Sequence[Sequence[float]]) -> Spread:
    """Mean rise of each curve above its value at magnitude 0, over all magnitudes: the area divided by the range.

    `curves`: [directions][magnitudes], errors in percent; the result is in points. Trapezoids between the magnitudes.
    """
    values = []
    for curve in curves:
        points = [(magnitude, error - curve[0]) for magnitude, error in zip(magnitudes, curve, strict=True)]
        trapezoids = ((b - a) * (rise_a + rise_b) / 2 for (a, rise_a), (b, rise_b) in itertools.pairwise(points))
        values.append(sum(trapezoids) / (magnitudes[-1] - magnitudes[0]))
    return _spread(values)


def reach(magnitudes: Sequence[float], curves: Sequence[Sequence[float]], points: float) -> Spread:
    """The magnitude at which each curve first lies `points` above its value at 0; infinite where it never does.

    Between two magnitudes the curve is taken for a straight line. An error that is not finite counts as risen.
    """
    return _spread([_first_rise(magnitudes, curve, points) for curve in curves])


def _first_rise(magnitudes: Sequence[float], curve: Sequence[float], points: float) -> float:
    wanted = curve[0] + points
    for index in range(1, len(curve)):
        before, here = curve[index - 1], curve[index]
        if not math.isfinite(here):
            return magnitudes[index]
        if here >= wanted:
            share = (wanted - before) / (here - before)
            return magnitudes[index - 1] + share * (magnitudes[index] - magnitudes[index - 1])
    return math.inf


def _spread(values: Sequence[float]) -> Spread:
    finite = all(math.isfinite(value) for value in values)
    if len(values) < 2:
        return Spread(values[0], None, tuple(values))
    if not finite:
        # With an infinite value there is no mean to speak of; the median still stands.
        return Spread(statistics.median(values), None, tuple(values))
    return Spread(statistics.fmean(values), statistics.stdev(values), tuple(values))

"""From figures to places on a picture, and the round figures that an axis is divided at."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """`low`..`high` lies at `start`..`end`; `log`: decades are of one length."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a figure."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(scale: Scale, about: int, *, whole: bool = False) -> list[float]:
    """Round figures within the scale, some `about` of them; `whole`: whole numbers only."""
    if scale.log:
        decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), tuple(range(1, 10))):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [value for value in found if scale.low <= value <= scale.high]
            if len(found) >= 3:
                return found
        return found
    span = scale.high - scale.low
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)) if step != 2.5 else 5.0)
    first = math.ceil(scale.low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(scale.high / step + 1e-9) + 1)]


def written(value: float) -> str:
    """A figure on an axis: 25M, 0.05, 1,500."""
    size = abs(value)
    for letter, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if size >= unit:
            return f"{value / unit:.4g}{letter}"
    if size >= 10000:
        return f"{value / 1000:.4g}k"
    if size != 0 and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.6g}"

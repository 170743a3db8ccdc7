"""What `distilkit robustness` is asked to check: thresholds, from the command line or a TOML file, and their verdicts.

[[parameters]]                 # the mean rise of the test error at magnitude `at`, in points
at = 2.0
max_increase = 5.0

[[error]]                      # the test error itself, at magnitude 0, in percent
max_error = 10.0

[[sharpness]]                  # the magnitude at which it has risen by `rise` points, mean over directions
rise = 10.0
min_magnitude = 1.5

[[inputs]]                     # the rise of the test error on perturbed images
perturbation = "noise"
severity = 3
max_increase = 10.0
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from distilkit.analysis import corruption
from distilkit.analysis.sharpness import reach
from distilkit.errors import UserError, did_you_mean, nearest
from distilkit.reading import UnreadableError, read_toml

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Threshold(_Section):
    """The top-1 test error, mean over directions, may rise by at most `max_increase` points at magnitude `at`."""

    at: Positive
    max_increase: FiniteFloat

    def check(self, run: dict[str, Any]) -> dict[str, Any]:
        """The verdict on a run's curves."""
        at = run["magnitudes"].index(self.at)
        increases = [curve[at] - curve[run["magnitudes"].index(0.0)] for curve in run["curves"]["test"]]
        increase = statistics.fmean(increases)
        return {
            "kind": "parameters",
            "run": run["run"],
            "name": f"test error at d = {self.at:g}",
            "split": "test",
            "at": self.at,
            "max_increase": self.max_increase,
            "increase": increase,
            "largest_increase": max(increases),
            "message": f"the test error rises by {increase:.2f} points at d = {self.at:g}, mean over directions "
            f"({self.max_increase:g} are allowed)",
            "passed": math.isfinite(increase) and increase <= self.max_increase,
        }


class ErrorThreshold(_Section):
    """The test error of the model as it is, at magnitude 0, may be at most `max_error` percent."""

    max_error: Annotated[float, Field(ge=0, le=100)]

    def check(self, run: dict[str, Any]) -> dict[str, Any]:
        """The verdict on a run's curves, or where parameters stay on its images."""
        if "curves" in run:
            at = run["magnitudes"].index(0.0)
            error = statistics.fmean(curve[at] for curve in run["curves"]["test"])
        else:
            error = run["inputs"]["clean"]
        return {
            "kind": "error",
            "run": run["run"],
            "name": "test error at d = 0",
            "max_error": self.max_error,
            "error": error,
            "message": f"the test error is {error:.2f} % ({self.max_error:g} % are allowed)",
            "passed": math.isfinite(error) and error <= self.max_error,
        }


class SharpnessThreshold(_Section):
    """The test error may not have risen by `rise` points, mean over directions, before magnitude `min_magnitude`."""

    rise: Positive
    min_magnitude: Positive

    def check(self, run: dict[str, Any]) -> dict[str, Any]:
        """The verdict on a run's curves; raises `UserError` where they end before `min_magnitude`."""
        if run["magnitudes"][-1] < self.min_magnitude:
            raise UserError(
                f"min_magnitude = {self.min_magnitude:g} lies beyond the largest magnitude {run['magnitudes'][-1]:g}",
                f"--max-distance {self.min_magnitude:g}",
            )
        found = reach(run["magnitudes"], run["curves"]["test"], self.rise).mean
        where = f"at d = {found:.3g}" if math.isfinite(found) else f"nowhere up to d = {run['magnitudes'][-1]:g}"
        return {
            "kind": "sharpness",
            "run": run["run"],
            "name": f"magnitude of a rise by {self.rise:g} points",
            "rise": self.rise,
            "min_magnitude": self.min_magnitude,
            "magnitude": found,
            "message": f"the test error has risen by {self.rise:g} points {where}, mean over directions "
            f"({self.min_magnitude:g} or more is wanted)",
            "passed": found >= self.min_magnitude,
        }


class InputThreshold(_Section):
    """The test error on perturbed images may lie at most `max_increase` points above that on the images themselves."""

    perturbation: str
    severity: Annotated[int, Field(ge=1, le=corruption.SEVERITIES)]
    max_increase: FiniteFloat

    def check(self, run: dict[str, Any]) -> dict[str, Any]:
        """The verdict on a run's errors under perturbed images."""
        error = run["inputs"]["errors"][self.perturbation][self.severity - 1]
        increase = error - run["inputs"]["clean"]
        return {
            "kind": "inputs",
            "run": run["run"],
            "name": f"{self.perturbation}, severity {self.severity}",
            "perturbation": self.perturbation,
            "severity": self.severity,
            "max_increase": self.max_increase,
            "increase": increase,
            "message": f"the test error rises by {increase:.2f} points under {self.perturbation} of severity "
            f"{self.severity} ({self.max_increase:g} are allowed)",
            "passed": math.isfinite(increase) and increase <= self.max_increase,
        }


class Thresholds(_Section):
    """Everything that is checked."""

    error: tuple[ErrorThreshold, ...] = ()
    parameters: tuple[Threshold, ...] = ()
    sharpness: tuple[SharpnessThreshold, ...] = ()
    inputs: tuple[InputThreshold, ...] = ()

    @property
    def all(self) -> Sequence[ErrorThreshold | Threshold | SharpnessThreshold | InputThreshold]:
        """In the order of the kinds."""
        return (*self.error, *self.parameters, *self.sharpness, *self.inputs)

    def with_parameters(self, threshold: Threshold) -> "Thresholds":
        """One more, from the command line."""
        return self.model_copy(update={"parameters": (*self.parameters, threshold)})

    def with_error(self, threshold: ErrorThreshold) -> "Thresholds":
        """One more, from the command line."""
        return self.model_copy(update={"error": (*self.error, threshold)})


def read_thresholds(file: Path) -> Thresholds:
    """A thresholds file. Raises one `UserError` that names every fault by its key."""
    try:
        found = read_toml(file)
    except UnreadableError as error:
        if error.absent:
            raise UserError(f"there is no thresholds file {file}") from None
        raise UserError(f"the thresholds file {file} cannot be read: {error.reason}") from error
    kinds = Thresholds.model_fields
    if found and not any(nearest(key, kinds) for key in found):
        # Whatever it is, its keys are not for a message.
        raise UserError(
            f"{file} is no thresholds file: it has none of {', '.join(f'[[{kind}]]' for kind in kinds)}",
            "docs/robustness.md shows one",
        )
    try:
        thresholds = Thresholds.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{file}: {'; '.join(map(_fault, error.errors()))}", "docs/robustness.md shows one") from error
    for threshold in thresholds.inputs:
        check_kind(threshold.perturbation)
    if not thresholds.all:
        raise UserError(f"{file} holds no threshold", "docs/robustness.md shows one")
    return thresholds


def threshold_of_options(max_increase: float, at: float) -> Threshold:
    """--max-increase and --at. Raises `UserError` that names the option at fault."""
    if not math.isfinite(max_increase):
        raise UserError(f"--max-increase must be a number of points, not {max_increase}", "--max-increase 5")
    if not (math.isfinite(at) and at > 0):
        raise UserError(f"--at must be a magnitude above 0, not {at:g}", "--at 2")
    return Threshold(max_increase=max_increase, at=at)


def error_threshold(max_error: float) -> ErrorThreshold:
    """--max-error. Raises `UserError` that names it."""
    if not (math.isfinite(max_error) and 0 <= max_error <= 100):
        raise UserError(f"--max-error must be 0 to 100 percent, not {max_error:g}", "--max-error 10")
    return ErrorThreshold(max_error=max_error)


def check_kind(name: str) -> None:
    """Raise `UserError` with the nearest name unless images can be perturbed so."""
    if name not in corruption.names():
        raise UserError(
            f"there is no perturbation of images {name!r}; there are {', '.join(corruption.names())}",
            did_you_mean(name, corruption.names()),
        )


def _fault(fault: Any) -> str:
    *path, last = fault["loc"]
    at = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" if i else part for i, part in enumerate(path))
    key = f"{at}{f'[{last + 1}]' if isinstance(last, int) else f'.{last}' if at else last}"
    if fault["type"] == "extra_forbidden":
        section = str(fault["loc"][0])
        models: dict[str, type[_Section]] = {
            "error": ErrorThreshold,
            "parameters": Threshold,
            "sharpness": SharpnessThreshold,
            "inputs": InputThreshold,
        }
        allowed = tuple(models[section].model_fields) if len(fault["loc"]) > 1 else tuple(Thresholds.model_fields)
        meant = did_you_mean(str(last), allowed)
        return f"there is no {key}; there are {', '.join(allowed)}{f' ({meant})' if meant else ''}"
    return f"{key}: {fault['msg'][0].lower()}{fault['msg'][1:]}"

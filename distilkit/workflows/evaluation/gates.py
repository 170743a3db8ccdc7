"""What `distilkit evaluate` is asked to check before a model may ship, and the verdicts.

A gate is judged by the estimate, or with `confident` by the end of its 95 % interval that speaks against passing.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilkit.analysis.predictions import (
    Paired,
    Predictions,
    balanced_error,
    bootstrap_bounds,
    calibration_error,
    paired,
    wilson95,
)
from distilkit.errors import UserError

SHOWN_DIFFERENCES = 20


@dataclass(frozen=True)
class Gates:
    """The limits, in percent or points; None: not checked.

    `no_worse_than`: a model that must not have fewer errors on the same images, but for `margin` points.
    """

    max_error: float | None = None
    max_class_error: float | None = None
    max_balanced_error: float | None = None
    max_calibration_error: float | None = None
    no_worse_than: Path | None = None
    margin: float | None = None
    confident: bool = False

    def check(self) -> None:
        """Raise `UserError` that names the option at fault."""
        limits = {
            "--max-error": self.max_error,
            "--max-class-error": self.max_class_error,
            "--max-balanced-error": self.max_balanced_error,
            "--max-calibration-error": self.max_calibration_error,
            "--margin": self.margin,
        }
        for option, limit in limits.items():
            if limit is not None and not (math.isfinite(limit) and 0 <= limit <= 100):
                raise UserError(f"{option} must be 0 to 100 percent, not {limit:g}", f"{option} 5")
        if self.margin is not None and self.no_worse_than is None:
            raise UserError("--margin says by how much --no-worse-than may be missed", "add --no-worse-than MODEL")
        if self.confident and self.no_worse_than is None and all(limit is None for limit in limits.values()):
            raise UserError("--confident says how a gate is judged, and there is none", "add --max-error 5")

    def verdicts(self, name: str, found: Predictions, classes: tuple[str, ...]) -> list[dict[str, Any]]:
        """One for each limit, but the comparison with another model."""
        wrong, count = found.wrong(), len(found)
        checks = []
        if self.max_error is not None:
            error, bound = 100 * int(wrong.sum()) / count, wilson95(int(wrong.sum()), count)[1]
            checks.append(self._verdict("error", name, "error", error, bound, self.max_error, "%"))
        if self.max_class_error is not None:
            checks.append(self._worst_class(name, found, classes, self.max_class_error))
        if self.max_balanced_error is not None:
            error = balanced_error(found.labels, wrong, len(classes))
            bound = error
            if self.confident:
                labels = found.labels
                bound = bootstrap_bounds(count, lambda at: balanced_error(labels[at], wrong[at], len(classes)))[1]
            checks.append(
                self._verdict("balanced_error", name, "balanced error", error, bound, self.max_balanced_error, "%")
            )
        if self.max_calibration_error is not None:
            confidence, limit = found.probabilities.max(1), self.max_calibration_error
            error = bound = calibration_error(confidence, ~wrong)
            if self.confident and math.isfinite(error):
                bound = bootstrap_bounds(count, lambda at: calibration_error(confidence[at], ~wrong[at]))[1]
            checks.append(self._verdict("calibration_error", name, "calibration error", error, bound, limit, "%"))
        return checks

    def comparison(
        self, name: str, ours: Predictions, theirs: Predictions, other: Path
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The verdict of the comparison with another model, and its figures.

        Raises `UserError` where the two have not seen the same images, in whatever order.
        """
        order = {digest: place for place, digest in enumerate(theirs.digests)}
        places = [order.get(digest, -1) for digest in ours.digests]
        if len(ours) != len(theirs) or -1 in places or len(set(places)) != len(places):
            known = sum(place >= 0 for place in places)
            raise UserError(
                f"{name} and {other} were not evaluated on the same images: {known:,} of {len(ours):,} have a "
                f"counterpart, and there are {len(theirs):,} of the other",
                "name the same images for both with --data; images are paired by their digest, each once",
            )
        wrong, theirs_wrong = ours.wrong(), theirs.wrong()[np.array(places, dtype=np.int64)]
        found: Paired = paired(wrong, theirs_wrong)
        margin = self.margin or 0.0
        check = self._verdict(
            "no_worse_than",
            name,
            f"error beyond that of {other}",
            found.difference,
            found.interval95[1],
            margin,
            "points",
        )
        changed = np.flatnonzero(wrong != theirs_wrong)[:SHOWN_DIFFERENCES].tolist()
        return check, {
            "other": str(other),
            "images": found.images,
            "only_ours_wrong": found.only_ours,
            "only_theirs_wrong": found.only_theirs,
            "difference": found.difference,
            "interval95": list(found.interval95),
            "mcnemar_p": found.p,
            "differ_on": [
                {"image": ours.names[place], "wrong": "ours" if wrong[place] else "theirs"} for place in changed
            ],
        }

    def _worst_class(self, name: str, found: Predictions, classes: tuple[str, ...], limit: float) -> dict[str, Any]:
        counts = np.bincount(found.labels, minlength=len(classes))
        errors = np.bincount(found.labels, found.wrong(), len(classes)).astype(np.int64)
        if missing := [classes[place] for place in np.flatnonzero(counts == 0).tolist()]:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            check = self._verdict("class_error", name, "error of the worst class", math.nan, math.nan, limit, "%")
            message = f"no image of {', '.join(missing[:5])}{more}, so the error of the worst class is not known"
            return {**check, "class": missing[0], "message": message, "passed": False}
        bounds = [wilson95(int(wrong), int(count))[1] for wrong, count in zip(errors, counts, strict=True)]
        judged = np.array(bounds) if self.confident else 100 * errors / counts
        worst = int(judged.argmax())
        value = 100 * int(errors[worst]) / int(counts[worst])
        about = f"error of the worst class ({classes[worst]})"
        return {**self._verdict("class_error", name, about, value, bounds[worst], limit, "%"), "class": classes[worst]}

    def _verdict(
        self, kind: str, name: str, about: str, value: float, bound: float, limit: float, unit: str
    ) -> dict[str, Any]:
        judged = bound if self.confident else value
        against = f", at most {bound:.2f} with 95 % confidence" if self.confident else ""
        return {
            "kind": kind,
            "run": name,
            "name": about,
            "value": value,
            "bound": bound if self.confident else None,
            "limit": limit,
            "message": f"{about}: {value:.2f} {unit}{against} ({limit:g} allowed)",
            "passed": math.isfinite(judged) and judged <= limit,
        }

"""What the trainings of recipes say: means and deviations over seeds, differences of two recipes.

`compare`, `report` and the model cards take their figures from here and from nowhere else. Errors in percent.
"""

from dataclasses import dataclass
from typing import Literal

from distilkit.analysis.statistics import Difference, Spread, spread, welch
from distilkit.workflows.comparison.recipe_groups import RecipeGroup, incomparable
from distilkit.workflows.comparison.remarks import Remark, between

Role = Literal["leader", "ensemble"]


@dataclass(frozen=True)
class GroupDifference:
    """The top-1 error of one recipe minus that of another, in points.

    `classifiers`: whose errors, ours and theirs. `found` is None where the two do not compare; `incomparable` says why.
    `remarks`: what the difference may come from besides the recipes.
    """

    classifiers: tuple[str, str]
    found: Difference | None
    incomparable: str | None
    remarks: tuple[Remark, ...]


def error_spreads(group: RecipeGroup) -> dict[str, dict[str, Spread]]:
    """Mean and deviation of the errors over the trainings that count: classifier -> "top1" or "top5" -> `Spread`.

    Of every classifier that all of them have; empty where none is finished.
    """
    errors = [run.record["final"]["errors"] for run in group.trainings]
    return {
        name: {kind: spread([each[name][kind] for each in errors]) for kind in ("top1", "top5")}
        for name in (errors[0] if errors else ())
        if all(name in each for each in errors)
    }


def classifier(group: RecipeGroup, role: Role) -> str | None:
    """The recipe's leader, or the method's own ensemble, None where it has none."""
    name: str | None = group.first.record[role]
    return name


def difference(ours: RecipeGroup, theirs: RecipeGroup, role: Role = "leader") -> GroupDifference:
    """`ours` minus `theirs`: the mean errors of the leaders or of the ensembles, over the trainings that count.

    Both groups need a finished training. Raises `ValueError` where one has no such classifier.
    """
    names = classifier(ours, role), classifier(theirs, role)
    if names[0] is None or names[1] is None:
        raise ValueError(f"no {role}")
    remarks = tuple(between(ours, theirs))
    apart = incomparable(ours.runs[0], theirs.runs[0])
    if apart is not None:
        return GroupDifference((names[0], names[1]), None, apart.reason, remarks)
    values = [
        [run.record["final"]["errors"][name]["top1"] for run in group.trainings]
        for group, name in zip((ours, theirs), names, strict=True)
    ]
    return GroupDifference((names[0], names[1]), welch(*values), None, remarks)

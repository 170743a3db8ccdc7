"""Which runs are trainings of one recipe: the same but for what may differ between two seeds."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from distilkit.run import Run


@dataclass(frozen=True)
class Group:
    """The trainings of one recipe. `label` is unlike every other group's."""

    label: str
    runs: tuple[Run, ...]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Put together the runs whose recipes differ in name and seed alone, and in where the images lay; oldest first."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    labels: dict[str, int] = {}
    groups = []
    for members in found.values():
        name = re.sub(r"-seed\d+$", "", members[0].recipe.name)
        labels[name] = labels.get(name, 0) + 1
        groups.append(Group(name if labels[name] == 1 else f"{name} ({labels[name]})", tuple(members)))
    return groups


def _key(run: Run) -> str:
    recipe = run.recipe.model_dump(mode="json")
    del recipe["name"], recipe["train"]["seed"]
    for key in ("root", "storage", "workers", "download"):  # these change how images are read, not which
        recipe["data"].pop(key, None)
    return json.dumps(recipe, sort_keys=True)

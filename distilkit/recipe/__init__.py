"""What a recipe may say: TOML in, one frozen `Recipe` out, or every fault at once with its place and a hint.

A recipe is laid from layers: the file that `extends` names, the file itself, then the `--set` overrides. Every key
remembers the file and line (or the `--set`, as typed) that set it. Each section is checked against its own pydantic
model, so that a fault in one section hides none in another; what no section can see alone is checked afterwards.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distilkit.methods.base import Epochs
from distilkit.recipe.checking import check
from distilkit.recipe.faults import Faults, key_of, place, placed
from distilkit.recipe.layers import Layer, Place, find, lay, overlay, override_place, paths, read_chain
from distilkit.recipe.sections import (
    AdamWSection,
    ConstantSection,
    CosineSection,
    DataSection,
    GroupSection,
    Milestone,
    ModelSection,
    Name,
    OptimizerSection,
    Recipe,
    ScheduleSection,
    SgdSection,
    SnapshotSection,
    StepSection,
    TeacherSection,
    Text,
    TrackingSection,
    TrainSection,
    resolve_epochs,
)
from distilkit.recipe.toml_lines import Key, key_lines
from distilkit.recipe.tracker_options import typed_by_the_user
from distilkit.recipe.wording import describe, must_be
from distilkit.shipped import builtin, named_in

__all__ = [
    "AdamWSection",
    "ConstantSection",
    "CosineSection",
    "DataSection",
    "Epochs",
    "GroupSection",
    "Milestone",
    "ModelSection",
    "Name",
    "OptimizerSection",
    "Recipe",
    "ScheduleSection",
    "SgdSection",
    "SnapshotSection",
    "StepSection",
    "TeacherSection",
    "Text",
    "TrackingSection",
    "TrainSection",
    "builtin",
    "describe",
    "key_lines",
    "key_of",
    "load",
    "load_of_a_run",
    "must_be",
    "named_in",
    "place",
    "placed",
    "resolve_epochs",
]


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read, complete and check a recipe.

    `source`: a file, or the name of a built-in recipe with or without ".toml"; a file goes first. Or the recipe
    itself as tables: {"data": {"dataset": "digits"}, ...}. `overrides`: as
    typed after `--set`, "method.temperature=4"; values are TOML or, failing that, text without quotes.

    `extends = "other.toml"` in a file (relative to it, or a built-in name) lays the file over the other one, table by
    table. Where a layer names another method, optimizer or schedule, the keys of the old one that the new one does
    not know are dropped. The other file's `name` is not taken over: an extended recipe is another recipe.

    Raises `UserError` with all faults, each with its place, if anything is wrong.
    """
    return _load(source, overrides)


def load_of_a_run(file: Path, overrides: Sequence[str], upgrade: Callable[[dict[str, Any]], None]) -> Recipe:
    """Read the recipe.toml of a run, as `load` does; `upgrade` changes its tables in place before they are checked.

    It also keeps the options of trackers that somebody typed, which no file may set (`tracker_options`): they are read,
    and count where they are typed again.
    """
    return _load(file, overrides, upgrade)


def _load(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    upgrade: Callable[[dict[str, Any]], None] | None = None,
) -> Recipe:
    recipes = builtin()
    if isinstance(source, Mapping):
        files, stem = _tables(source, recipes), "recipe"
    else:
        path = find(source, recipes)
        files, stem = read_chain(path, recipes), path.stem
    file = files[0]
    if upgrade is not None:
        upgrade(file.tree)
    top = overlay(overrides)
    tree: dict[str, Any] = {}
    places: dict[Key, Place] = {}
    for layer in (*reversed(files), top):
        lay(layer, tree, places)
    if "name" not in file.tree and "name" not in top.tree:
        tree.pop("name", None)
        places.pop(("name",), None)
    typed = typed_by_the_user({key: where.line for key, where in places.items()})
    found = Faults(
        tree, places, [*(layer.source for layer in files), *(override_place(each).source for each in overrides)]
    )
    for key, problem, hint, where in top.faults:
        found.add(key, problem, hint, where)
    # A run's recipe keeps what its user had typed, which counts again only where it is typed again.
    recipe = check(found, stem, typed if upgrade is None else None)
    recipe._places.update({".".join(key): str(where) for key, where in places.items()})
    recipe._source = file.source
    recipe._typed = typed
    return recipe


def _tables(source: Mapping[str, Any], recipes: Mapping[str, Path]) -> list[Layer]:
    """A recipe given as tables, and the files of the one that it extends."""
    tree = copy.deepcopy(dict(source))
    base = tree.pop("extends", None)
    # Whoever writes tables in Python is the user, as on the command line.
    places = dict.fromkeys(paths(tree), Place("the recipe"))
    return [Layer("the recipe", tree, places), *(read_chain(find(str(base), recipes), recipes) if base else [])]

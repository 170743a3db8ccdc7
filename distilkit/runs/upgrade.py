"""The recipe of a run as this version reads it, whichever version wrote it.

A run's recipe.toml holds every default of the version that wrote it. Keys that have left since are dropped. A key that
was born later is missing there, and gets what that version did without it, not today's default: a run that is resumed
stays what it was. Whoever removes a key adds it to `recipe.removed.REMOVED`; whoever adds one whose default is not the
old behaviour adds that behaviour to `BORN_LATER`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilkit import recipe as recipes
from distilkit.recipe import Recipe
from distilkit.recipe.removed import REMOVED
from distilkit.recipe.toml_lines import Key

BORN_LATER: Mapping[Key, object] = {
    # A race at the start decided, and run.json says what it found: a resumed run goes on with that.
    ("train", "threads"): "auto",
    ("train", "ema_warmup"): False,
}
"""By key: the value that stands for the behaviour of the versions without it."""


def upgrade(tree: dict[str, Any]) -> list[str]:
    """Change the tables of a run's recipe, in place, to what this version reads; returns what a user should know."""
    notes = []
    for (section, key), removed in REMOVED.items():
        table = tree.get(section)
        if isinstance(table, dict) and key in table:
            value = table.pop(key)
            if value != removed.default:
                notes.append(f"{section}.{key} = {value!r} was removed in this version; {removed.remedy}")
    for (section, key), value in BORN_LATER.items():
        table = tree.setdefault(section, {})
        if isinstance(table, dict):
            table.setdefault(key, value)
    return notes


def load(file: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """A run's own recipe with `overrides` on top, and what `upgrade` notes. Raises `UserError` like `recipe.load`."""
    notes: list[str] = []
    return recipes.load_of_a_run(file, overrides, lambda tree: notes.extend(upgrade(tree))), notes


def is_of_a_run(recipe: Path) -> bool:
    """Whether this recipe's file is a run's own."""
    return recipe.name == "recipe.toml" and (recipe.parent / "run.json").is_file()

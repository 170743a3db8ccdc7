"""What comes with distilkit, by name and without torch: the recipes' files, and the list of names in `names.json`.

The list is written by `python -m distilkit.recipe.listing`. The Tab key and `distilkit recipes` alone read it: whatever
looks for a method, an architecture or a recipe to use it looks in the registries and in the recipes' folder.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("names.json")


def builtin() -> dict[str, Path]:
    """Find the recipes that come with distilkit, in their folder and all folders in it: name -> file.

    Those of the folder itself come first, then folder by folder, each in the order of the names.
    """
    # In the wheel they lie inside distilkit, in a checkout beside it.
    package = Path(__file__).parent
    inside = package / "recipes"
    return named_in(inside if inside.is_dir() else package.parent / "recipes")


def named_in(folder: Path) -> dict[str, Path]:
    """Find the recipes in a folder and below it: name -> file.

    Ours have names of their own, whatever their folder. A copy that someone keeps in a folder below hides none of them:
    of two with one name the outer one counts.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.toml"), key=lambda path: (len(path.parts), path.parent, path.stem)):
        found.setdefault(path.stem, path)
    return found


@dataclass(frozen=True)
class Summary:
    """What a list says of a recipe.

    `title`: what its first comment says it trains. `cells`: the places in the papers that it stands for, such as
    'OKDDip Table 2 "ONE"'; none for a recipe of our own. `architecture`: several are joined by " + ". `teacher`: the
    run or recipe that teaches, if one does.
    """

    name: str
    title: str
    cells: tuple[str, ...]
    method: str
    architecture: str
    dataset: str
    teacher: str | None


@dataclass(frozen=True)
class Names:
    """What `names.json` holds. `architectures`: ours, then how another library's begin, such as "timm:"."""

    methods: tuple[str, ...]
    architectures: tuple[str, ...]
    recipes: dict[str, Summary]


@functools.cache
def listed() -> Names:
    """Read the list of names."""
    read = json.loads(LIST.read_text(encoding="utf-8"))
    recipes = (Summary(**{**row, "cells": tuple(row["cells"])}) for row in read["recipes"])
    return Names(tuple(read["methods"]), tuple(read["architectures"]), {row.name: row for row in recipes})

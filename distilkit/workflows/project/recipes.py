"""`distilkit recipes`: the recipes that come with distilkit, listed, shown and copied. Imports no torch unasked.

What a list says of the recipes that come with distilkit is read from the list of names (`shipped.listed`). Only what a
recipe says after all defaults, a recipe that is not in that list, and a path that leads nowhere take `recipe.load` and
with it torch.
"""

import json
import re
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from distilkit import shipped
from distilkit.errors import UserError, did_you_mean
from distilkit.reading import LARGEST_RECIPE, UnreadableError, read_text, read_toml

_NAME_LINE = re.compile(r"^name[ \t]*=.*$", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def list_recipes(
    *, method: str | None = None, dataset: str | None = None, pattern: str | None = None
) -> dict[str, Any]:
    """Every shipped recipe that fits: what it trains, how, on what, and which cell of which paper it stands for.

    `method`, `dataset`: as recipes spell them. `pattern`: of the recipe's name, with `*` and `?`. Raises `UserError`
    where nothing fits, with the nearest word.
    """
    known = shipped.builtin()
    rows = [_summary(name, file, known) for name, file in known.items()]
    for option, wanted, there in (
        ("--method", method, {row.method for row in rows}),
        ("--dataset", dataset, {row.dataset for row in rows}),
    ):
        if wanted is not None and wanted not in there:
            raise UserError(
                f"no shipped recipe has {option} {wanted}; there are {', '.join(sorted(there))}",
                did_you_mean(wanted, there) or f"leave {option} out",
            )
    fitting = [
        row
        for row in rows
        if method in (None, row.method)
        and dataset in (None, row.dataset)
        and (pattern is None or fnmatchcase(row.name, pattern))
    ]
    if not fitting:
        raise UserError("no shipped recipe fits all that", "ask for less; patterns take * and ?: --name 'one_*'")
    return {"total": len(rows), "recipes": [{**asdict(row), "file": str(known[row.name])} for row in fitting]}


def show_recipe(source: str, *, resolved: bool = False) -> dict[str, Any]:
    """One recipe's text, and what a list says of it.

    `source`: a shipped recipe's name, or a file. Raises `UserError` as `recipe.load` does.
    """
    known = shipped.builtin()
    file, text = recipe_text(source, resolved=resolved)
    row = asdict(_summary(file.stem, file, known))
    return {**row, "file": str(file), "resolved": resolved, "text": text}


def recipe_text(source: str, *, resolved: bool = False) -> tuple[Path, str]:
    """One recipe's file, and its text as it stands there or, `resolved`, complete: every default, all that it extends.

    Raises `UserError` where it is no TOML; `resolved`, as `recipe.load` does.
    """
    file = _find(source, shipped.builtin())
    if resolved:
        from distilkit.recipe import load

        return file, load(file).to_toml()
    return file, _read(file)


def copy_recipe(source: str, to: Path | None, *, resolved: bool = False, force: bool = False) -> dict[str, Any]:
    """Copy a recipe to be edited. `to`: a file or a folder, without it the working folder.

    A copy under another name bears that name, so that its runs are not taken for the original's. Raises `UserError`
    where there is a file already, unless `force`.
    """
    file, text = recipe_text(source, resolved=resolved)
    target = Path(file.name) if to is None else to / file.name if to.is_dir() else to
    if target.suffix != ".toml":
        raise UserError(f"{target} does not end in .toml, as a recipe does", f"write {target.name}.toml")
    if target.exists() and (not force or target.resolve() == file.resolve() or not target.is_file()):
        same = target.resolve() == file.resolve()
        problem = f"{target} is the recipe itself" if same else f"{target} is there already"
        raise UserError(problem, "name another file" if same or not target.is_file() else "--force overwrites it")
    named = file.stem
    if target.stem != file.stem and _NAME.fullmatch(target.stem):
        named = target.stem
        text = _NAME_LINE.sub(lambda _: f"name = {json.dumps(named)}", text, count=1)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}", "name another file") from error
    return {"source": str(file), "written": str(target), "name": named, "resolved": resolved}


def _find(source: str, known: dict[str, Path]) -> Path:
    """Find a recipe as `train` does: a file goes before a shipped name."""
    path = Path(source)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file system takes; what is wrong with it is said below
        pass
    if (name := source.removesuffix(".toml")) in known:
        return known[name]
    from distilkit.recipe.layers import find

    return find(source, known)


def _summary(name: str, file: Path, known: dict[str, Path]) -> shipped.Summary:
    """What a list says of a recipe: from the list of names, or of a recipe that is not in it, from its file."""
    row = shipped.listed().recipes.get(name)
    if row is not None and file.resolve() == known[name].resolve():
        return row
    from distilkit.recipe.listing import summary

    return summary(name, file)


def _read(file: Path) -> str:
    try:
        read_toml(file, encoding="utf-8-sig")
        return read_text(file, LARGEST_RECIPE, encoding="utf-8-sig")
    except UnreadableError as error:
        problem = f"{file} cannot be read as a recipe: {error.reason}"
        raise UserError(problem, f"distilkit train {file} --dry-run") from error

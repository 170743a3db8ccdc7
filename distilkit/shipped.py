"""The recipes that come with distilkit: where they are, and what a list says of each. Imports no torch.

What a list needs is read here without checking it; `recipe.load` is what reads a recipe to train it.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilkit.errors import UserError, require_plain_file, toml_fault

PAPERS = r"(ONE|OKDDip) \((?:Lan|Chen) et al\. \d{4}\)"
# One table or several; a figure that follows, such as 26.61, is none.
_PLACES = r"(Table \d+|Tables \d+(?:, \d+(?![.\d]))*(?: and \d+(?![.\d]))?|Fig\. \d+)"
_CELL = re.compile(rf'{PAPERS}, {_PLACES}(?:, ("[^"]+"))?')
_TITLE_ENDS = re.compile(rf"[:.,] {PAPERS}|(?<!et al)\. (?=[A-Z])|: (?=about )|\.$")


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
    file: Path
    title: str
    cells: tuple[str, ...]
    method: str
    architecture: str
    dataset: str
    teacher: str | None


def summary(name: str, file: Path, known: Mapping[str, Path]) -> Summary:
    """Read what a list says of one recipe; `known`: those that `extends` may name.

    Raises `UserError` where the file, or one that it extends, cannot be read.
    """
    tree = _merged(file, known, ())
    comment = first_comment(file.read_text(encoding="utf-8"))
    students = _at(tree, "group", "students")
    architectures = students if isinstance(students, list) else [_at(tree, "model", "architecture")]
    teacher = _at(tree, "teacher", "run") or _at(tree, "teacher", "architecture")
    return Summary(
        name,
        file,
        title(comment),
        tuple(dict.fromkeys(cells(comment))),
        str(_at(tree, "method", "name")),
        " + ".join(dict.fromkeys(map(str, architectures))),
        str(_at(tree, "data", "dataset")),
        None if teacher is None else str(teacher),
    )


def first_comment(text: str) -> str:
    """Join the lines of the comment that a recipe begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def title(comment: str) -> str:
    """Cut a comment where it turns to the paper, or after its first sentence."""
    end = _TITLE_ENDS.search(comment)
    return comment[: end.start()] if end else comment


def cells(comment: str) -> list[str]:
    """List the tables and figures that a comment names right after a paper, with the row where it is quoted."""
    return [" ".join(part for part in found.groups() if part) for found in _CELL.finditer(comment)]


def _merged(file: Path, known: Mapping[str, Path], seen: tuple[Path, ...]) -> dict[str, Any]:
    """Lay a file's tables over those of the file that it extends."""
    try:
        require_plain_file(file)
        tree = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as a recipe: {toml_fault(error)}", f"distilkit train {file} --dry-run"
        ) from error
    base = tree.pop("extends", None)
    if not isinstance(base, str) or file in seen:
        return tree
    beside = file.parent / base
    below = beside if beside.is_file() else known.get(base.removesuffix(".toml"))
    if below is None:
        return tree
    merged = _merged(below, known, (*seen, file))
    for section, table in tree.items():
        lower = merged.get(section)
        merged[section] = {**lower, **table} if isinstance(lower, dict) and isinstance(table, dict) else table
    return merged


def _at(tree: Mapping[str, Any], section: str, key: str) -> Any:
    table = tree.get(section)
    return table.get(key) if isinstance(table, dict) else None

"""Write `distilkit/names.json`, the names that the Tab key and `distilkit recipes` know without importing torch.

python -m distilkit.recipe.listing     # after a method, an architecture or a recipe was added or changed
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from distilkit import methods
from distilkit.models import external, registry
from distilkit.recipe import builtin, load
from distilkit.shipped import LIST, Summary

_PAPERS = r"(ONE|OKDDip) \((?:Lan|Chen) et al\. \d{4}\)"
# One table or several; a figure that follows, such as 26.61, is none.
_PLACES = r"(Table \d+|Tables \d+(?:, \d+(?![.\d]))*(?: and \d+(?![.\d]))?|Fig\. \d+)"
_CELL = re.compile(rf'{_PAPERS}, {_PLACES}(?:, ("[^"]+"))?')
_TITLE_ENDS = re.compile(rf"[:.,] {_PAPERS}|(?<!et al)\. (?=[A-Z])|: (?=about )|\.$")


def text() -> str:
    """Say what is to be in `names.json`."""
    names = {
        "methods": methods.names(),
        "architectures": [*registry.names(), *(f"{library}:" for library in external.LIBRARIES)],
        "recipes": [asdict(summary(name, file)) for name, file in builtin().items()],
    }
    return json.dumps(names, indent=1) + "\n"


def summary(name: str, file: Path) -> Summary:
    """Say of one recipe what a list does. Raises `UserError` as `recipe.load` does."""
    recipe = load(file)
    comment = " ".join(_first_comment(file.read_text(encoding="utf-8-sig")))
    ends = _TITLE_ENDS.search(comment)
    cells = (" ".join(part for part in found.groups() if part) for found in _CELL.finditer(comment))
    teacher = (recipe.teacher.run or recipe.teacher.architecture) if recipe.teacher else None
    return Summary(
        name=name,
        title=comment[: ends.start()] if ends else comment,
        cells=tuple(dict.fromkeys(cells)),
        method=recipe.method.name,
        architecture=recipe.networks,
        dataset=recipe.data.dataset,
        teacher=" + ".join(teacher) if isinstance(teacher, tuple) else teacher,
    )


def _first_comment(text: str) -> Iterator[str]:
    """The lines of the comment that a recipe begins with."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()


if __name__ == "__main__":
    LIST.write_text(text(), encoding="utf-8")

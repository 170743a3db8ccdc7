"""Write the options of each method into its page below docs/methods/, between two marks, from the pydantic models.

python docs/tools/options.py
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from distilkit import methods
from distilkit.methods.base import MethodOptions
from distilkit.recipe.reference import group_sentence, key_table
from distilkit.recipe.sections import PLAIN_SECTIONS, variants

FOLDER = Path(__file__).parents[1] / "methods"
BEGIN = "<!-- From here to the end mark: python docs/tools/renew.py -->"
END = "<!-- The end mark of python docs/tools/renew.py -->"


def drawn() -> dict[Path, str]:
    """Every page and what is to be in it: what it has now, with the present options."""
    pages = {}
    for name in methods.names():
        file = FOLDER / f"{name}.md"
        pages[file] = between_marks(file, _options(name))
    return pages


def between_marks(file: Path, lines: Iterable[str]) -> str:
    """What is to be in a page: what it has now, with these lines between its marks."""
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{file} has lost its marks {BEGIN!r} and {END!r}")
    return "\n".join([f"{before}{BEGIN}", "", *lines, f"{END}{after}"])


def _options(name: str) -> Iterator[str]:
    model = variants("method")[name]
    assert issubclass(model, MethodOptions)
    yield from (group_sentence(model), "")
    if model.needs_teacher:
        yield from ("Keys of `[teacher]`:", "", *key_table(PLAIN_SECTIONS["teacher"]))
    elif set(model.model_fields) > {"name"}:
        yield from ("Keys of `[method]`:", "", *key_table(model))
    else:
        yield from ("`[method]` has no keys but `name`.", "")


if __name__ == "__main__":
    for file, text in drawn().items():
        file.write_text(text, encoding="utf-8")

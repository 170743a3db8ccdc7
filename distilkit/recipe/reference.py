"""Every section and key of a recipe as Markdown.

docs/recipes.md has it between two comments; `python -m distilkit.recipe.reference` puts it there.
"""

import inspect
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distilkit.methods.base import MethodOptions
from distilkit.recipe import builtin
from distilkit.recipe.sections import DEFAULT_NAMES, PLAIN_SECTIONS, SECTIONS, Recipe, variants
from distilkit.recipe.wording import describe, shown, span

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"  # in a checkout
BEGIN = "<!-- From here to the end mark: python -m distilkit.recipe.reference -->"
END = "<!-- The end mark of python -m distilkit.recipe.reference -->"


def reference() -> str:
    """Write down the built-in recipes, and every section and key: what it takes, its default, what it means."""
    return "\n".join(_lines())


def renewed(page: str) -> str:
    """`page` with the present `reference` between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has lost its marks {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def key_table(model: type[BaseModel]) -> list[str]:
    """Write a section's keys other than `name` as a table in Markdown: what each takes, its default, its meaning."""
    return list(_table(_row(key, field) for key, field in model.model_fields.items() if key != "name"))


def group_sentence(options: type[MethodOptions]) -> str:
    """Say what `[group]` may hold for a method, and what it holds by default."""
    return _group(options)


def _lines() -> Iterator[str]:
    yield "## Built-in recipes"
    yield ""
    yield "A recipe is named without its folder: `distilkit train one_resnet32_cifar10`. In `recipes/` itself:"
    yield ""
    for folder, names in _by_folder():
        if folder:
            yield f"In `recipes/{folder}/`:"
            yield ""
        yield f"{_words(names)}."
        yield ""
    yield "## Every key"
    yield ""
    yield "Outside of any section, at the top of the file:"
    yield ""
    extends = "the path of a recipe, or the name of a built-in one"
    yield from _table(
        [
            _row("name", Recipe.model_fields["name"]),
            ["`extends`", extends, "none", "The recipe that this one is laid over. Only in a file, not with `--set`."],
        ]
    )
    for section in SECTIONS:
        yield f"### `[{section}]`"
        yield ""
        if section in PLAIN_SECTIONS:
            model = PLAIN_SECTIONS[section]
            yield _meaning(model)
            yield ""
            yield from _table(_row(key, field) for key, field in model.model_fields.items())
        else:
            yield from _variants(section)


def _by_folder() -> Iterator[tuple[str, list[str]]]:
    """Name the folders of the built-in recipes, "" for the outermost, and what is in each."""
    files = builtin()
    outermost = min((path.parent for path in files.values()), key=lambda folder: len(folder.parts))
    for folder, names in itertools.groupby(files, key=lambda name: files[name].parent):
        yield "" if folder == outermost else folder.name, list(names)


def _variants(section: str) -> Iterator[str]:
    default = DEFAULT_NAMES[section]
    otherwise = f"by default `{default}`" if default else "required"
    yield f"`name`, {otherwise}, is one of {_words(variants(section))}; the other keys depend on it."
    yield ""
    for name, model in variants(section).items():
        yield f'#### `[{section}] name = "{name}"`'
        yield ""
        yield f"{_docstring(model)} {_group(model)}" if issubclass(model, MethodOptions) else _meaning(model)
        yield ""
        rows = [_row(key, field) for key, field in model.model_fields.items() if key != "name"]
        if rows:
            yield from _table(rows)


def _group(options: type[MethodOptions]) -> str:
    """What `[group]` may say for a method, and what it says by default."""
    default = options.default_kind
    kinds = [f"`{default}` (default)", *(f"`{kind}`" for kind in options.allowed_kinds if kind != default)]
    students = span(options.min_students, options.max_students)
    return f"Its group: {' or '.join(kinds)}; students: {students} (default {options.default_students})."


def _meaning(model: type[BaseModel]) -> str:
    """What the docstring of a section says after the section's header."""
    meaning = _docstring(model).partition(": ")[2]
    return meaning[:1].upper() + meaning[1:]


def _docstring(model: type[BaseModel]) -> str:
    """The first paragraph, in one line."""
    return " ".join((inspect.getdoc(model) or "").partition("\n\n")[0].split())


def _row(key: str, field: FieldInfo) -> list[str]:
    return [f"`{key}`", describe(field), _default(field), field.description or ""]


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:
        return str(extra["default"])
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, float) and value != float(f"{value:.4g}"):
        return f"about {value:.4g}"
    return f"`{shown(value)}`"


def _table(rows: Iterable[list[str]]) -> Iterator[str]:
    for cells in (["key", "takes", "default", "meaning"], ["---"] * 4, *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""


def _words(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

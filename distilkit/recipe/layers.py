"""Where a recipe's keys come from: its file, the files that this one extends, and the `--set` overrides on top."""

import datetime
import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distilkit.errors import Fault, UserError, did_you_mean
from distilkit.reading import LARGEST_RECIPE, UnreadableError, read_bytes
from distilkit.recipe.sections import DEFAULT_NAMES, SECTIONS, tracker_names, variants
from distilkit.recipe.toml_lines import DEEPEST, Key, NotToml, dotted, key_at, parse
from distilkit.recipe.wording import shown

_MOST_NAMES = 12  # of built-in recipes in a message

# A recipe may name any file under `extends`, and what fails is printed, perhaps where others read it. So nothing is
# quoted of a file that is no recipe: one that has none of a recipe's sections, whatever else is wrong with it.
_SECTION = re.compile(rf"^[ \t]*\[[ \t]*(?:{'|'.join(SECTIONS)})[ \t]*[\].]", re.MULTILINE)
_NO_RECIPE = f"is this the right file? A recipe has some of {', '.join(f'[{section}]' for section in SECTIONS)}"


class Place(NamedTuple):
    """What set a key: a line of a file, or an override as typed."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Layer(NamedTuple):
    """One file, or all overrides together: what it says, and where. `faults`: of overrides that cannot be read."""

    source: str
    tree: dict[str, Any]
    places: dict[Key, Place]
    faults: Sequence[tuple[Key, str, str | None, Place]] = ()


# --------------------------------------------------------------------------------------------------------------- files


def find(source: str | Path, builtin: Mapping[str, Path]) -> Path:
    """Find a recipe's file by its path or, failing that, by the name of a built-in one. Raises `UserError`."""
    path = Path(source)
    try:
        if path.is_file():
            return path
        path_exists = path.exists()
    except (OSError, ValueError) as error:  # a name too long for the file system, or with a NUL
        raise UserError(f"{str(source)[:80]!r} cannot be a recipe's path: {error}") from None
    name = str(source).removesuffix(".toml")
    if name in builtin:
        return builtin[name]
    if path_exists:
        inner = path / "recipe.toml"
        hint = "name the file in it"
        if inner.is_file():
            hint = f"its recipe is {inner}"
        elif path.is_dir():
            hint += f", or have a recipe for the images in it written: distilkit init {shlex.quote(str(path))}"
        raise UserError(f"{str(source)!r} is {'a folder' if path.is_dir() else 'not a plain file'}, not a recipe", hint)
    raise UserError(
        f"there is no recipe {str(source)!r}, neither a file nor a built-in one; {_some(name, builtin)}",
        _nearest_recipe(path, builtin) or "name a file, or one of the built-in recipes",
    )


def _some(name: str, builtin: Iterable[str]) -> str:
    """Say which built-in recipes there are: all of a few, of many those most like `name`, or for a first look."""
    names = list(builtin)
    if not names:
        return "there are no built-in recipes here"
    if len(names) <= _MOST_NAMES:
        return f"built-in recipes: {', '.join(names)}"
    like = difflib.get_close_matches(Path(name).name, names, n=_MOST_NAMES, cutoff=0.5)
    first_look = [name for name in names if name.startswith("quickstart")][:_MOST_NAMES]
    which = f"most like it are {', '.join(like)}" if like else f"for a first look: {', '.join(first_look or names[:1])}"
    return f"of {len(names)} built-in recipes, {which}"


def read_chain(path: Path, builtin: Mapping[str, Path]) -> list[Layer]:
    """Read a recipe's file and those that it extends, each followed by the one that it lies upon.

    Raises `UserError` where one of them cannot be found or read.
    """
    chain: list[Layer] = []
    seen: list[Path] = []
    while True:
        layer = _read(path)
        chain.append(layer)
        seen.append(path.resolve())
        base = layer.tree.pop("extends", None)
        if base is None:
            return chain
        where = layer.places.pop(("extends",), Place(layer.source))
        path = _extended(base, path, where, builtin)
        if path.resolve() in seen:
            circle = " -> ".join(_shown_path(file) for file in [*seen[seen.index(path.resolve()) :], path])
            raise _refusal(layer.source, Fault(str(where), "extends", f"extends leads back to itself: {circle}"))


def _extended(base: object, child: Path, where: Place, builtin: Mapping[str, Path]) -> Path:
    if not isinstance(base, str) or not base:
        problem = f"extends must be the path of a recipe or the name of a built-in one, not {shown(base)}"
        raise _refusal(where.source, Fault(str(where), "extends", problem, 'write extends = "one.toml"'))
    path = child.parent / base
    try:
        if path.is_file():
            return path
        path_exists = path.exists()
    except (OSError, ValueError):
        path_exists = False
    name = base.removesuffix(".toml")
    if name in builtin:
        return builtin[name]
    what = "no plain file" if path_exists else f"neither a file (looked for {_shown_path(path)}) nor a built-in recipe"
    beside = [file.name for file in child.parent.glob("*.toml") if file.resolve() != child.resolve()]
    hint = did_you_mean(base, beside) or did_you_mean(name, builtin)
    raise _refusal(where.source, Fault(str(where), "extends", f"extends names {shown(base)}, which is {what}", hint))


def _read(path: Path) -> Layer:
    source = _shown_path(path)
    try:
        content = read_bytes(path, LARGEST_RECIPE)
    except UnreadableError as error:
        if error.too_large:
            problem = f"{source} is larger than {LARGEST_RECIPE:,} bytes: no recipe"
            raise UserError(problem, "is this the right file?") from None
        raise UserError(f"{source} cannot be read: {error.reason}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _refusal(source, Fault(f"{source}:{line}", "", "not UTF-8 text", "save the file as UTF-8")) from None
    try:
        tree, lines = parse(text)
    except NotToml as error:
        where = Place(source, error.line)
        if not _SECTION.search(text):
            problem = "not TOML" if error.quotes else error.problem
            raise _refusal(source, Fault(str(where), "", problem, _NO_RECIPE)) from None
        raise _refusal(source, Fault(str(where), ".".join(error.key), error.problem, error.hint)) from None
    if tree and "extends" not in tree and not any(isinstance(tree.get(section), dict) for section in SECTIONS):
        raise _refusal(source, Fault(source, "", "none of a recipe's sections is in it", _NO_RECIPE))
    return Layer(source, tree, {key: Place(source, line) for key, line in lines.items()})


def _refusal(source: str, fault: Fault) -> UserError:
    return UserError(f"{source}: the recipe cannot be read", faults=[fault])


def _nearest_recipe(path: Path, builtin: Iterable[str]) -> str | None:
    try:
        beside = [str(file) for file in path.parent.glob("*.toml")]
    except OSError:
        beside = []
    return did_you_mean(str(path), beside) or did_you_mean(path.name.removesuffix(".toml"), builtin)


def _shown_path(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere, or the working folder is gone
        return str(path)


# ----------------------------------------------------------------------------------------------------------- overrides


def overlay(overrides: Sequence[str]) -> Layer:
    """All `--set` as one layer; of two that set the same key the later one counts, as on any command line."""
    faults: list[tuple[Key, str, str | None, Place]] = []
    layer = Layer("--set", {}, {}, faults)
    for typed in overrides:
        where = override_place(typed)
        key, value, problem = _split_override(typed)
        hint = "write it like --set method.temperature=4" if problem else None
        if key == ("extends",):
            problem, hint = "extends can only be said in the recipe's file", None
        above = (key[:length] for length in range(1, len(key)))
        clash = next((table for table in above if not isinstance(_at(layer.tree, table), dict)), None)
        if clash and not problem:
            problem = f"{dotted(key)} contradicts an earlier --set, which gave {dotted(clash)} a value"
        if problem:
            faults.append((key, problem, hint, where))
            continue
        for part in reversed(key):
            value = {part: value}
        _merge(value, layer.tree)
        layer.places.update(dict.fromkeys(paths(value), where))
    return layer


def override_place(typed: str) -> Place:
    """The place of what a `--set` sets: itself, as typed."""
    return Place(f"--set {typed.encode(errors='backslashreplace').decode()}")


def _split_override(typed: str) -> tuple[Key, Any, str | None]:
    """Key, value and what is wrong with an override as typed."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        return (), None, "not valid UTF-8 text"
    scanned = key_at(typed, 0)
    if scanned is None or typed[scanned[1] : scanned[1] + 1] != "=":
        return (), None, "must read KEY=VALUE, with the key's section and a dot before the key"
    key, end = scanned
    text = typed[end + 1 :].strip()
    if not text:
        return key, None, f"{dotted(key)} is given no value"
    if len(key) > DEEPEST:
        return key, None, "too many dots in the key"
    try:
        tree, _ = parse(f"value = {text}")
    except NotToml:
        return key, text, None
    # A date, or text that happens to hold a second TOML line, was meant as text.
    is_text = len(tree) > 1 or isinstance(tree["value"], datetime.date | datetime.time)
    return key, text if is_text else tree["value"], None


def paths(value: object, key: Key = ()) -> Iterator[Key]:
    """List the keys of tables in tables, those of the tables too."""
    if isinstance(value, dict):
        for part, inner in value.items():
            yield (*key, part)
            yield from paths(inner, (*key, part))


# ------------------------------------------------------------------------------------------------------------- merging


def lay(layer: Layer, tree: dict[str, Any], places: dict[Key, Place]) -> None:
    """Merge a layer over what lies below it, in place."""
    for section, default in DEFAULT_NAMES.items():
        below, above = tree.get(section), layer.tree.get(section)
        if isinstance(below, dict) and isinstance(above, dict) and "name" in above:
            old, new = below.get("name", default), above["name"]
            if old != new:
                _drop((section,), _left_behind(section, below, old, new), tree, places)
    _drop(("data",), _without_rand_augment(layer.tree), tree, places)
    _drop(("tracking", "options"), _other_trackers(layer.tree, _at(tree, ("tracking", "options"))), tree, places)
    # An override of one key does not move its section away from the file.
    places.update(
        {
            key: where
            for key, where in layer.places.items()
            if where.line is not None
            or key not in places
            or not (isinstance(_at(tree, key), dict) and isinstance(_at(layer.tree, key), dict))
        }
    )
    _merge(layer.tree, tree)


def _left_behind(section: str, keys: Iterable[str], old: object, new: object) -> list[str]:
    """Those of `keys` that mean nothing any more where a section's name changes from `old` to `new`."""
    models = variants(section)
    known_to_old, known_to_new = (
        models[name].model_fields if isinstance(name, str) and name in models else None for name in (old, new)
    )
    # What the old one does not know either is a slip of the pen, and stays to be reported.
    return [key for key in keys if key not in (known_to_new or ()) and (known_to_old is None or key in known_to_old)]


def _without_rand_augment(above: dict[str, Any]) -> list[str]:
    """What a layer that switches RandAugment off takes with it."""
    return ["rand_augment_magnitude"] if _at(above, ("data", "rand_augment")) == 0 else []


def _other_trackers(above: dict[str, Any], options: Any) -> list[str]:
    """The trackers whose options mean nothing any more where a layer names others."""
    names = _at(above, ("tracking", "name")) if isinstance(options, dict) and options else {}
    named = names if isinstance(names, list) else [names]
    return [name for name in tracker_names() if name not in named and name in options] if names else []


def _drop(table: Key, keys: Iterable[str], tree: dict[str, Any], places: dict[Key, Place]) -> None:
    """Leave out what a layer below says and nothing else could remove."""
    for key in keys:
        if _at(tree, table).pop(key, None) is not None:
            for path in [path for path in places if path[: len(table) + 1] == (*table, key)]:
                del places[path]


def _at(tree: dict[str, Any], key: Key) -> Any:
    """Look a key up; an empty table where nothing is said."""
    value: Any = tree
    for part in key:
        value = value.get(part, {}) if isinstance(value, dict) else {}
    return value


def _merge(above: dict[str, Any], below: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict):
            if not isinstance(below.get(key), dict):
                below[key] = {}
            _merge(value, below[key])
        else:
            below[key] = value

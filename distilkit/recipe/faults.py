"""What is wrong in a recipe, by key, and the one way from there to a message: line, what is allowed, nearest name."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distilkit.errors import Fault, SettingError, UserError, did_you_mean, nearest
from distilkit.recipe.layers import Place
from distilkit.recipe.removed import REMOVED
from distilkit.recipe.sections import (
    DEFAULT_NAMES,
    PLAIN_SECTIONS,
    SECTIONS,
    Recipe,
    known_keys,
    model_of,
    variants,
)
from distilkit.recipe.toml_lines import Key, NotToml, dotted, parse, quoted
from distilkit.recipe.wording import Refused, allowed_words, describe, must_be, shown

LISTED = 30  # the faults that a message lists; a file of a megabyte may have a hundred thousand


class Faults:
    """The faults of a merged recipe, collected first and put into words when they are shown.

    `tree`: what the recipe says. `places`: what set each key. `sources`: files and overrides in the order of reading;
    the first is the recipe's own file.
    """

    def __init__(self, tree: Mapping[str, Any], places: Mapping[Key, Place], sources: Sequence[str]) -> None:
        self.tree = tree
        self.places = places
        self.sources = sources
        self._found: list[tuple[Place, Callable[[], Fault]]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, key: Key, problem: str, hint: str | None = None, place: Place | None = None) -> None:
        """Note what is wrong with `key`, at the place that set it or the nearest known one above it."""
        place = place or self.place(key)
        self._found.append((place, partial(Fault, str(place), ".".join(key), problem, hint)))

    def add_all(self, error: ValidationError, settings: Mapping[str, Any]) -> set[Key]:
        """Note what pydantic found in `settings`, the completed recipe; returns the keys that have no good value."""
        by_key: dict[Key, list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False, include_input=False):
            by_key.setdefault(tuple(map(str, detail["loc"][:2])), []).append(detail)
        unknown = dict.fromkeys(key for key, details in by_key.items() if details[0]["type"] == "extra_forbidden")
        # What an unknown section or key was probably meant to be: that it is missing is then no second fault.
        meant = {match for key in islice(unknown, LISTED) if (match := self._unknown(key, settings)[2])}
        wrong = set(by_key)
        if ("group", "students") in wrong:
            meant.add(("model", "architecture"))  # which a list of architectures may stand for
            students, model = settings["group"]["students"], settings["model"]
            if isinstance(students, tuple) and isinstance(model, dict) and model.get("architecture") in students:
                by_key.pop(("model", "architecture"), None)
        for key, details in by_key.items():
            own = {str(text): text for each in details if (text := each.get("ctx", {}).get("error")) is not None}
            if key in unknown:
                self._later(key, partial(self._unknown, key, settings))
            elif own:
                for text in own.values():
                    self._later(key, partial(_in_own_words, key, text))
            elif details[0]["type"] != "missing" or len(details[0]["loc"]) > 2:
                kinds = {detail["type"] for detail in details}
                self._later(key, partial(self._wrong, key, kinds, settings))
            elif not {key, key[:1]} & meant:
                self._later(key, partial(self._missing, key, settings))
        return wrong

    def refuse(self) -> None:
        """Raise `UserError` with the faults in the order of reading, if there are any."""
        if not self._found:
            return
        ranks = {source: rank for rank, source in enumerate(self.sources)}
        ordered = sorted(self._found, key=lambda each: (ranks.get(each[0].source, len(ranks)), each[0].line or 0))
        count = "1 fault" if len(ordered) == 1 else f"{len(ordered):,} faults"
        some = f"; these are the first {LISTED}, and there are {len(ordered) - LISTED:,} more"
        problem = f"{self.sources[0]}: {count} in the recipe{some if len(ordered) > LISTED else ''}"
        raise UserError(problem, faults=[fault() for _, fault in ordered[:LISTED]])

    def place(self, key: Key) -> Place:
        """Where `key` was set, or the nearest table around it."""
        above = (key[:length] for length in range(len(key), 0, -1))
        return next((self.places[part] for part in above if part in self.places), Place(self.sources[0]))

    def correction(self, key: Key, value: object) -> str:
        """Hint what to type instead, in the way in which the key was typed."""
        text = shown(value)
        if self.place(key).source.startswith("--set "):
            return f"write --set {dotted(key)}=" + (f"'{text}'" if isinstance(value, str) else text)
        return f"write {key[-1]} = {text}"

    def _later(self, key: Key, words: Callable[[], tuple[str, str | None, *tuple[Key | None, ...]]]) -> None:
        place = self.place(key)
        self._found.append((place, lambda: Fault(str(place), ".".join(key), *words()[:2])))

    def _unknown(self, key: Key, settings: Mapping[str, Any]) -> tuple[str, str | None, Key | None]:
        """What is wrong with a key that is not known, a hint, and the key that is probably meant."""
        *above, word = key
        if not above:
            return _unknown_outside(word, self.tree[word])
        (section,) = above
        if removed := REMOVED.get((section, word)):
            return f"{section}.{word} was removed in this version", removed.remedy, None
        varies, name = section in DEFAULT_NAMES, settings[section].get("name")
        known = [field for field in model_of(section, settings[section]).model_fields if not varies or field != "name"]
        allowed = f"{name!r} knows: {', '.join(known)}" if varies else f"allowed: {', '.join(known)}"
        if not known:
            allowed = f"{name!r} has none but name"
        problem = f"unknown key {word!r} in [{section}]; {allowed}"
        owners = [other for other, rival in variants(section).items() if word in rival.model_fields] if varies else []
        elsewhere = [other for other in SECTIONS if other != section and word in known_keys(other)]
        if owners:
            return problem, f"{word!r} is a key of {', '.join(f'name = {shown(owner)}' for owner in owners)}", None
        if elsewhere and word != "name":
            return problem, f"{word!r} belongs in [{elsewhere[0]}]", None
        match = nearest(word, known)
        return problem, f"did you mean {match!r}?" if match else None, (section, match) if match else None

    def _missing(self, key: Key, settings: Mapping[str, Any]) -> tuple[str, str | None]:
        slip = nearest("name", settings[key[0]]) if key[1:] == ("name",) else None
        hint = f"did you mean 'name' where it says {slip!r}?" if slip else f"add {key[-1]} = ... under [{key[0]}]"
        return f"{dotted(key)} is missing; it must be {describe(_field(key, settings))}", hint

    def _wrong(self, key: Key, kinds: set[str], settings: Mapping[str, Any]) -> tuple[str, str | None]:
        """What is wrong with a value, or with a section that is none."""
        section, *rest = key
        value = settings[section][rest[0]] if rest else settings[section]
        if not rest and section in SECTIONS:
            is_list = isinstance(value, list) and value and isinstance(value[0], dict)
            what = f"[[{section}]]" if is_list else shown(value)
            return f"{section} must be a section, not {what}", f"write [{section}] and its keys below"
        field = _field(key, settings)
        if key == ("name",) and "name" not in self.tree:
            slug = re.sub(r"[^A-Za-z0-9._-]+", "_", value).lstrip("._")[:100] or "recipe"
            problem = f"the file's name {value!r} cannot name the recipe, which takes {describe(field)}"
            return problem, f'write name = "{slug}" at the top of the file'
        if "finite_number" in kinds:
            return f"{dotted(key)} must be finite, not {shown(value)}", None
        hint = did_you_mean(value, allowed_words(field)) if isinstance(value, str) else None
        if hint is None:
            fitting = (read for read in _readings(value) if _fits(field, read))
            hint = next((self.correction(key, read) for read in fitting), None)
        return must_be(dotted(key), field, value), hint


def place(recipe: Recipe, key: str) -> str:
    """Where `key` ("method.temperature") was set: "one.toml:12" or "--set method.temperature=4".

    Where nothing sets it, the place of its section, or the file.
    """
    while key:
        if key in recipe._places:
            return recipe._places[key]
        key = key.rpartition(".")[0]
    return recipe._source


@contextmanager
def placed(recipe: Recipe) -> Iterator[None]:
    """Turn a setting that shows itself as wrong inside the block into a fault of the recipe, with key and place."""
    try:
        yield
    except SettingError as error:
        key = key_of(error.setting)
        if key == "model.architecture" and isinstance(recipe.group.students, tuple):
            key = "group.students"  # where each student has its own
        fault = Fault(place(recipe, key), key, error.problem, error.hint)
        raise UserError(f"{recipe.name}: a setting of the recipe cannot be used", faults=[fault]) from error


def key_of(setting: str) -> str:
    """The key of a setting, dotted: an argument of the packages below has the key's name; the rest is the method's."""
    homes = (section for section in ("data", "model", "group") if setting in PLAIN_SECTIONS[section].model_fields)
    return setting if "." in setting else f"{next(homes, 'method')}.{setting}"


def _unknown_outside(word: str, value: object) -> tuple[str, str | None, Key | None]:
    """What is wrong with an unknown section, or with a key that stands in none."""
    is_tables = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    if isinstance(value, dict) or is_tables:
        allowed = ", ".join(f"[{section}]" for section in SECTIONS)
        header = f"[[{quoted(word)}]]" if is_tables else f"[{quoted(word)}]"
        match = nearest(word, SECTIONS)
        hint = f"did you mean {match!r}?" if match else None
        return f"unknown section {header}; allowed: {allowed}", hint, (match,) if match and not is_tables else None
    home = next((section for section in SECTIONS if word in known_keys(section)), None)
    hint = f"{word!r} belongs in [{home}]" if home else did_you_mean(word, ("name", "extends"))
    return f"unknown key {word!r} outside of any section; allowed there: name, extends", hint, None


def _in_own_words(key: Key, error: ValueError) -> tuple[str, str | None]:
    return (error.problem, error.hint) if isinstance(error, Refused) else (f"{dotted(key)}: {error}", None)


def _field(key: Key, settings: Mapping[str, Any]) -> FieldInfo:
    return model_of(key[0], settings[key[0]]).model_fields[key[1]] if key[1:] else Recipe.model_fields[key[0]]


def _fits(field: FieldInfo, value: object) -> bool:
    try:
        TypeAdapter(field.rebuild_annotation(), config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return False
    return True


def _readings(value: object) -> Iterator[object]:
    """Guess what a value of the wrong type was meant to be."""
    if isinstance(value, str):
        if value.casefold() in ("true", "yes", "on", "false", "no", "off"):
            yield value.casefold() in ("true", "yes", "on")
        try:
            tree, _ = parse(f"value = {value}")
        except NotToml:
            return
        if len(tree) == 1:
            yield tuple(tree["value"]) if isinstance(tree["value"], list) else tree["value"]
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, int | float):
        # 1.0 may be the whole of something or one of them: no guess.
        if isinstance(value, float) and value.is_integer() and abs(value) > 1:
            yield int(value)
        if value in (0, 1):
            yield bool(value)
        yield (value,)
        yield str(value)
    elif isinstance(value, tuple) and len(value) == 1:
        yield value[0]

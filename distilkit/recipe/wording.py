"""Fields and values in people's words."""

import json
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import annotated_types
from pydantic import GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from distilkit.errors import SettingError, did_you_mean


class Refused(ValueError):  # noqa: N818 - an answer to pydantic, of which a fault is made
    """Says of a value what is wrong with it and what to write, better than the type of its field does."""

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint


class Wording(NamedTuple):
    """Annotates a field whose type says too little: what it takes, in words."""

    text: str


class Choice(NamedTuple):
    """Annotates a text of which only some are allowed, in a vocabulary that another package keeps, and checks it.

    `what`: what such a name names. `others`: forms with a colon that are allowed beside those names, in words; `check`
    raises `SettingError` where one of these is wrong.
    """

    names: Callable[[], Sequence[str]]
    what: str
    others: str | None = None
    check: Callable[[str], None] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: str) -> str:
        if self.check is not None and ":" in value:
            try:
                self.check(value)
            except SettingError as error:
                raise Refused(error.problem, error.hint) from None
        elif value not in self.names():
            names = self.names()
            raise Refused(f"unknown {self.what} {value!r}; allowed: {', '.join(names)}", did_you_mean(value, names))
        return value


def describe(field: FieldInfo, value: object = None) -> str:
    """Say what a field takes: "an integer of 1 or more". `value`: what was given, if it was wrong."""
    return _described(field.annotation, field.metadata, value)


def must_be(name: str, field: FieldInfo, value: object) -> str:
    """Say that a value of the field is wrong: "train.epochs must be an integer of 1 or more, not 0"."""
    return f"{name} must be {describe(field, value)}, not {shown(value)}"


def allowed_words(field: FieldInfo) -> tuple[str, ...]:
    """List the words that a field takes; empty if it takes anything else."""
    for entry in field.metadata:
        if isinstance(entry, Choice):
            return tuple(entry.names())
    return tuple(map(str, typing.get_args(field.annotation))) if typing.get_origin(field.annotation) is Literal else ()


def span(least: int, most: int | None) -> str:
    """Say how many are allowed: "2", "2 to 6", "2 or more"."""
    return f"{least} or more" if most is None else f"{least}" if least == most else f"{least} to {most}"


def shown(value: object) -> str:
    """Spell a value as a recipe would, shortened."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(item) for item in value[:10]) + (", ..." if len(value) > 10 else "") + "]"
    elif isinstance(value, dict):
        text = "a table"
    elif isinstance(value, int) and abs(value) > 10**40:
        text = "a number of more than 40 digits"
    else:
        text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _described(kind: Any, metadata: Sequence[Any], value: object) -> str:
    # A constraint on a whole union stands in the union's metadata, one on a member in the member's.
    while typing.get_origin(kind) is Annotated:
        kind, *inner = typing.get_args(kind)
        metadata = [*metadata, *inner]
    metadata = [part for entry in metadata for part in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
    if text := next((entry.text for entry in metadata if isinstance(entry, Wording)), None):
        return text
    if choice := next((entry for entry in metadata if isinstance(entry, Choice)), None):
        return f"one of {', '.join(choice.names())}" + (f", or {choice.others}" if choice.others else "")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        if isinstance(value, int | float):
            # Whoever wrote a number wants to know which numbers, where there are any.
            members = [member for member in members if _plain(member) in (int, float)] or members
        return ", or ".join(dict.fromkeys(_described(member, metadata, value) for member in members))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        items = dict.fromkeys(_described(item, (), None) for item in arguments if item is not Ellipsis)
        count = "" if Ellipsis in arguments else f" of {len(arguments)}"
        return f"a list{count}, each item {' or '.join(items)}"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return ("an integer" if kind is int else "a number") + _bounds(metadata, value)
    return "text" if kind is str else "a different value"


def _plain(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _bounds(metadata: Sequence[Any], value: object) -> str:
    low: Any = None
    words = []
    for entry in metadata:
        if isinstance(entry, annotated_types.Ge):
            low = entry.ge
            words.append(f"of {low} or more")
        elif isinstance(entry, annotated_types.Gt):
            words.append(f"above {entry.gt}")
        elif isinstance(entry, annotated_types.Le | annotated_types.Lt):
            inclusive = isinstance(entry, annotated_types.Le)
            limit: Any = entry.le if isinstance(entry, annotated_types.Le) else entry.lt
            # A limit that nobody meets by reasonable means would only distract.
            if limit < 100_000 or (isinstance(value, int | float) and value >= limit):
                if inclusive and low is not None:
                    return f" from {low} to {limit}"
                words.append(f"at most {limit}" if inclusive else f"below {limit}")
    return f" {' and '.join(words)}" if words else ""

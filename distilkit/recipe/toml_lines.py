"""TOML with what `tomllib` does not tell: the line of every key, and what to type where a document is wrong."""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

Key = tuple[str, ...]  # the path of a key: ("method", "temperature")

DEEPEST = 32  # tables in tables; a recipe needs two. Beyond that parsers turn quadratic or run out of stack


class NotToml(Exception):  # noqa: N818 - an answer to the caller, who makes the error of it
    """Says which line and key of a document TOML cannot take, and why.

    `quotes`: whether `problem` may quote what the document holds, as `key` and `hint` always may.
    """

    def __init__(
        self, line: int | None, key: Key, problem: str, hint: str | None = None, *, quotes: bool = False
    ) -> None:
        super().__init__(problem)
        self.line, self.key, self.problem, self.hint, self.quotes = line, key, problem, hint, quotes


def parse(text: str) -> tuple[dict[str, Any], dict[Key, int]]:
    """Read a TOML document and the lines of its keys. Raises `NotToml`."""
    entries = list(_entries(text))  # before tomllib, which deep nesting makes slow or overflow
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _explained(str(error), text, entries) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        sources = text.split("\n")
        for entry in entries:
            if re.search(r"[0-9_]{4000}", sources[entry.line - 1]):
                raise NotToml(entry.line, entry.key, "a number with too many digits") from None
        raise NotToml(None, (), f"not readable as TOML: {error}", quotes=True) from None
    return tree, _first_lines(entries)


def key_lines(text: str) -> dict[Key, int]:
    """Find the line, counted from 1, on which each key and table of a TOML document first appears.

    `tomllib` tells none. Keys are paths, ("method", "temperature"). Keys inside inline tables have no entry: their
    table has. A document that is not TOML gives what can be made out of it.
    """
    return _first_lines(_entries(text))


def key_at(text: str, position: int) -> tuple[Key, int] | None:
    """Scan the dotted key at `position`: it and its end, blanks around it included; None if there is none."""
    parts: list[str] = []
    while part := _KEY_PART.match(text, position):
        bare, quoted = part.groups()
        try:
            parts.append(bare or next(iter(tomllib.loads(f"{quoted} = 0"))))
        except ValueError:  # an escape that TOML does not know; the parser will say so
            return None
        position = part.end()
        if not text.startswith(".", position):
            return tuple(parts), position
        position += 1
    return None


def dotted(key: Key) -> str:
    """Spell a key as TOML does."""
    return ".".join(quoted(part) for part in key)


def quoted(part: str) -> str:
    """Spell one part of a key as TOML does: in quotes if it needs them."""
    return part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part, ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------------ scanning

_KEY_PART = re.compile(r"""[ \t]*(?:([A-Za-z0-9_-]+)|("(?:\\[^\n]|[^"\\\n])*"|'[^'\n]*'))[ \t]*""")
# Every alternative takes an unclosed string to the end of its line or of the text: linear time on any input.
_VALUE_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?(?:"{3,5}|\Z)|\'\'\'.*?(?:'{3,5}|\Z)|"(?:\\[^\n]|[^"\\\n])*"?|'[^'\n]*'?'''
    r"""|\#[^\n]*|[\[{]|[\]}]|,|\n|[^"'#\[\]{},\n]+""",
    re.DOTALL,
)
_HEADER = re.compile(r"\[\[?")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)+")


class _Entry(NamedTuple):
    key: Key
    line: int
    is_header: bool


def _first_lines(entries: Iterable[_Entry]) -> dict[Key, int]:
    lines: dict[Key, int] = {}
    for entry in entries:
        for length in range(1, len(entry.key) + 1):
            lines.setdefault(entry.key[:length], entry.line)
    return lines


def _entries(text: str) -> Iterator[_Entry]:
    """Every header and every key with its line, in the order of the document."""
    position, line = 0, 1
    table: Key = ()
    while True:
        blank = _BLANK.match(text, position)
        if blank:
            line += text.count("\n", position, blank.end())
            position = blank.end()
        if position >= len(text):
            return
        header = _HEADER.match(text, position)
        scanned = key_at(text, header.end() if header else position)
        if scanned is not None:
            key, position = scanned
            if len(key) > DEEPEST:
                raise NotToml(line, key[:1], "a key with too many dots for a recipe")
            if header:
                table = key
            yield _Entry(table if header else table + key, line, bool(header))
        end = _end_of_statement(text, position, line)
        line += text.count("\n", position, end)
        position = end


def _end_of_statement(text: str, position: int, line: int) -> int:
    """Where the next line break outside of strings and brackets is."""
    depth = dots = 0
    while position < len(text):
        token = _VALUE_TOKEN.match(text, position)
        word = token.group() if token else text[position]
        if word == "\n" and depth <= 0:
            break
        if word in ("[", "{", "]", "}", ",", "\n"):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(word, 0)
            dots = 0
        elif word[0] not in "\"'#":
            dots += word.count(".")
        if depth > DEEPEST or dots > DEEPEST:
            raise NotToml(line, (), "nested too deeply for a recipe")
        position += len(word)
    return position


# ---------------------------------------------------------------------------------------------------- tomllib's errors


def _explained(message: str, text: str, entries: Sequence[_Entry]) -> NotToml:
    """Say what tomllib says with the line, the key and, for the common slips, what to type."""
    last_line = text.rstrip("\n").count("\n") + 1
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    problem = found[1] if found else message
    line = int(found[2]) if found and found[2] else last_line
    before = [entry for entry in entries if entry.line <= line]
    if before and problem.startswith(("Cannot overwrite", "Cannot declare")):
        return _said_twice(line, before)
    hint = None
    if problem == "Invalid value":
        problem = "a value is missing here, or is not spelled as TOML asks"
        hint = _spelling(text.split("\n")[line - 1]) if line <= last_line else None
    at = f" (column {found[3]})" if found and found[3] else ""
    problem = f"not TOML: {problem[:1].lower()}{problem[1:]}{at}"
    if not before:
        return NotToml(line, (), problem, hint, quotes=True)
    current = before[-1]
    if current.line == line and not current.is_header:
        problem = f"{dotted(current.key)}: {problem}"
    return NotToml(line, current.key, problem, hint, quotes=True)


def _said_twice(line: int, before: Sequence[_Entry]) -> NotToml:
    *others, current = before
    named = f"[{dotted(current.key)}]" if current.is_header else dotted(current.key)
    earlier = next((entry.line for entry in others if entry.key[: len(current.key)] == current.key), None)
    since = f", first on line {earlier}" if earlier else ", or in two ways that contradict each other"
    return NotToml(line, current.key, f"{named} is there twice{since}", "keep one of them", quotes=True)


def _spelling(source: str) -> str | None:
    """Hint how the bare word on this line is to be written."""
    word = re.fullmatch(r"[^=]*=[ \t]*([A-Za-z_][\w.:/ -]{0,80}?)[ \t]*(?:#.*)?\r?", source)
    if word is None:
        return None
    lower = word[1].lower()
    return f"write {lower}, in small letters" if lower in ("true", "false") else f'write "{word[1]}", in quotes'

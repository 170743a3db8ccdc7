"""Write docs/commands.md: every command with its arguments, options and examples, as the program itself has them.

    python docs/tools/commands.py

It reads the functions that Typer calls and not what Typer makes of them, which differs between Typer's versions.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import typer
from typer.models import ArgumentInfo, OptionInfo

from distilkit.cli import app

FILE = Path(__file__).parents[1] / "commands.md"
HEAD = """# Commands

Every command, as `distilkit COMMAND --help` has it. This page is made from the program by
`python docs/tools/renew.py`; a test fails when it is stale.

Exit status of all of them: 0 done; 1 a check that was asked for failed; 2 the input is wrong; 3 a fault of ours, with
the traceback in a file; 130 or 143 interrupted by SIGINT or SIGTERM, with the state saved. `--json` prints one
JSON document on stdout and nothing else there, also when something is wrong ([its form](architecture.md)).
"""
TAKES = {str: "text", Path: "path", int: "an integer", float: "a number"}


def drawn() -> dict[Path, str]:
    """The page's file and what is to be in it."""
    return {FILE: "\n".join([HEAD, *_group(app, "distilkit", 2)])}


def _group(group: typer.Typer, name: str, level: int) -> Iterator[str]:
    # In the order in which `distilkit --help` shows them: commands, then groups of commands.
    for command in group.registered_commands:
        assert command.callback is not None
        if not command.hidden:
            word = command.name or command.callback.__name__.replace("_", "-")
            yield from _command(command.callback, command.help, f"{name} {word}", level)
    for inner in group.registered_groups:
        inside = inner.typer_instance
        assert inside is not None
        if inside.registered_callback is not None and inside.registered_callback.callback is not None:
            callback = inside.registered_callback
            yield from _command(callback.callback, callback.help, f"{name} {inner.name}", level, "COMMAND")
        else:
            yield from (f"{'#' * level} {inner.name}", "")
        yield from _group(inside, f"{name} {inner.name}", level + 1)


def _command(call: Callable[..., Any] | None, words: Any, name: str, level: int, *more: str) -> Iterator[str]:
    assert call is not None
    parameters = list(_parameters(call))
    yield from (f"{'#' * level} {name.removeprefix('distilkit ')}", "")
    yield from _help(inspect.cleandoc(words if isinstance(words, str) else call.__doc__ or ""))
    shown = [_argument(each, info) for each, info, _ in parameters if isinstance(info, ArgumentInfo)]
    yield from ("```text", " ".join([name, "[OPTIONS]", *shown, *more]), "```", "")
    if parameters:
        yield from ("| | takes | default | meaning |", "|---|---|---|---|")
        yield from (_row(*parameter) for parameter in parameters)
        yield ""


def _parameters(call: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, ArgumentInfo | OptionInfo, Any]]:
    """Of each parameter that is shown: itself, what Typer was told of it, and its type."""
    hints = typing.get_type_hints(call, include_extras=True)
    for name, parameter in inspect.signature(call).parameters.items():
        kind, *told = typing.get_args(hints[name]) if hasattr(hints[name], "__metadata__") else (hints[name],)
        for info in (*told, parameter.default):
            if isinstance(info, ArgumentInfo | OptionInfo) and not info.hidden:
                yield parameter, info, kind


def _help(text: str) -> Iterator[str]:
    """Paragraphs, and below "Examples:" what can be typed."""
    words, _, examples = text.partition("Examples:")
    yield from (words.replace("\b", "").strip(), "")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    if lines:
        yield from ("```sh", *lines, "```", "")


def _argument(parameter: inspect.Parameter, info: ArgumentInfo | OptionInfo) -> str:
    return str(info.metavar or parameter.name.upper())


def _row(parameter: inspect.Parameter, info: ArgumentInfo | OptionInfo, kind: Any) -> str:
    if isinstance(info, ArgumentInfo):
        names = [_argument(parameter, info)]
    else:
        # What stands first in Annotated[..., typer.Option("--set")] goes by the name of a default.
        first = [info.default] if info is not parameter.default and isinstance(info.default, str) else []
        names = [part for each in (*first, *(info.param_decls or ())) for part in each.split("/")]
        names = names or [f"--{parameter.name.replace('_', '-')}"]
    cells = (
        ", ".join(f"`{name}`" for name in names),
        _takes(info, kind),
        _default(parameter),
        " ".join((info.help or "").split()),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _takes(info: ArgumentInfo | OptionInfo, kind: Any) -> str:
    several = ""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    if typing.get_origin(kind) in (list, tuple):
        kind, several = typing.get_args(kind)[0], "; may be repeated"
    if kind is bool:
        return "nothing"
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind)) + several
    if isinstance(info, OptionInfo) and info.metavar:
        return f"`{info.metavar}`{several}"
    words = TAKES.get(kind, getattr(kind, "__name__", str(kind)))
    limits = [f"{word} {limit:g}" for word, limit in (("from", info.min), ("to", info.max)) if limit is not None]
    return " ".join([words, *limits]) + several


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if isinstance(value, ArgumentInfo | OptionInfo):
        value = value.default
    if value is inspect.Parameter.empty or value is ...:
        return "required"
    if value is None or value is False or value == [] or callable(value):
        return ""
    return f"`{value}`"


if __name__ == "__main__":
    for file, text in drawn().items():
        file.write_text(text, encoding="utf-8")

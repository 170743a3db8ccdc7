"""Every command's --help has examples, and every example is a command line that distilkit understands."""

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
from conftest import Result

from distilkit import cli

APP: Any = typer.main.get_command(cli.app)


def commands(command: Any = APP, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with the words that call it; the program itself first."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


ALL = dict(commands())
NAMED = {" ".join(words): command for words, command in ALL.items() if words}


def examples(command: Any) -> list[str]:
    """The lines of a command's help that can be typed."""
    text = f"{command.help or ''}\n{command.epilog or ''}"
    lines = [line.strip().removeprefix("Start with:").strip() for line in text.splitlines()]
    return [line for line in lines if re.match(r"(distilkit|torchrun .* -m distilkit) \S", line)]


def parsed(line: str) -> list[str]:
    """The words of the command that an example calls, after every option and argument on the way was understood."""
    words = shlex.split(line)
    words = words[words.index("distilkit") + 1 :]
    command, called = APP, []
    while True:
        context = command.make_context("distilkit", words.copy(), ignore_unknown_options=False)
        left = [*context._protected_args, *context.args] if hasattr(command, "commands") else []
        if not left:
            return called
        name, command, words = command.resolve_command(context, left)
        called.append(name)


def test_there_are_commands_to_look_at() -> None:
    assert len(NAMED) >= 20
    assert {"init", "doctor", "recipes", "recipes show", "recipes copy", "runs prune", "train"} <= set(NAMED)


def test_the_program_itself_says_what_to_start_with(distilkit: Callable[..., Result]) -> None:
    assert examples(APP) == ["distilkit train quickstart"]


@pytest.mark.parametrize("name", NAMED)
def test_every_help_shows_an_example_of_its_own_command(name: str) -> None:
    shown = examples(NAMED[name])
    assert shown, f"distilkit {name} --help has no example"
    assert any(parsed(line)[: len(name.split())] == name.split() for line in shown), shown


@pytest.mark.parametrize("name", NAMED)
def test_every_option_and_argument_says_what_it_is(name: str) -> None:
    for parameter in NAMED[name].params:
        assert parameter.help, f"distilkit {name}: {parameter.name}"


@pytest.mark.parametrize("line", sorted({line for command in ALL.values() for line in examples(command)}))
def test_every_example_is_understood(line: str) -> None:
    assert parsed(line)


def test_an_example_with_an_unknown_option_would_be_seen() -> None:
    for line in (
        "distilkit train quickstart --no-such",
        "distilkit recipes show --jsn one",
        "distilkit trian quickstart",
    ):
        with pytest.raises(Exception, match="No such"):
            parsed(line)

"""Every option of every command with values that nobody means: a message and exit status 2, or an answer and 0.

The options are taken from the Typer application, so that a new one is tried as soon as it exists.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from conftest import Result, train_tiny
from PIL import Image

from distilkit import cli
from distilkit.training.trainer import Trainer

Command = Callable[..., Result]


def every_command(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command by the words that call it, `runs prune` as well as `runs`."""
    for name, command in group.commands.items():
        words = (*before, name)
        yield " ".join(words), command
        if hasattr(command, "commands"):
            yield from every_command(command, words)


COMMANDS: dict[str, Any] = dict(every_command(typer.main.get_command(cli.app)))

ABSURD = (
    "", "-1", "0", "nan", "1e308", "9" * 20, "x" * 5000, "../../etc/passwd", "/dev/null", "\udcff\x1b[31mred\x07",
    "[red]", "{}",
)  # fmt: skip

# Which no option takes, but one that is a name or a path: then what is looked for is not there.
WORST = ("", "x" * 5000, "\udcff\x1b[31mred\x07")

# What a command needs so that the option is what is looked at; little work, where it is not refused.
BASE: dict[str, tuple[str, ...]] = {
    "train": ("{recipe}", "--dry-run", "--runs", "runs", "--device", "cpu"),
    "evaluate": ("{run}", "--device", "cpu"),
    "ensemble-eval": ("{run}", "--device", "cpu"),
    "prune-branches": ("{run}",),
    "robustness": ("{run}", "--steps", "1", "--directions", "1", "--images", "2", "--device", "cpu"),
    "export": ("{run}",),
    "predict": ("{file}", "{image}"),
    "compare": ("{run}",),
    "benchmark": ("{file}", "--repetitions", "1", "--batch", "1"),
    "models": (),
    "push": ("{run}", "--to", "published"),
    "pull": ("{published}",),
    "report": ("{run}", "--no-figures", "--no-evaluate", "--output", "report.html"),
    "runs": ("--limit", "1"),
    "runs show": ("{run}",),
    "runs prune": ("--dry-run", "--name", "nothing"),
    "recipes": (),
    "recipes list": (),
    "recipes show": ("quickstart",),
    "recipes copy": ("quickstart", "copied.toml", "--force"),
    "doctor": ("--quick",),
    "init": ("{images}", "--architecture", "resnet8", "--output", "init.toml", "--force"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A folder with a run, a file exported from it, a recipe and a picture; the working folder of this file's tests."""
    folder = tmp_path_factory.mktemp("options")
    run = train_tiny(folder, "train.epochs=1", "method.name=baseline")
    before = Path.cwd()
    os.chdir(folder)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("zero.png")
    for part in ("train/a", "train/b", "test/a", "test/b"):
        (folder / "images" / part).mkdir(parents=True)
        shutil.copy("zero.png", folder / "images" / part)
    with pytest.raises(SystemExit):
        cli.main(["export", str(run), "--output", "model.onnx"])
    assert onnx.load("model.onnx").graph.node
    with pytest.raises(SystemExit):
        cli.main(["push", str(run), "--to", "models/published"])
    yield {
        "run": str(run),
        "file": "model.onnx",
        "recipe": "tiny.toml",
        "image": "zero.png",
        "published": "models/published",
        "images": "images",
    }
    os.chdir(before)


@pytest.fixture(autouse=True)
def _nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is let through does not work for long: what a command computes is not looked at here."""

    def trains(self: Trainer) -> None:
        raise AssertionError("this would have been trained")

    monkeypatch.setattr(Trainer, "fit", trains)
    monkeypatch.setenv("COLUMNS", "80")


def cases() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                yield name, ""
            elif not parameter.is_flag:
                yield name, parameter.opts[0]


def test_every_command_has_what_it_is_tried_with() -> None:
    assert set(BASE) == set(COMMANDS)
    assert len(set(cases())) >= 70


def tried(command: str, option: str, values: tuple[str, ...], place: dict[str, str], distilkit: Command) -> None:
    base = [word.format(**place) for word in BASE[command]]
    words = [*base, option] if option else base[1:]
    faults = []
    for value in values:
        result = distilkit(*command.split(), *words, value)
        text = result.out + result.err
        if result.status not in (0, 1, 2) or (result.status == 2 and not re.search("error: .", result.err)):
            faults.append((value[:20], result.status, result.err[-300:]))
        # What a stranger named a file may not paint the terminal.
        if "\x1b[31mred" in text:
            faults.append((value[:20], "steers the terminal", text[-300:]))
    assert not faults, "\n".join(map(str, faults))


@pytest.mark.parametrize(("command", "option"), sorted(set(cases())))
def test_a_value_that_nobody_can_mean_is_refused_or_answered(
    command: str, option: str, place: dict[str, str], distilkit: Command
) -> None:
    tried(command, option, WORST, place, distilkit)


@pytest.mark.long
@pytest.mark.parametrize(("command", "option"), sorted(set(cases())))
def test_an_absurd_value_is_refused_or_means_something(
    command: str, option: str, place: dict[str, str], distilkit: Command
) -> None:
    tried(command, option, ABSURD, place, distilkit)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_unknown_options_and_too_many_words_are_refused(
    command: str, place: dict[str, str], distilkit: Command
) -> None:
    base = [word.format(**place) for word in BASE[command]]
    for words in (["--no-such-option"], ["--jsn"], ["-x"], ["--json=3"], ["--runs"]):
        result = distilkit(*command.split(), *base, *words)
        assert result.status == 2, (command, words, result)
        assert "error: " in result.err

"""The commands that the README shows are commands that work."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

from distilkit.runs import run as runs

ROOT = Path(__file__).parents[1]


def _printed_commands(page: Path) -> list[list[str]]:
    """The `distilkit ...` lines of the page's code blocks, without their comments."""
    # Blocks of every language, or the end of one would be taken for the beginning of another.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    shell = [block for language, block in blocks if language == "sh"]
    lines = [line for block in shell for line in block.splitlines() if line.startswith("distilkit ")]
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = _printed_commands(ROOT / "README.md")


def test_the_readme_shows_every_command() -> None:
    from distilkit.cli import app

    shown = {command[1] for command in COMMANDS}
    assert shown == {command.name for command in [*app.registered_commands, *app.registered_groups]}
    assert len(COMMANDS) == 22


@pytest.mark.parametrize("command", [shlex.join(command) for command in COMMANDS])
def test_command_of_the_readme_works(
    command: str,
    distilkit: Callable[..., Result],
    one_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image_folder: Path,
) -> None:
    """As printed, in a folder with one finished run; a training that takes hours is checked with --dry-run."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(one_run, tmp_path / "runs" / one_run.name)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "images").symlink_to(image_folder)
    (tmp_path / "photos").symlink_to(image_folder if "init" in command else image_folder / "test")
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)[1:]
    if arguments[0] == "predict":
        assert distilkit("export", "--output", arguments[1]).status == 0
    if arguments[0] == "pull":
        assert distilkit("push", "--to", arguments[1]).status == 0
    if "--seeds" in arguments:  # which a dry run does not take
        del arguments[arguments.index("--seeds") :]
    if "--baseline" in arguments:
        arguments[arguments.index("--baseline") + 1] = runs.Run.open(one_run).recipe.name
    if arguments[0] == "train":
        arguments.append("--dry-run")
    if arguments[0] == "doctor":
        arguments.append("--quick")
    result = distilkit(*arguments)
    assert result.status in ((0, 1) if "--max-error" in arguments else (0,)), result.err
    assert result.out
    if arguments[0] not in ("train", "compare", "models", "predict", "pull", "runs", "init", "recipes", "doctor"):
        assert str(runs.Run.newest(Path("runs")).path) in result.out, "says which run it used"


def test_the_two_commands_of_the_readme_are_the_makefiles() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for target in re.findall(r"^make ([a-z-]+)$", text, flags=re.MULTILINE):
        assert target in targets
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

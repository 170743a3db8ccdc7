"""What README and docs/ print works: every command, recipe and snippet, as printed, only paths substituted.

The ordinary tests parse every command with the program itself, check every recipe and compile every snippet. The long
ones execute them, page by page and in the order of the page, in a folder that holds what a reader would have: runs, an
exported file, images. Trainings are made short behind the command's back, after its recipe was checked as printed.
What is not executed stands in `snippets.SKIPPED`, and is counted at the end of the session.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import Result
from PIL import Image
from snippets import BLOCKS, COMMANDS, LANGUAGES, PAGES, ROOT, SKIPPED, Block, Command, blocks, covers

from distilkit import cli
from distilkit import recipe as recipes
from distilkit.errors import UserError
from distilkit.recipe import Recipe
from distilkit.workflows.evaluation.robustness_checks import read_thresholds

Run = Callable[..., Result]

# ------------------------------------------------------------------------------------------------------- every block


def test_every_block_says_what_it_is() -> None:
    assert len(BLOCKS) > 80
    wrong = [f"{block.place}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES]
    assert wrong == [], f"give these blocks one of the languages {sorted(LANGUAGES)}"


def test_a_block_that_does_not_end_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snippets.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```sh\none\n```\n\n  ```text\n  two\n  ```\n")
    assert [(block.language, block.line) for block in blocks(page)] == [("sh", 1), ("text", 5)]
    page.write_text("```sh\none\n")
    with pytest.raises(ValueError, match=re.escape("page.md:1: a code block that does not end")):
        list(blocks(page))


def test_the_table_of_what_is_skipped_has_no_stale_entry() -> None:
    stale = [key for key in SKIPPED if not any(covers(key, command) for command in COMMANDS)]
    assert stale == [], "no page prints these any more"


@pytest.mark.parametrize("block", [pytest.param(each, id=each.place) for each in BLOCKS if each.language == "sh"])
def test_shell_can_be_parsed(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [pytest.param(each, id=each.place) for each in BLOCKS if each.language == "python"])
def test_python_can_be_compiled(block: Block) -> None:
    ast.parse(block.text, block.place)


def test_json_and_yaml_can_be_read() -> None:
    for block in BLOCKS:
        if block.language == "json":
            json.loads(block.text)
        if block.language == "yaml":
            yaml.safe_load(block.text)


def _files(page: str, folder: Path) -> None:
    """Write the page's blocks that name their file."""
    for block in BLOCKS:
        if block.page == page and block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


@pytest.mark.parametrize("block", [pytest.param(each, id=each.place) for each in BLOCKS if each.language == "toml"])
def test_toml_is_a_recipe_or_a_file_of_checks(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a recipe is laid over a small one, of which it may name other networks."""
    monkeypatch.chdir(tmp_path)
    _files(block.page, tmp_path)
    document = tomllib.loads(block.text)
    file = tmp_path / "printed.toml"
    if {"parameters", "sharpness", "inputs"} & document.keys():
        file.write_text(block.text)
        assert len(read_thresholds(file).all) == sum(map(len, document.values()))
        return
    whole = "extends" in document or {"data", "method"} <= document.keys()
    own_networks = isinstance(document.get("group", {}).get("students"), list)
    model = "" if own_networks else '[model]\narchitecture = "resnet20"\n'
    (tmp_path / "small_one.toml").write_text(
        f'{model}[data]\ndataset = "digits"\n[method]\nname = "one"\n[train]\nepochs = 4\n'
    )
    file.write_text(block.text if whole else f'extends = "small_one.toml"\n{block.text}')
    assert isinstance(recipes.load(file), Recipe)


# ---------------------------------------------------------------------------------------------- every command, parsed


class Called(NamedTuple):
    """What the command line understood: the command's words, and the values of its parameters."""

    command: str
    values: dict[str, Any]


def understood(arguments: list[str]) -> Called:
    """What Typer makes of a command's arguments; nothing is executed. Raises what Typer raises."""
    import typer

    from distilkit.cli import app

    called: list[Called] = []
    root: Any = typer.main.get_command(app)

    def replace(command: Any, name: str) -> None:
        # A group that can also be called by itself is called first, and then its command.
        command.callback = lambda **values: called.append(Called(name, values))
        for word, inner in getattr(command, "commands", {}).items():
            replace(inner, f"{name} {word}")

    for word, command in root.commands.items():
        replace(command, word)
    if arguments and set(arguments) <= {option for each in root.params for option in each.opts}:
        # Without a command: these act by themselves, and --install-completion on the shell's own files.
        return Called("", {})
    root.main(args=arguments, prog_name="distilkit", standalone_mode=False)
    assert called, "nothing was called"
    return called[-1]


def parts(command: Command) -> list[list[str]]:
    """The command's words; those of each command where a pipe joins several, without what is redirected to a file."""
    found: list[list[str]] = [[]]
    words = iter(command.words)
    for word in words:
        if word == "|":
            found.append([])
        elif word == ">":
            next(words)
        else:
            found[-1].append(word)
    return found


def ours(words: list[str]) -> list[str] | None:
    """The arguments of distilkit in a command, whoever starts it; None where it is another program's."""
    if words[0] == "distilkit":
        return words[1:]
    for place in range(len(words) - 1):
        if words[place : place + 2] == ["-m", "distilkit"]:
            return words[place + 2 :]
    return None


@pytest.mark.parametrize("command", [pytest.param(each, id=f"{each.place} {each.text}") for each in COMMANDS])
def test_command_is_one_that_there_is(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs, commands, options and the types of their values; a recipe that is named is there, and valid."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    _files(command.page, tmp_path)
    for words in parts(command):
        arguments = ours(words)
        if arguments is not None:
            called = understood(arguments)
            if called.command == "train" and called.values["recipe"]:
                recipes.load(called.values["recipe"], called.values["overrides"] or [])
        if words[0] == "torchrun":
            from torch.distributed.run import get_args_parser

            get_args_parser().parse_args(words[1:])
        elif words[0] == "accelerate":
            from accelerate.commands.launch import launch_command_parser

            launch_command_parser().parse_args(words[2:])
        elif words[0] == "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            targets = [word for word in words[1:] if "=" not in word]
            assert all(re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE) for target in targets)
            for word in words[1:]:
                name, equals, _ = word.partition("=")
                assert not equals or f"$({name})" in makefile or f"$(if $({name})" in makefile
        elif words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file()
        elif arguments is None:
            assert command.skipped or words[0] == "find" or words[:2] == ["python", "-m"], f"what is {words[0]}?"


@pytest.mark.parametrize(
    "wrong", ["evaluat", "evaluate --datas x", "models --size big", "train quickstart --device tpu"]
)
def test_a_command_that_there_is_not_is_seen(wrong: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - Click's, wherever this version of Typer keeps Click
        understood(shlex.split(wrong))
    assert hasattr(raised.value, "format_message")


# -------------------------------------------------------------------------------------------- every command, executed


CHECKED = ("--max-increase", "--thresholds", "--max-drop", "--min-speedup")
"""Options of checks that a model of two epochs may fail: exit status 0 or 1."""

RUNS = {
    # A run that pages speak of: the recipe whose run stands in for it.
    "one": "quickstart-seed0",
    "one-1": "quickstart-seed0",
    "quickstart": "quickstart-seed0",
    "one_resnet32-20260101T120000Z": "quickstart-seed0",
    "baseline-1": "quickstart_baseline-seed0",
    "baseline-2": "quickstart_baseline-seed1",
    "baseline-3": "quickstart_baseline-seed2",
}


def shortened(load: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """`recipe.load` for trainings of a second: the recipe is checked as printed, then made small."""

    def tiny(source: str | Path, overrides: Any = ()) -> Recipe:
        printed = load(source, overrides)
        small = ["train.epochs=2", "train.batch_size=256", "train.precision=fp32"]
        if printed.data.dataset not in ("digits", "image-folder", "npz"):
            small += ["data.dataset=digits", "data.augment=none"]
        if isinstance(printed.model.architecture, str) and ":" not in printed.model.architecture:
            small.append("model.architecture=resnet8")
        if printed.schedule.name == "step":
            small.append("schedule.milestones=[0.5]")
        if printed.schedule.name == "snapshot":
            small.append("schedule.cycles=2")
        if getattr(printed.method, "rampup_epochs", 0):
            small.append("method.rampup_epochs=0.5")
        return load(source, [*overrides, *small])

    return tiny


@pytest.fixture(scope="session")
def readers_folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """What a reader of the pages would have in the folder in which they type; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("reader")
    here = Path.cwd()
    os.chdir(folder)
    for name in ("recipes", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs" / "results", folder / "docs" / "results")
    shutil.copytree(image_folder, "images")
    shutil.copytree(image_folder, "my/images")
    shutil.copytree(image_folder, "photos")
    shutil.copytree(image_folder / "test", "flowers")
    Image.open(next(image_folder.glob("test/red/*.png"))).convert("RGB").save("cat.jpg")

    def typed(text: str) -> None:
        with pytest.raises(SystemExit) as left:
            cli.main(shlex.split(text))
        assert not left.value.code, text

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recipes, "load", shortened(recipes.load))
        typed(
            "train quickstart --set name=pictures --set data.dataset=image-folder --set data.root=images "
            "--set data.image_size=32 --device cpu"
        )
        typed("prune-branches --output models/small")
        typed("push --to models/theirs")
        typed("train quickstart_baseline --seeds 0,1,2 --device cpu")
        typed("train quickstart --seeds 0 --device cpu")
    for name, of in RUNS.items():
        shutil.copytree(next(Path("runs").glob(f"{of}-*")), Path("runs") / name)
    typed("export runs/quickstart")
    typed("export runs/quickstart --output single.onnx")
    typed("export runs/quickstart --output single.pt2 --format pt2")
    typed("export runs/quickstart --output single.xml --format openvino")
    shutil.copy("single.onnx", "single-int8.onnx")
    (block,) = (each for each in BLOCKS if each.page == "docs/robustness.md" and each.language == "toml")
    Path("robustness.toml").write_text(block.text)
    os.chdir(here)
    return folder


def _executed(command: Command, distilkit: Run, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Execute a command in the working folder: distilkit's alone in this process, everything else in a shell."""
    (words, *more) = parts(command)
    expanded = "*" in re.sub(r"'[^']*'|\"[^\"]*\"", "", command.text)
    if not (more or expanded or ">" in command.words) and words[0] == "distilkit":
        with monkeypatch.context() as patched:
            if "--dry-run" not in words:
                patched.setattr(recipes, "load", shortened(recipes.load))
            return distilkit(*("runs/one" if word == "RUN" else word for word in words[1:]))
    programs = Path("bin").resolve()
    programs.mkdir(exist_ok=True)
    for name, starts in (("distilkit", f"{shlex.quote(sys.executable)} -m distilkit"), ("python", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {starts} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command.text],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def _pages() -> list[str]:
    """Pages that print something to be executed."""
    return [page.relative_to(ROOT).as_posix() for page in PAGES if _steps(page.relative_to(ROOT).as_posix())]


def _steps(page: str) -> list[Command | Block]:
    """The page's commands and snippets in its order."""
    found: list[Command | Block] = [each for each in COMMANDS if each.page == page and not each.skipped]
    found += [each for each in BLOCKS if each.page == page and each.language == "python" and not each.file]
    return sorted(found, key=lambda each: each.line)


@pytest.mark.long
@pytest.mark.parametrize("page", _pages())
def test_page_works_as_printed(
    page: str,
    readers_folder: Path,
    tmp_path: Path,
    distilkit: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(readers_folder, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    _files(page, folder)
    names: dict[str, Any] = {}
    faults = []
    for step in _steps(page):
        if isinstance(step, Command):
            result = _executed(step, distilkit, monkeypatch)
            allowed = (0, 1) if any(option in step.text for option in CHECKED) else (0,)
            if result.status not in allowed:
                said = "\n".join([result.out[-500:], result.err[-1500:]])
                faults.append(f"{step.place}: {step.text}: exit status {result.status}\n{said}")
        else:
            _prepare(step)
            exec(compile(step.text, step.place, "exec"), names)
    assert not faults, "\n\n".join(faults)


def _prepare(block: Block) -> None:
    """What a snippet needs beyond the reader's folder."""
    if "pruned/model.safetensors" in block.text:
        # The network that the snippet builds, as `prune-branches` writes it.
        from safetensors.torch import save_file
        from torchvision.models import shufflenet_v2_x0_5

        Path("pruned").mkdir()
        save_file(shufflenet_v2_x0_5(num_classes=2).state_dict(), "pruned/model.safetensors")


def test_a_recipe_that_is_wrong_as_printed_is_not_mended_by_shortening() -> None:
    with pytest.raises(UserError):
        shortened(recipes.load)("quickstart", ["method.temprature=3"])
    assert shortened(recipes.load)("okddip_resnet32").train.epochs == 2

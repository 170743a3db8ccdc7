"""What the shell's Tab key offers in the place of a word: names of recipes, runs, architectures, methods, members.

A key press must be answered at once: nothing here imports torch, and so the names of architectures, methods and recipes
come from a list that is written beforehand (`shipped.listed`). Whatever cannot be read is offered nothing, and never an
error.

What is offered comes from names of files and from runs, which other people may have made, and a shell makes code of
text: zsh's script evaluates what it is given, where an escape of the completion library can itself be escaped, and bash
inserts it without quotes. So every completer stands under `completer`, which lets only harmless characters through.
"""

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec

import typer

from distilkit import shipped
from distilkit.reading import UnreadableError, read_json
from distilkit.runs.layout import begun

MOST_RUNS = 50

# Words that no shell takes for anything but themselves, quoted or not. None begins with a dash: no file's name becomes
# an option. Names with other characters are left out; without an offer the shells complete files by themselves.
_HARMLESS = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./:+-]*")
_NOT_HARMLESS = re.compile(r"[^A-Za-z0-9_./:+(), -]")
_LONGEST_DESCRIPTION = 200

Offered = list[str | tuple[str, str]]
_P = ParamSpec("_P")


def completer(find: Callable[_P, Offered]) -> Callable[_P, Offered]:
    """Decorate a function that says what could be typed: words with other than harmless characters are left out.

    Of descriptions, such characters are left out.
    """

    @functools.wraps(find)
    def harmless(*args: _P.args, **kwargs: _P.kwargs) -> Offered:
        offered: Offered = []
        for each in find(*args, **kwargs):
            word, description = (each, "") if isinstance(each, str) else each
            if _HARMLESS.fullmatch(word):
                offered.append((word, _NOT_HARMLESS.sub("", description[:_LONGEST_DESCRIPTION])))
        return offered

    return harmless


@completer
def recipe_names(incomplete: str) -> Offered:
    """Recipes that come with distilkit, and TOML files in the folder that is being typed."""
    known = [(name, row.title) for name, row in shipped.listed().recipes.items() if name.startswith(incomplete)]
    return [*_files(incomplete, ".toml"), *known]


@completer
def run_folders(context: typer.Context, incomplete: str) -> Offered:
    """Folders of runs, the newest first, with their method and state; `--runs` says where they are."""
    found = []
    for folder, record in _records(_runs_folder(context)):
        path = str(folder)
        if path.startswith(incomplete):
            found.append((begun(record), path, _said(record)))
    found.sort(key=lambda each: each[0], reverse=True)
    return [(path, said) for _, path, said in found[:MOST_RUNS]]


@completer
def files_and_runs(context: typer.Context, incomplete: str) -> Offered:
    """Exported files in the folder that is being typed, and runs."""
    return [*_files(incomplete, ".onnx", ".pt2", ".xml"), *run_folders(context, incomplete)]


@completer
def architecture_names(incomplete: str) -> Offered:
    """Our architectures, and how another library's begin."""
    return [name for name in shipped.listed().architectures if name.startswith(incomplete)]


@completer
def method_names(incomplete: str) -> Offered:
    """The methods, as a recipe spells them."""
    return [name for name in shipped.listed().methods if name.startswith(incomplete)]


@completer
def shipped_datasets(incomplete: str) -> Offered:
    """The data sets of the recipes that come with distilkit."""
    sets = {row.dataset for row in shipped.listed().recipes.values()}
    return [name for name in sorted(sets) if name.startswith(incomplete)]


@completer
def member_names(context: typer.Context, incomplete: str) -> Offered:
    """The members of the run that was typed, or of the newest finished one."""
    return [name for name in _members(context) if name.startswith(incomplete)]


@completer
def export_modes(context: typer.Context, incomplete: str) -> Offered:
    """`single`, `ensemble`, and `member:` with each of the run's members."""
    modes = ["single", "ensemble", *(f"member:{name}" for name in _members(context))]
    return [mode for mode in modes if mode.startswith(incomplete)]


@completer
def checkpoint_names(context: typer.Context, incomplete: str) -> Offered:
    """`last`, `best` and every step that the run that was typed, or the newest finished one, has kept."""
    folder = _run(context)
    if folder is None:
        return []
    try:
        names = sorted(entry.name for entry in (folder / "checkpoints").iterdir() if not entry.name.startswith("."))
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete) and not name.endswith((".lock", ".tmp"))]


def completing(environment: Mapping[str, str]) -> bool:
    """Whether a shell asks what could be typed; nothing is to be done then."""
    return environment.get("_DISTILKIT_COMPLETE", "").startswith("complete_")


def answer(ask: Callable[[], Any]) -> int:
    """Let `ask`, which leaves with a status, answer the shell; a failure answers nothing.

    For bash `member:student_1` is three words, as `torchvision:resnet18` is. The words are joined to what was typed,
    and of every answer that part is left out which bash keeps.
    """
    words, kept = None, ""
    if os.environ["_DISTILKIT_COMPLETE"] == "complete_bash":
        words, kept = _joined(os.environ.get("COMP_WORDS", "").split("\n"), os.environ.get("COMP_CWORD", ""))
    if words is not None:
        os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words), str(len(words) - 1)
    os.environ["COLUMNS"] = "10000"  # Rich would break long descriptions, and a shell takes each line for a word
    said, status = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(said):
            ask()
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except Exception:  # noqa: BLE001 - a traceback in the middle of a command that is being typed helps nobody
        return 1
    for line in said.getvalue().splitlines():
        sys.stdout.write(line.removeprefix(kept) + "\n")
    return status


def _joined(words: list[str], place: str) -> tuple[list[str] | None, str]:
    """The words up to the one being typed, with those around a colon as one, and what of that one bash keeps.

    None where the word being typed has no colon: nothing has to be done.
    """
    if not place.isdecimal():
        return None, ""
    typed = words[: int(place) + 1]
    typed += [""] * (int(place) + 1 - len(typed))
    joined: list[str] = []
    for word in typed:
        if joined and (word == ":" or (joined[-1].endswith(":") and len(joined) > 1)):
            joined[-1] += word
        else:
            joined.append(word)
    if ":" not in joined[-1]:
        return None, ""
    return joined, joined[-1].rpartition(":")[0] + ":"


def _files(incomplete: str, *endings: str) -> list[str]:
    """Files that end so, and folders, in the folder that is being typed."""
    folder, _, begun = incomplete.rpartition("/")
    base = f"{folder}/" if "/" in incomplete else ""
    try:
        entries = sorted(Path(base or ".").iterdir())
    except OSError:
        return []
    fitting = [entry for entry in entries if entry.name.startswith(begun) and (begun or not entry.name.startswith("."))]
    files = [f"{base}{entry.name}" for entry in fitting if entry.suffix in endings]
    # A folder is offered only where it is being typed: without a word they would hide the names.
    return files + [f"{base}{entry.name}/" for entry in fitting if incomplete and entry.is_dir()]


def _runs_folder(context: typer.Context) -> Path:
    return Path(str(context.params.get("runs") or "runs"))


def _records(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every run below a folder with what its run.json says; what cannot be read says nothing."""
    try:
        folders = [folder for folder in runs.iterdir() if (folder / "run.json").is_file()]
    except OSError:
        return
    for folder in folders:
        yield folder, _record(folder)


def _record(folder: Path) -> dict[str, Any]:
    """Read a run's record."""
    try:
        record = read_json(folder / "run.json")
    except UnreadableError:
        return {}
    return record if isinstance(record, dict) else {}


def _said(record: Mapping[str, Any]) -> str:
    return ", ".join(
        str(record[key]) for key in ("method", "architecture", "state") if isinstance(record.get(key), str)
    )


def _run(context: typer.Context) -> Path | None:
    """The run that was typed, or the newest finished one."""
    # While the value of an option is still missing, the arguments are not yet given to the parameters.
    typed = context.params.get("run") or next(iter(context.args), None)
    if typed is not None:
        return Path(str(typed))
    finished = [
        (begun(record), folder) for folder, record in _records(_runs_folder(context)) if record.get("state") == "done"
    ]
    return max(finished)[1] if finished else None


def _members(context: typer.Context) -> list[str]:
    folder = _run(context)
    members = _record(folder).get("members") if folder else None
    return [name for name in members if isinstance(name, str)] if isinstance(members, list) else []

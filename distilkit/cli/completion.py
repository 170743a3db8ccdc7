"""What the shell's Tab key offers in the place of a word: names of recipes, runs, architectures, methods, members.

A key press must be answered at once: nothing here imports torch, and so what the registries of architectures and
methods would say is read off their source. Whatever cannot be read is offered nothing, and never an error.
"""

import ast
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from distilkit.errors import require_plain_file
from distilkit.training.files import begun

PACKAGE = Path(__file__).parents[1]
MOST_RUNS = 50
LIBRARIES = ("torchvision:", "timm:")

Offered = list[str | tuple[str, str]]


def recipe_names(incomplete: str) -> Offered:
    """Recipes that come with distilkit, and TOML files in the folder that is being typed."""
    from distilkit import shipped

    known = shipped.builtin()
    names = [name for name in known if name.startswith(incomplete)]
    offered: Offered = [*_files(incomplete, ".toml"), *((name, _title(known[name])) for name in names)]
    return offered


def run_folders(context: typer.Context, incomplete: str) -> Offered:
    """Folders of runs, the newest first, with their method and state; `--runs` says where they are."""
    found = []
    for folder, record in _records(_runs_folder(context)):
        path = str(folder)
        if path.startswith(incomplete):
            found.append((begun(record), path, _said(record)))
    found.sort(key=lambda each: each[0], reverse=True)
    return [(path, said) for _, path, said in found[:MOST_RUNS]]


def files_and_runs(context: typer.Context, incomplete: str) -> Offered:
    """Exported files in the folder that is being typed, and runs."""
    return [*_files(incomplete, ".onnx", ".pt2", ".xml"), *run_folders(context, incomplete)]


def architecture_names(incomplete: str) -> Offered:
    """Our architectures, and how another library's begin."""
    return [name for name in (*_architectures(), *LIBRARIES) if name.startswith(incomplete)]


def method_names(incomplete: str) -> Offered:
    """The methods, as a recipe spells them."""
    return [name for name in _methods() if name.startswith(incomplete)]


def shipped_datasets(incomplete: str) -> Offered:
    """The data sets of the recipes that come with distilkit."""
    from distilkit import shipped

    known = shipped.builtin()
    sets = {shipped.summary(name, file, known).dataset for name, file in known.items()}
    return [name for name in sorted(sets) if name.startswith(incomplete)]


def member_names(context: typer.Context, incomplete: str) -> Offered:
    """The members of the run that was typed, or of the newest finished one."""
    return [name for name in _members(context) if name.startswith(incomplete)]


def export_modes(context: typer.Context, incomplete: str) -> Offered:
    """`single`, `ensemble`, and `member:` with each of the run's members."""
    modes = ["single", "ensemble", *(f"member:{name}" for name in _members(context))]
    return [mode for mode in modes if mode.startswith(incomplete)]


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


def _title(file: Path) -> str:
    from distilkit import shipped

    try:
        return shipped.title(shipped.first_comment(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return ""


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
    try:
        require_plain_file(folder / "run.json")
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _said(record: Mapping[str, Any]) -> str:
    return ", ".join(
        str(record[key]) for key in ("method", "architecture", "state") if isinstance(record.get(key), str)
    )


def _run(context: typer.Context) -> Path | None:
    """The run that was typed, or the newest finished one."""
    typed = context.params.get("run")
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


def _architectures() -> list[str]:
    """The functions that `@register(...)` stands over, in the order of the registry."""
    names = []
    for tree in _trees("models"):
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and any(_calls(each, "register") for each in node.decorator_list):
                names.append(node.name)
    return names


def _methods() -> list[str]:
    """The names in `@register(NAME, ...)` over the classes of methods, in the order of the registry."""
    names = []
    for tree in _trees("methods"):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                names += [name for each in node.decorator_list if _calls(each, "register") and (name := _first(each))]
    return sorted(names)


def _first(call: ast.expr) -> str | None:
    """The first argument, if it is a text."""
    argument = call.args[0] if isinstance(call, ast.Call) and call.args else None
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else None


def _trees(room: str) -> Iterator[ast.Module]:
    for file in sorted((PACKAGE / room).glob("*.py")):
        try:
            yield ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue


def _calls(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name

"""`distilkit runs show`: one run, what its recipe changes, its figures, its files."""

import contextlib
import os
from pathlib import Path
from typing import Any

from distilkit import recipe as recipes
from distilkit.analysis.metrics import interval95
from distilkit.errors import UserError
from distilkit.recipe import Recipe
from distilkit.runs.run import Run, find_run
from distilkit.workflows.comparison.recipe_groups import name_without_seed
from distilkit.workflows.project.runs import list_runs

ADDED = {
    "pruned": "prune-branches",
    "exports": "export",
    "robustness": "robustness",
    "report": "report",
}
"""What later commands leave in a run: its name there, and the command."""

_OWN = {"README.md", "checkpoints", "metrics.jsonl", "recipe.toml", "run.json", "tensorboard"}
_DECIDED = ("train.precision", "train.threads", "data.storage", "group.split_at")
"""Settings that a training decides where the recipe leaves them open."""


def show_run(path: Path | None, runs: Path) -> dict[str, Any]:
    """Describe one run; the newest finished one below `runs` unless `path` names another, also by its name there.

    `recipe`: `base` is the built-in recipe of the run's name, or null where the defaults stand for it; `changes`: every
    setting that is not as there, and was not left open there for the training to decide. `errors`: of every classifier,
    percent, with Wilson's 95 % interval over test images; empty before the training has ended. `best_on_test`: the
    epoch that the papers' code would have chosen, on the test images. `files`: what lies in the folder, in bytes, and
    which later command added it.
    """
    if path is not None and not path.exists() and (runs / path / "run.json").is_file():
        path = runs / path
    run = find_run(path, runs)
    record, data = run.record, run.data
    row: dict[str, Any] = next(
        (each for each in list_runs(run.path.resolve().parent)["runs"] if Path(each["run"]).name == run.path.name), {}
    )
    final = record.get("final", {})
    images = data.images.get("test", 0)
    base_name, base = _base(run)
    return {
        "run": str(run.path),
        **{key: row.get(key) for key in ("name", "state", "created", "age_seconds", "bytes", "epochs", "problem")},
        "method": record["method"],
        "architecture": run.recipe.networks,
        "members": record["members"],
        "leader": record["leader"],
        "ensemble": record["ensemble"],
        "seed": record["seed"],
        "command": record.get("command"),
        "device": record.get("device"),
        "distilkit": record.get("distilkit"),
        "data": {"dataset": data.dataset, "classes": len(data.classes), "images": data.images, "size": data.size},
        "recipe": {"base": base_name, "changes": _changes(base, run.recipe)},
        "recipe_changes": record.get("recipe_changes", []),
        "selected": final.get("selected"),
        "images_per_second": final.get("images_per_second"),
        "errors": {
            name: {**error, "interval95": list(interval95(error["top1"], images))}
            for name, error in final.get("errors", {}).items()
        },
        "best_on_test": final.get("best_on_test"),
        "parameters": record["parameters"],
        "flops": record["flops"],
        "files": _files(run.path),
    }


def _base(run: Run) -> tuple[str | None, Recipe]:
    """The built-in recipe of this name, or what the defaults make of the few settings that have none."""
    known = recipes.builtin()
    for name in (run.recipe.name, name_without_seed(run)):
        if name in known:
            try:
                return name, recipes.load(known[name])
            except UserError:
                break
    recipe = run.recipe
    tree: dict[str, Any] = {
        "name": recipe.name,
        "data": {"dataset": recipe.data.dataset},
        "model": {"architecture": recipe.model.architecture},
        "method": {"name": recipe.method.name},
        "train": {"epochs": recipe.train.epochs},
        "optimizer": {"name": recipe.optimizer.name},
        "schedule": {"name": recipe.schedule.name},
    }
    # What the run's own settings need, such as the architectures of several students, may not be left out.
    with contextlib.suppress(UserError):
        return None, recipes.load(tree)
    return None, recipe


def _changes(base: Recipe, ours: Recipe) -> list[dict[str, Any]]:
    there, here = base.settings(), ours.settings()
    changes = []
    for key in {**there, **here}:
        if key in ("name", "train.seed") or there.get(key) == here.get(key):
            continue
        if key in _DECIDED and there.get(key) in (None, "auto"):
            continue
        changes.append({"key": key, "base": there.get(key), "run": here.get(key)})
    return changes


def _files(path: Path) -> list[dict[str, Any]]:
    """What lies right in the folder, ours first; of a folder the files and bytes in it."""
    listed = []
    for entry in sorted(os.scandir(path), key=lambda entry: (entry.name not in _OWN, entry.name)):
        if entry.name.startswith("."):
            continue
        inside = [Path(folder, name) for folder, _, names in os.walk(entry.path) for name in names]
        chosen = inside if entry.is_dir(follow_symlinks=False) else [Path(entry.path)]
        listed.append(
            {
                "path": entry.name,
                "files": len(chosen),
                "bytes": sum(os.lstat(file).st_size for file in chosen),
                "command": "train" if entry.name in _OWN else ADDED.get(entry.name),
                "contents": sorted(str(file.relative_to(path)) for file in chosen) if entry.name in ADDED else [],
            }
        )
    return listed

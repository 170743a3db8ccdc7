"""`distilkit train`: a recipe, or an unfinished run, in; a finished run out."""

import contextlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from distilkit._version import __version__
from distilkit.analysis import teacher_check
from distilkit.analysis.metrics import interval95
from distilkit.data import datasets
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.recipe import Recipe, placed
from distilkit.runs.data_record import data_record
from distilkit.runs.run import Run, written_by_us_alone
from distilkit.training import tracking
from distilkit.training.processes import from_main, join, lost_ones_named
from distilkit.workflows.train.describe import decided, described, device_name, recorded
from distilkit.workflows.train.fit import fit
from distilkit.workflows.train.images import counted, load, load_again, require_same
from distilkit.workflows.train.prepare import prepare
from distilkit.workflows.train.teachers import resolve_teacher

PACKAGES = ("torch", "torchvision", "accelerate", "fvcore", "onnx", "onnxruntime", "safetensors", "numpy")


def dry_run(recipe: Recipe, runs: Path = Path("runs")) -> dict[str, Any]:
    """What a training of this recipe would build and cost, from the data set's known shape; trains and writes nothing.

    FLOPs in the papers' convention: 2 for each multiply-add of convolutions and linear layers, one image. Activations:
    the numbers that these put out for it. Bytes: weights and buffers as safetensors files; `checkpoint` with the
    optimizer's state.
    """
    prepared = prepare(recipe, runs, None, Observer())
    recipe, spec, root = prepared.recipe, prepared.spec, Path(recipe.data.root)
    present, where = datasets.presence(recipe.data.dataset, root, download=recipe.data.download)
    balance = datasets.balances(recipe.data.dataset, root, spec.classes) if present else {}
    teachers = []
    if prepared.teacher is not None and present:
        # Where images lie in files of their own only those are decoded that the teacher is shown.
        streamed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"storage": "stream"})})
        data = load(streamed, splits=("train", "validation"), prepare=False)
        prepared.take_constants(data)
        few = teacher_check.IMAGES_OF_A_DRY_RUN
        teachers = prepared.check_teacher(data, torch.device("cpu"), Observer(), few)
    return {
        "recipe": recipe.name,
        "pretrained": prepared.pretrained,
        "split_at": recipe.group.split_at,
        **described(prepared),
        **decided(prepared),
        "data": {
            "dataset": spec.name,
            "classes": len(spec.classes),
            "present": present,
            "where": where,
            "storage": recipe.data.storage,
            "storage_reason": prepared.reasons.storage,
            "balance": balance,
            "images": counted(recipe) if present else {},
            "remarks": [*(datasets.notes(recipe.data.dataset, root) if present else []), *datasets.remarks(balance)],
        },
        "teacher_missing": prepared.teacher_missing,
        **({"teachers": teachers} if teachers else {}),
        "tracking": tracking.destinations(recipe),
        "epochs": recipe.train.epochs,
    }


@lost_ones_named()
def train(recipe: Recipe, runs: Path, *, device: str, command: str, observer: Observer) -> dict[str, Any]:
    """Train a recipe from its beginning in a new folder below `runs`; returns the run's final figures.

    Launched as several processes, each calls this, and the main one writes. Raises `UserError` for what the recipe
    asks and cannot be had, `Interrupted` after saving on a signal.
    """
    here = join(device)
    # The network before the data: a wrong split point must not cost a download first.
    prepared = prepare(recipe, runs, here, observer)
    with here.main_process_first():
        data = load(prepared.recipe)
    prepared.take_constants(data)
    prepared.check(data, here)
    teachers = prepared.check_teacher(data, here.device, observer if here.is_main_process else Observer())
    path = None
    if here.is_main_process:
        record = {
            "distilkit": __version__,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "command": command,
            "device": device_name(here.device),
            "processes": here.num_processes,
            **decided(prepared),
            "pretrained": prepared.pretrained,
            **({"teachers": teachers} if teachers else {}),
            "state": "running",
            **recorded(prepared, data_record(prepared.recipe, data)),
        }
        path = Run.create(prepared.recipe, runs, record).path
    run = Run.open(from_main(path))
    # A file does not say what was typed.
    run.recipe = run.recipe.with_tracking_of(prepared.recipe)
    with _alone(run, here):
        fit(run, prepared, data, device, observer)
    return result(Run.open(run.path))


@lost_ones_named()
def resume(
    path: Path, *, device: str, observer: Observer, recipe: Recipe | None = None, accept_changes: bool = False
) -> dict[str, Any]:
    """Continue an unfinished run from its newest whole checkpoint, or from its beginning if it never wrote one.

    A finished run is left as it is: the observer is told so, and its figures are returned. `recipe`: what the caller
    believes the run's recipe to be; where it differs from the run's own, `UserError` lists the differences unless they
    are accepted, and always where the run is finished.
    """
    here = join(device)
    if recipe is not None and recipe.teacher is not None and recipe.teacher.run is None:
        # What a recipe leaves open of a file of weights was settled when the run began, and is compared with that.
        with placed(recipe):
            recipe = resolve_teacher(recipe, path.parent)
    run = Run.open(path)
    if run.record.get("state") != "done":
        with _alone(run, here):
            # Another training may have written to it until we held the lock.
            run = Run.open(path)
            if run.record.get("state") != "done":
                _continue(run, recipe, accept_changes, here, device, observer)
                return result(Run.open(run.path))
    changes = [] if recipe is None else run.recipe.differences(recipe)
    if changed := [change for change in changes if not change.startswith("tracking.")]:
        raise UserError(
            f"{path} is finished, and was trained with another recipe: {'; '.join(changed)}",
            "train the changed recipe from its beginning: leave --resume out",
        )
    observer.note(f"{path} is finished already; there is nothing to resume")
    return result(run)


def result(run: Run) -> dict[str, Any]:
    """The figures that a run ended with, as `train --json` prints them; `interval95`: Wilson's, of each top-1 error."""
    final, images = run.record["final"], run.data.images["test"]
    intervals = {name: list(interval95(error["top1"], images)) for name, error in final["errors"].items()}
    return {"run": str(run.path), "state": run.record["state"], **final, "interval95": intervals}


def _alone(run: Run, here: PartialState) -> contextlib.AbstractContextManager[None]:
    """The run's lock, which the main process holds for all."""
    return written_by_us_alone(run) if here.is_main_process else contextlib.nullcontext()


def _continue(
    run: Run, recipe: Recipe | None, accept_changes: bool, here: PartialState, device: str, observer: Observer
) -> None:
    path, saved = run.path, run.newest_whole_checkpoint(observer)
    for note in run.notes:
        observer.note(f"warning: in the recipe of {path}: {note}")
    changes = [] if recipe is None else run.recipe.differences(recipe)
    # Who watches a training changes nothing of it.
    trained = [change for change in changes if not change.startswith("tracking.")]
    if recipe is not None and changes:
        if trained and not accept_changes:
            raise UserError(
                f"{path} was begun with another recipe: {'; '.join(trained)}",
                "leave RECIPE and --set out to continue with the run's own, or add --accept-changes",
            )
        if trained and saved is None:
            raise UserError(
                f"{path} has no checkpoint that a changed recipe could go on from: {'; '.join(trained)}",
                "train the changed recipe from its beginning: leave --resume out",
            )
        if any(change.startswith("model.pretrained ") for change in changes):
            raise UserError(
                f"{path} goes on from a checkpoint, which no weights to start from can change: {'; '.join(trained)}",
                "train the changed recipe from its beginning: leave --resume out",
            )
        observer.note(f"continuing with a changed recipe: {'; '.join(changes)}")
        wanted = recipe
    else:
        wanted = run.recipe if recipe is None else run.recipe.with_tracking_of(recipe)
    prepared = prepare(wanted, path.parent, here, observer, run=run, begun=saved is not None)
    run.recipe = prepared.recipe
    if saved is None and prepared.pretrained != run.record.get("pretrained"):
        raise UserError(
            f"the weights {run.recipe.model.pretrained} are not the ones that {path} began with",
            "put the file back as it was, or train anew",
        )
    with here.main_process_first():
        data = load_again(run, asked=recipe is not None)
    require_same(run, data, accept_changes, observer)
    prepared.check(data, here)
    fit(run, prepared, data, device, observer, saved=saved, changes=changes)

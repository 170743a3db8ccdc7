"""The part of a training that a run is written in: the loop, its end, and what run.json says of both."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distilkit.data import datasets
from distilkit.data.datasets import ImageData
from distilkit.errors import UserError, first_line, out_of_memory
from distilkit.learners.learner import Learner
from distilkit.observer import Observer, TrainingPlan
from distilkit.recipe import Recipe
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.data_record import data_record
from distilkit.runs.deployed_check import describe
from distilkit.runs.run import Run
from distilkit.threads import threads
from distilkit.training.deployed import check_deployed
from distilkit.training.interrupt import Interrupted, signum_of
from distilkit.training.processes import make_accelerator
from distilkit.training.trainer import Trainer
from distilkit.workflows.share.cards import finished_card
from distilkit.workflows.train.describe import device_name, recorded
from distilkit.workflows.train.prepare import Prepared


def fit(
    run: Run,
    prepared: Prepared,
    data: ImageData,
    device: str,
    observer: Observer,
    *,
    saved: checkpoints.Checkpoint | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Train `run` to its end, from `saved` where it goes on; its state says how that ended.

    `changes`: of the recipe, since it was begun. Raises `Interrupted` after saving on a signal.
    """
    recipe, learner = prepared.recipe, prepared.learner
    accelerator = make_accelerator(recipe.train.precision, device)
    main = accelerator.is_main_process
    if not main:
        observer = Observer()
    # A run that cannot be resumed as it was asked for stays as it is.
    begun = saved is None
    try:
        with _memory_named(recipe, accelerator.num_processes, run.path):
            trainer = Trainer(recipe, learner, data, accelerator, run.path, observer, prepared.teacher)
            if saved:
                trainer.restore(saved)
            if changes and main:
                # Not before: a recipe that the checkpoint does not fit must not become the run's.
                run.change_recipe(recipe, changes, recorded(prepared, data_record(recipe, data)))
            where = Path(run.data.root)
            for remark in (*datasets.notes(run.data.dataset, where), *datasets.remarks(run.data.balance)):
                observer.note(remark)
            observer.training_started(_plan(run, trainer))
            if main:
                run.update(state="running")
            begun = True
            assert recipe.train.threads != "auto"
            # As many as it began with, so that a resumed run adds up in the same order.
            with threads(recipe.train.threads):
                trainer.fit()
        observer.training_finished()
        if main:
            final = _final(run, learner)
            run.record["final"] = final
            _check_deployed(run, data, accelerator.device, observer)
            finished_card(run, observer)
            # "done" comes last: nobody resumes a run that says so.
            run.update(state="done")
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        if main and begun and run.record["state"] != "done":
            run.record.pop("final", None)
            # A folder that cannot be written must not hide what went wrong.
            with contextlib.suppress(UserError):
                run.update(state="interrupted" if stopped else "failed")
        if isinstance(error, KeyboardInterrupt):
            # Before the first step or after the last: what was saved is what a resumption begins with.
            saved_last = checkpoints.pointed(run.checkpoints, "last")
            raise Interrupted(signum_of(error), saved_last, run.path) from error
        raise
    finally:
        observer.training_finished()
    accelerator.wait_for_everyone()


@contextlib.contextmanager
def _memory_named(recipe: Recipe, processes: int, run: Path | None = None) -> Iterator[None]:
    """Say what to change where the device has too little memory: first what leaves the training as it is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        size, parts = recipe.train.batch_size, recipe.train.accumulation
        least = 2 if recipe.model.norm == "batch" else 1
        hints = []
        if size // (2 * parts * processes) >= least:
            more = f"--set train.accumulation={2 * parts}"
            hints.append(f"{more} (the batch stays {size}, computed {size // (2 * parts)} images at a time)")
        if size // (2 * processes * parts) >= least:
            hints.append(f"--set train.batch_size={size // 2}")
        else:
            hints.append("a smaller model, or fewer students")
        if run is not None and checkpoints.pointed(run / "checkpoints", "last"):
            hints.append(f"RECIPE --resume {run} --accept-changes with the first of these goes on where it stopped")
        at_a_time = f"{size // parts} images at a time" if parts > 1 else f"batches of {size} images"
        raise UserError(
            f"the device has too little memory for this training in {at_a_time}: {first_line(error)}",
            f"try {'; or '.join(hints)}",
        ) from error


def _plan(run: Run, trainer: Trainer) -> TrainingPlan:
    accelerator, learner = trainer.accelerator, trainer.learner
    processes = f" in {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    return TrainingPlan(
        run=str(run.path),
        method=run.recipe.method.name,
        architecture=run.recipe.networks,
        members=learner.group.members,
        leader=learner.leader,
        ensemble=learner.method.ensemble_name,
        epochs=run.recipe.train.epochs,
        steps_per_epoch=trainer.steps_per_epoch,
        start_step=trainer.progress.step,
        images=len(trainer.images),
        device=device_name(accelerator.device) + processes,
        precision=run.recipe.train.precision,
        summed_over=learner.method.summed_over(learner.group.members),
    )


def _final(run: Run, learner: Learner) -> dict[str, Any]:
    """The figures of the epoch that is deployed, by a rule that never looks at the test set."""
    lines = run.metrics()
    evaluated = [line for line in lines if "test" in line]
    if "validation" in lines[-1]:
        # The same epoch that the trainer pointed `best` at: the first of the lowest.
        chosen = min(evaluated, key=lambda line: _error(line, "validation", learner.leader))
        rule = "the epoch with the leader's lowest error on the validation split"
    else:
        chosen, rule = lines[-1], "the last epoch"
    seconds = sum(line["seconds"] for line in lines)
    best = min(evaluated, key=lambda line: _error(line, "test", learner.leader))
    return {
        "epochs": lines[-1]["epoch"],
        "images_per_second": sum(line["images_per_second"] * line["seconds"] for line in lines) / seconds,
        "selected": {"epoch": chosen["epoch"], "rule": rule},
        "errors": chosen["test"]["errors"],
        "best_on_test": {
            "epoch": best["epoch"],
            "errors": best["test"]["errors"],
            "note": "selected on the test set by the leader, as the papers' code selects; not an honest estimate",
        },
    }


def _check_deployed(run: Run, data: ImageData, device: torch.device, observer: Observer) -> None:
    """Note in run.json, and for people where it is bad, whether what is deployed has kept up with what was trained."""
    try:
        learner, trained, folder = run.learner(), run.learner(), run.checkpoint()
        if checkpoints.has_part(folder, "raw"):
            trained.load_state_dict(checkpoints.load_part(folder, "raw"))
    except UserError as error:  # which must not take a finished training away
        observer.note(f"warning: what is deployed could not be checked: {error.problem}")
        return
    place, batch_size = list(learner.group.members).index(learner.leader), run.recipe.train.batch_size
    found = check_deployed(learner.group, trained.group, place, data.splits["train"], batch_size, device)
    if found is not None:
        run.record["deployed_check"] = found.document()
        if found.lags:
            observer.note(f"warning: {describe(run.record['deployed_check'])}")


def _error(line: Mapping[str, Any], split: str, member: str) -> float:
    return float(line[split]["errors"][member]["top1"])

"""`distilkit train`: a recipe, or an unfinished run, in; a finished run out."""

import contextlib
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from distilkit._version import __version__
from distilkit.analysis.cost import named_uses
from distilkit.analysis.learner_cost import LearnerCost, learner_cost
from distilkit.data import datasets
from distilkit.data.datasets import ImageData
from distilkit.errors import UserError, first_line, out_of_memory
from distilkit.groups.group import BranchGroup
from distilkit.groups.normalize import Normalize
from distilkit.learners.build import build_learner, placed
from distilkit.learners.learner import Learner
from distilkit.learners.pretrained import start_from
from distilkit.learners.teacher import Teacher
from distilkit.models.own import UntrustedCodeError
from distilkit.observer import Observer, TrainingPlan
from distilkit.recipe import Recipe
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.data_record import DataRecord, data_record, spec_record
from distilkit.runs.run import RECIPE, Run, written_by_us_alone
from distilkit.threads import threads as computing_threads
from distilkit.training import compiled, tracking
from distilkit.training import precision as precisions
from distilkit.training.footprint import checkpoint_bytes
from distilkit.training.interrupt import Interrupted, signum_of
from distilkit.training.processes import from_main, is_main, join, lost_ones_named, make_accelerator
from distilkit.training.trainer import Trainer, check_settings
from distilkit.workflows.share.cards import finished_card, refresh
from distilkit.workflows.train.resolve import Resolved, as_begun, resolve
from distilkit.workflows.train.teachers import name_code, open_teacher, resolve_teacher

PACKAGES = ("torch", "torchvision", "accelerate", "fvcore", "onnx", "onnxruntime", "safetensors", "numpy")


def dry_run(recipe: Recipe, runs: Path = Path("runs")) -> dict[str, Any]:
    """What a training of this recipe would build and cost, from the data set's known shape; trains and writes nothing.

    FLOPs in the papers' convention: 2 for each multiply-add of convolutions and linear layers, one image. Activations:
    the numbers that these put out for it. Bytes: weights and buffers as safetensors files; `checkpoint` with the
    optimizer's state.
    """
    spec = _spec(recipe)
    name_code(recipe, runs)
    learner = build_learner(recipe, spec)
    recipe = _with_split(recipe, learner)
    pretrained = _start(recipe, learner, Observer())
    note = None
    try:
        with placed(recipe):
            teacher = _teacher(resolve_teacher(recipe, runs), spec)
    except UntrustedCodeError:
        raise
    except UserError as error:
        # A chain of recipes can be looked at before its teacher is trained; its cost is then the students' alone.
        teacher, note = None, error.faults[0].problem if error.faults else error.problem
    cost = learner_cost(learner, spec.channels, spec.size, teacher)
    root = Path(recipe.data.root)
    present, where = datasets.presence(recipe.data.dataset, root, download=recipe.data.download)
    resolved = resolve(recipe, spec, cost, torch.device("cuda" if torch.cuda.is_available() else "cpu"), 1)
    balance = datasets.balances(recipe.data.dataset, root, spec.classes) if present else {}
    return {
        "recipe": recipe.name,
        "architecture": recipe.model.architecture,
        "architectures": dict(zip(learner.group.members, recipe.architectures, strict=True)),
        "method": recipe.method.name,
        "pretrained": pretrained,
        "split_at": recipe.group.split_at,
        "members": list(learner.group.members),
        "leader": learner.leader,
        "ensemble": learner.method.ensemble_name,
        **_costs(recipe, learner, cost),
        "data": {
            "dataset": spec.name,
            "classes": len(spec.classes),
            "present": present,
            "where": where,
            "storage": resolved.recipe.data.storage,
            "storage_reason": resolved.storage_reason,
            "balance": balance,
            "remarks": datasets.remarks(balance),
        },
        "teacher_missing": note,
        "tracking": tracking.destinations(recipe),
        "epochs": recipe.train.epochs,
        **resolved.described(),
    }


@lost_ones_named()
def train(recipe: Recipe, runs: Path, *, device: str, command: str, observer: Observer) -> dict[str, Any]:
    """Train a recipe from its beginning in a new folder below `runs`; returns the run's final figures.

    Launched as several processes, each calls this, and the main one writes. Raises `UserError` for what the recipe
    asks and cannot be had, `Interrupted` after saving on a signal.
    """
    here = join(device)
    # The network before the data: a wrong split point must not cost a download first.
    spec = _spec(recipe)
    with placed(recipe):
        tracking.check(recipe)
        precisions.check(recipe.train.precision, here.device)
        recipe = resolve_teacher(recipe, runs)
    name_code(recipe, runs)
    learner = build_learner(recipe, spec)
    recipe = _with_split(recipe, learner)
    pretrained = _start(recipe, learner, observer if here.is_main_process else Observer())
    with placed(recipe):
        teacher = _teacher(recipe, spec)
    cost = _counted(learner, spec, teacher, observer)
    # By the main process, for all and for every resumption.
    resolved: Resolved = from_main(
        resolve(recipe, spec, cost, here.device, here.num_processes) if here.is_main_process else None
    )
    recipe = resolved.recipe
    if recipe.data.storage == "stream":
        observer.note(f"streaming {spec.name}: {resolved.storage_reason}")
    with here.main_process_first():
        data = _load(recipe)
    _normalise_for(learner, data)
    with placed(recipe):
        check_settings(recipe, len(data.splits["train"].labels), here.device, here.num_processes)
    compiled.check(recipe, here.device)
    path = None
    if here.is_main_process:
        run = Run.create(
            recipe,
            runs,
            {
                "distilkit": __version__,
                "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
                "command": command,
                "device": _device_name(here.device),
                "processes": here.num_processes,
                **resolved.described(),
                "pretrained": pretrained,
                "state": "running",
                **_described(recipe, learner, cost, data_record(recipe, data)),
            },
        )
        path = run.path
    run = Run.open(from_main(path))
    # A file does not say what was typed.
    run.recipe = run.recipe.with_tracking_of(recipe)
    with _alone(run, here):
        return _fit(run, learner, data, device, None, (), observer)


def train_seeds(
    recipe: Recipe, seeds: Sequence[int], runs: Path, *, device: str, command: str, observer: Observer
) -> dict[str, Any]:
    """Train a recipe once for each seed, in sibling runs named after them; the runs' figures, with mean and deviation.

    Errors in percent; the deviation is the sample's, over seeds. Raises like `train`.
    """
    documents: list[dict[str, Any]] = []
    for seed in seeds:
        observer.note(f"seed {seed}")
        documents.append(train(sibling(recipe, seed), runs, device=device, command=command, observer=observer))
    return summary_of_seeds(seeds, documents, observer)


def sibling(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with this seed, under a name that says so."""
    settings = recipe.train.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"name": f"{recipe.name}-seed{seed}", "train": settings})


def summary_of_seeds(seeds: Sequence[int], documents: Sequence[dict[str, Any]], observer: Observer) -> dict[str, Any]:
    """Mean and deviation of the errors of several trainings; their model cards are told of each other."""
    if is_main():
        # The first ones could not know of those that came after them.
        for document in documents:
            refresh(Path(document["run"]), observer)
    names = documents[0]["errors"]
    top1 = {name: [document["errors"][name]["top1"] for document in documents] for name in names}
    return {
        "seeds": list(seeds),
        "runs": list(documents),
        "errors": {
            name: {
                "mean_top1": statistics.fmean(values),
                "std_top1": statistics.stdev(values) if len(values) > 1 else None,
            }
            for name, values in top1.items()
        },
    }


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
    run = Run.open(path)
    if run.record.get("state") != "done":
        with _alone(run, here):
            # Another training may have written to it until we held the lock.
            run = Run.open(path)
            if run.record.get("state") != "done":
                return _continue(run, recipe, accept_changes, here, device, observer)
    changes = [] if recipe is None else run.recipe.differences(recipe)
    if changed := [change for change in changes if not change.startswith("tracking.")]:
        raise UserError(
            f"{path} is finished, and was trained with another recipe: {'; '.join(changed)}",
            "train the changed recipe from its beginning: leave --resume out",
        )
    observer.note(f"{path} is finished already; there is nothing to resume")
    return result(run)


def result(run: Run) -> dict[str, Any]:
    """The figures that a run ended with, as `train --json` prints them."""
    final = run.record["final"]
    return {"run": str(run.path), "state": run.record["state"], **final}


def _alone(run: Run, here: PartialState) -> contextlib.AbstractContextManager[None]:
    """The run's lock, which the main process holds for all."""
    return written_by_us_alone(run) if here.is_main_process else contextlib.nullcontext()


def _continue(
    run: Run, recipe: Recipe | None, accept_changes: bool, here: PartialState, device: str, observer: Observer
) -> dict[str, Any]:
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
        run.recipe = as_begun(recipe, run)
    elif recipe is not None:
        run.recipe = run.recipe.with_tracking_of(recipe)
    run.recipe = as_begun(run.recipe, run)
    with placed(run.recipe):
        tracking.check(run.recipe, path)
        precisions.check(run.recipe.train.precision, here.device)
    name_code(run.recipe, run.path.parent)
    learner = build_learner(run.recipe, run.data.spec())
    run.recipe = _with_split(run.recipe, learner)
    if saved is None:
        pretrained = _start(run.recipe, learner, observer if here.is_main_process else Observer())
        if pretrained != run.record.get("pretrained"):
            raise UserError(
                f"the weights {run.recipe.model.pretrained} are not the ones that {path} began with",
                "put the file back as it was, or train anew",
            )
    with here.main_process_first():
        data = _load_again(run, asked=recipe is not None)
    changed = run.data.changed(data)
    if changed:
        counts = {split: len(data.splits[split].labels) for split in changed}
        if not accept_changes or any(run.data.images.get(split) != count for split, count in counts.items()):
            raise UserError(
                f"the images of {' and '.join(changed)} are not the ones that {path} began with",
                "put the data back as it was, or train anew; where damaged files were replaced, one by one, add "
                "--accept-changes",
            )
        observer.note(f"continuing with changed images of {' and '.join(changed)}")
        known = {"fingerprints": {**run.data.fingerprints, **data.fingerprints}}
        run.record["data"] = run.data.model_copy(update=known).model_dump(mode="json")
        after = checkpoints.pointed(run.checkpoints, "last")
        run.record["data_changes"] = [*run.record.get("data_changes", []), {"after": after, "splits": changed}]
    return _fit(run, learner, data, device, saved, changes, observer)


def _fit(
    run: Run,
    learner: Learner,
    data: ImageData,
    device: str,
    saved: checkpoints.Checkpoint | None,
    changes: Sequence[str],
    observer: Observer,
) -> dict[str, Any]:
    recipe = run.recipe
    accelerator = make_accelerator(recipe.train.precision, device)
    main = accelerator.is_main_process
    if not main:
        observer = Observer()
    # A run that cannot be resumed as it was asked for stays as it is.
    begun = saved is None
    try:
        with placed(recipe):
            check_settings(recipe, len(data.splits["train"].labels), accelerator.device, accelerator.num_processes)
            teacher = open_teacher(recipe, run.data, observer.note)
        with _memory_named(recipe, accelerator.num_processes, run.path):
            trainer = Trainer(recipe, learner, data, accelerator, run.path, observer, teacher)
            if saved:
                trainer.restore(saved)
            if changes and main:
                # Not before: a recipe that the checkpoint does not fit must not become the run's.
                cost = _counted(learner, data.spec, teacher, observer)
                run.change_recipe(recipe, changes, _described(recipe, learner, cost, data_record(recipe, data)))
            for remark in datasets.remarks(run.data.balance):
                observer.note(remark)
            observer.training_started(_plan(run, trainer))
            if main:
                run.update(state="running")
            begun = True
            assert recipe.train.threads != "auto"
            # As many as it began with, so that a resumed run adds up in the same order.
            with computing_threads(recipe.train.threads):
                trainer.fit()
        observer.training_finished()
        if main:
            final = _final(run, learner)
            run.record["final"] = final
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
    return result(Run.open(run.path))


def _described(recipe: Recipe, learner: Learner, cost: LearnerCost, data: DataRecord) -> dict[str, Any]:
    """What run.json says of the recipe."""
    return {
        "seed": recipe.train.seed,
        "method": recipe.method.name,
        "architecture": recipe.model.architecture,
        "architectures": dict(zip(learner.group.members, recipe.architectures, strict=True)),
        "members": list(learner.group.members),
        "leader": learner.leader,
        "ensemble": learner.method.ensemble_name,
        **_costs(recipe, learner, cost),
        "data": data.model_dump(mode="json"),
    }


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
        device=_device_name(accelerator.device) + processes,
        precision=run.recipe.train.precision,
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


def _error(line: Mapping[str, Any], split: str, member: str) -> float:
    return float(line[split]["errors"][member]["top1"])


def _spec(recipe: Recipe) -> datasets.DataSpec:
    data = recipe.data
    with placed(recipe):
        return datasets.spec(data.dataset, Path(data.root), data.image_size, data.channels)


def _load(recipe: Recipe, known: DataRecord | None = None, *, prepare: bool = True) -> ImageData:
    """Read the recipe's splits.

    `known`: what a run remembers of them, whose mean and deviation stay. `prepare`: whether what is missing may be
    downloaded or unpacked.
    """
    splits = ("train", "validation", "test") if recipe.data.validation else ("train", "test")
    with placed(recipe):
        return datasets.load(
            recipe.data.dataset,
            Path(recipe.data.root),
            download=recipe.data.download,
            image_size=recipe.data.image_size,
            channels=recipe.data.channels,
            validation=recipe.data.validation,
            seed=recipe.train.seed,
            splits=splits,
            storage=recipe.data.storage,
            workers=recipe.data.workers,
            constants=(known.mean, known.std) if known else None,
            prepare=prepare,
        )


def _load_again(run: Run, *, asked: bool) -> ImageData:
    """Read the splits of a run that goes on.

    Its images were there when it began. Where they are gone they are downloaded or unpacked again only if the user has
    named the recipe that says so (`asked`): the run may be somebody else's.
    """
    try:
        return _load(run.recipe, run.data, prepare=asked)
    except UserError as error:
        if not asked and datasets.traits(run.recipe.data.dataset).prepared:
            again = f"distilkit train {run.path / RECIPE} --resume {run.path}"
            hint = f"to have the images downloaded or unpacked again, name the recipe as well: {again}"
            error.hint = "; ".join(filter(None, [error.hint, hint]))
        raise


def _with_split(recipe: Recipe, learner: Learner) -> Recipe:
    """The recipe with the split that was found, so that the run's own recipe names it."""
    if not isinstance(learner.group, BranchGroup):
        return recipe
    section = recipe.group.model_copy(update={"split_at": learner.group.split_at})
    return recipe.model_copy(update={"group": section})


def _start(recipe: Recipe, learner: Learner, observer: Observer) -> dict[str, Any] | None:
    """Load the weights that a training is to start from; what run.json says of them, None where it has none."""
    if recipe.model.pretrained is None:
        return None
    with placed(recipe):
        found = start_from(learner.group, Path(recipe.model.pretrained), observer.note)
    observer.note(f"starting from {found['file']}; classifiers: {found['classifier']}")
    return found


def _normalise_for(learner: Learner, data: ImageData) -> None:
    """Give the group the constants of the data, which an image folder only tells once it has been read."""
    if data.spec.mean is None or data.spec.std is None:
        raise ValueError("loading the training images tells their mean and deviation")
    learner.group.normalize = Normalize(data.spec.mean, data.spec.std)


def _teacher(recipe: Recipe, spec: datasets.DataSpec) -> Teacher | None:
    """The teacher, before any data is read: an image folder's constants are not known then, nor needed to count."""
    mean, std = spec.mean or (0.0,) * spec.channels, spec.std or (1.0,) * spec.channels
    return open_teacher(recipe, spec_record(recipe, replace(spec, mean=mean, std=std)))


def _counted(learner: Learner, spec: datasets.DataSpec, teacher: Teacher | None, observer: Observer) -> LearnerCost:
    cost = learner_cost(learner, spec.channels, spec.size, teacher)
    if cost.train.uncounted:
        observer.note(f"warning: the costs are too low, these are not counted: {named_uses(cost.train.uncounted)}")
    return cost


def _costs(recipe: Recipe, learner: Learner, cost: LearnerCost) -> dict[str, Any]:
    """What a dry run and run.json say of costs."""
    wholes = {"train": cost.train, "deploy": cost.deploy, "ensemble": cost.ensemble}
    of_each: dict[str, dict[str, int | None]] = {
        what: {name: None if whole is None else getattr(whole, what) for name, whole in wholes.items()}
        for what in ("parameters", "flops", "activations", "bytes")
    }
    of_each["bytes"]["checkpoint"] = checkpoint_bytes(recipe, learner)
    parts = {
        name: {
            "parameters": part.parameters,
            "flops": part.flops,
            "activations": part.activations,
            "bytes": part.bytes,
        }
        for name, part in cost.parts.items()
    }
    return {**of_each, "parts": parts, "uncounted": cost.train.uncounted}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"

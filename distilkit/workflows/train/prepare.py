"""What a dry run, a training and a run that goes on begin with: a recipe made ready, all but its images."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from distilkit.analysis import teacher_check
from distilkit.analysis.cost import named_uses
from distilkit.analysis.learner_cost import LearnerCost, learner_cost
from distilkit.data.datasets import DataSpec, ImageData
from distilkit.errors import UserError
from distilkit.groups.group import BranchGroup
from distilkit.groups.normalize import Normalize
from distilkit.learners.build import build_learner
from distilkit.learners.learner import Learner
from distilkit.learners.pretrained import start_from
from distilkit.learners.teacher import ResizedClassifier, Teacher
from distilkit.models.own import UntrustedCodeError
from distilkit.observer import Observer
from distilkit.recipe import Recipe, placed
from distilkit.runs.data_record import spec_record
from distilkit.runs.run import Run
from distilkit.training import compiled, precision, tracking
from distilkit.training.processes import from_main
from distilkit.training.trainer import check_settings
from distilkit.workflows.train.images import known_spec, with_validation
from distilkit.workflows.train.resolve import Reasons, as_begun, resolve
from distilkit.workflows.train.teachers import check_teacher, is_there, name_code, open_teacher, resolve_teacher


@dataclass
class Prepared:
    """A training that may begin once its images are read. `recipe` leaves nothing open.

    `reasons`: see `resolve`. `pretrained`: what run.json says of the weights that it starts from. `teacher_missing`:
    why a dry run has none although the recipe names one.
    """

    recipe: Recipe
    spec: DataSpec
    learner: Learner
    teacher: Teacher | None
    teacher_missing: str | None
    pretrained: dict[str, Any] | None
    reasons: Reasons

    @cached_property
    def cost(self) -> LearnerCost:
        """What it costs; counted when it is first asked for, which a run that goes on seldom is."""
        return learner_cost(self.learner, self.spec.channels, self.spec.size, self.teacher)

    def take_constants(self, data: ImageData) -> None:
        """Normalise by the data's mean and deviation, which an image folder only tells once it has been read."""
        if data.spec.mean is None or data.spec.std is None:
            raise ValueError("loading the training images tells their mean and deviation")
        self.learner.group.normalize = Normalize(data.spec.mean, data.spec.std)
        section = self.recipe.teacher
        if self.teacher is not None and section is not None and section.run is None and section.mean is None:
            for classifier in self.teacher.classifiers:
                # Weights from elsewhere have no constants of their own.
                inner = classifier.classifier if isinstance(classifier, ResizedClassifier) else classifier
                inner.normalize = Normalize(data.spec.mean, data.spec.std)

    def check_teacher(
        self, data: ImageData, device: torch.device, observer: Observer, most: int = teacher_check.IMAGES
    ) -> list[dict[str, Any]]:
        """Measure the teacher; what run.json keeps of it. Raises `SettingError` where it is read wrongly or useless."""
        if self.teacher is None:
            return []
        with placed(self.recipe):
            return check_teacher(self.recipe, self.teacher, data, device, observer, most)

    def check(self, data: ImageData, here: PartialState) -> None:
        """Raise `UserError` where the recipe asks what these images, this device or these processes do not allow."""
        with placed(self.recipe):
            check_settings(self.recipe, len(data.splits["train"].labels), here.device, here.num_processes)
        compiled.check(self.recipe, here.device)


def prepare(
    recipe: Recipe,
    runs: Path,
    here: PartialState | None,
    observer: Observer,
    *,
    run: Run | None = None,
    begun: bool = False,
) -> Prepared:
    """Make a recipe ready: checks, network, weights to start from, teacher, and all that the recipe leaves open.

    `here`: this process of the training. None: a dry run, to which it is no fault if the teacher is still to be trained
    or this machine lacks what the recipe asks of one. `run`: the run that goes on, `begun` from a checkpoint. Raises
    `UserError` naming the setting at fault.
    """
    if here is not None and not here.is_main_process:
        observer = Observer()
    if run is not None:
        recipe = as_begun(recipe, run)
    spec = known_spec(recipe) if run is None else run.data.spec()
    if run is None:
        recipe = with_validation(recipe)
    if here is not None:
        with placed(recipe):
            tracking.check(recipe, None if run is None else run.path)
            precision.check(recipe.train.precision, here.device)
    name_code(recipe, runs)
    learner = build_learner(recipe, spec)
    recipe = _with_split(recipe, learner)
    pretrained = None if begun else _start(recipe, learner, observer)
    teacher = missing = None
    try:
        recipe, teacher = _taught(recipe, runs, spec, run, observer)
    except UserError as error:
        # A chain of recipes can be looked at before its teacher is trained; its cost is then the students' alone.
        if here is not None or isinstance(error, UntrustedCodeError) or is_there(recipe):
            raise
        missing = error.faults[0].problem if error.faults else error.problem
    prepared = Prepared(recipe, spec, learner, teacher, missing, pretrained, Reasons())
    if run is None:
        if uncounted := prepared.cost.train.uncounted:
            observer.note(f"warning: the costs are too low, these are not counted: {named_uses(uncounted)}")
        prepared.recipe, prepared.reasons = _resolved(prepared, here)
        if prepared.recipe.data.storage == "stream":
            observer.note(f"streaming {spec.name}: {prepared.reasons.storage}")
    return prepared


def _resolved(prepared: Prepared, here: PartialState | None) -> tuple[Recipe, Reasons]:
    """What the main process decides, for all."""
    if here is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return resolve(prepared.recipe, prepared.spec, prepared.cost, device, 1)
    decided = None
    if here.is_main_process:
        decided = resolve(prepared.recipe, prepared.spec, prepared.cost, here.device, here.num_processes)
    found: tuple[Recipe, Reasons] = from_main(decided)
    return found


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


def _taught(
    recipe: Recipe, runs: Path, spec: DataSpec, run: Run | None, observer: Observer
) -> tuple[Recipe, Teacher | None]:
    """The recipe with its teachers' folders, and the teacher."""
    with placed(recipe):
        if run is not None:
            return recipe, open_teacher(recipe, run.data, observer.note)
        recipe = resolve_teacher(recipe, runs)
        # An image folder's constants are not known before it is read, nor needed until then.
        mean, std = spec.mean or (0.0,) * spec.channels, spec.std or (1.0,) * spec.channels
        return recipe, open_teacher(recipe, spec_record(recipe, replace(spec, mean=mean, std=std)), observer.note)

"""What a recipe leaves open ("auto"), decided for a machine; and for a run that goes on, as it began."""

from typing import Any, NamedTuple

import torch

from distilkit.analysis.learner_cost import LearnerCost
from distilkit.data.base import DataSpec
from distilkit.data.storage import choose as choose_storage
from distilkit.hardware import processes_here
from distilkit.recipe import Recipe, placed
from distilkit.runs.run import Run
from distilkit.training import precision, threads


class Reasons(NamedTuple):
    """Why these are as they are, in a few words; None where the recipe says so itself."""

    precision: str | None = None
    threads: str | None = None
    storage: str | None = None


def resolve(
    recipe: Recipe, spec: DataSpec, cost: LearnerCost, device: torch.device, processes: int
) -> tuple[Recipe, Reasons]:
    """Decide what the recipe leaves open, by rules: the same machine always decides alike, however busy it is.

    `processes`: of the whole training. Raises `UserError` where what the recipe asks for cannot be had.
    """
    train, why_precision, why_threads = recipe.train, None, None
    chosen: dict[str, Any] = {}
    with placed(recipe):
        storage, why_storage = choose_storage(recipe.data.storage, spec, recipe.data.augment, device, processes_here())
    if train.precision == "auto":
        chosen["precision"], why_precision = precision.choose(device)
    if train.threads == "auto":
        images = max(2, train.batch_size // (processes * train.accumulation))
        work = threads.step_multiply_adds(cost, images)
        chosen["threads"], why_threads = threads.choose(work, device, processes_here())
    data = recipe.data.model_copy(update={"storage": storage})
    recipe = recipe.model_copy(update={"data": data, "train": train.model_copy(update=chosen)})
    return recipe, Reasons(why_precision, why_threads, why_storage)


def as_begun(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with what it leaves open as the run decided it when it began."""
    data, train = recipe.data, recipe.train
    if data.storage == "auto":
        data = data.model_copy(update={"storage": run.data.storage})
    if not data.validation and run.recipe.data.validation == "folder":
        data = data.model_copy(update={"validation": "folder"})
    if train.precision == "auto":
        train = train.model_copy(update={"precision": run.recipe.train.precision})
    if train.threads == "auto":
        # Earlier versions kept the number in run.json alone; None is torch's own.
        own = (
            run.recipe.train.threads
            if run.recipe.train.threads != "auto"
            else run.record.get("threads", {}).get("used")
        )
        train = train.model_copy(update={"threads": own or torch.get_num_threads()})
    return recipe.model_copy(update={"data": data, "train": train})

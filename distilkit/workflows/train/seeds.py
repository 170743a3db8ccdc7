"""Several seeds of one recipe, one after the other: `distilkit train RECIPE --seeds 0,1,2`."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distilkit.observer import Observer
from distilkit.recipe import Recipe
from distilkit.training.processes import is_main
from distilkit.workflows.share.cards import refresh
from distilkit.workflows.train.train import train


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

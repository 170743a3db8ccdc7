"""Reading the images of a training: those that its recipe names, and for a run that goes on the same ones again."""

from collections.abc import Sequence
from pathlib import Path

from distilkit.data import datasets
from distilkit.data.datasets import ImageData
from distilkit.errors import SettingError, UserError
from distilkit.observer import Observer
from distilkit.recipe import Recipe, placed
from distilkit.runs import checkpoint as checkpoints
from distilkit.runs.data_record import DataRecord
from distilkit.runs.run import RECIPE, Run


def known_spec(recipe: Recipe) -> datasets.DataSpec:
    """What is known of the recipe's data before its images are read."""
    data = recipe.data
    with placed(recipe):
        return datasets.spec(data.dataset, Path(data.root), data.image_size, data.channels)


def with_validation(recipe: Recipe) -> Recipe:
    """The recipe of a new training with the validation images that the data's own folders have.

    Raises `SettingError` where it would hold out others besides.
    """
    data, root = recipe.data, Path(recipe.data.root)
    present, _ = datasets.presence(data.dataset, root, download=False)
    if not present or not datasets.has_validation_folder(data.dataset, root):
        return recipe
    if data.validation not in (0, "folder"):
        with placed(recipe):
            raise SettingError(
                "data.validation",
                f"{data.root} has a folder of validation images, and validation = {data.validation} would hold out "
                "training images as well",
                "leave validation out to use the folder, or give the folder another name to do without it",
            )
    return recipe.model_copy(update={"data": data.model_copy(update={"validation": "folder"})})


def counted(recipe: Recipe) -> dict[str, int]:
    """How many images each split will have, by the files that are there; empty where only reading them would tell."""
    counts = datasets.counts(recipe.data.dataset, Path(recipe.data.root))
    share = recipe.data.validation
    if share and share != "folder" and "train" in counts:
        held = share if isinstance(share, int) else round(share * counts["train"])
        counts = {"train": counts["train"] - held, "validation": held, "test": counts["test"]}
    return counts


def load(
    recipe: Recipe,
    known: DataRecord | None = None,
    *,
    prepare: bool = True,
    splits: Sequence[str] = ("train", "validation", "test"),
) -> ImageData:
    """Read the recipe's splits.

    `known`: what a run remembers of them, whose mean and deviation stay. `prepare`: whether what is missing may be
    downloaded or unpacked.
    """
    splits = [split for split in splits if split != "validation" or recipe.data.validation]
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


def load_again(run: Run, *, asked: bool) -> ImageData:
    """Read the splits of a run that goes on.

    Its images were there when it began. Where they are gone they are downloaded or unpacked again only if the user has
    named the recipe that says so (`asked`): the run may be somebody else's.
    """
    try:
        return load(run.recipe, run.data, prepare=asked)
    except UserError as error:
        if not asked and datasets.traits(run.recipe.data.dataset).prepared:
            again = f"distilkit train {run.path / RECIPE} --resume {run.path}"
            hint = f"to have the images downloaded or unpacked again, name the recipe as well: {again}"
            error.hint = "; ".join(filter(None, [error.hint, hint]))
        raise


def require_same(run: Run, data: ImageData, accept_changes: bool, observer: Observer) -> None:
    """Raise `UserError` where these are not the images that the run began with; note it in its record if accepted."""
    changed = run.data.changed(data)
    if not changed:
        return
    counts = {split: len(data.splits[split].labels) for split in changed}
    if not accept_changes or any(run.data.images.get(split) != count for split, count in counts.items()):
        raise UserError(
            f"the images of {' and '.join(changed)} are not the ones that {run.path} began with",
            "put the data back as it was, or train anew; where damaged files were replaced, one by one, add "
            "--accept-changes",
        )
    observer.note(f"continuing with changed images of {' and '.join(changed)}")
    known = {"fingerprints": {**run.data.fingerprints, **data.fingerprints}}
    run.record["data"] = run.data.model_copy(update=known).model_dump(mode="json")
    after = checkpoints.pointed(run.checkpoints, "last")
    run.record["data_changes"] = [*run.record.get("data_changes", []), {"after": after, "splits": changed}]

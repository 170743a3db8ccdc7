"""What a run or a pruned model remembers of its data: enough to use the model, and to find the images again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from distilkit.data import datasets
from distilkit.data.image_folder import find_images
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.recipe import Recipe


class DataRecord(BaseModel):
    """What a run or a pruned model remembers of its data: enough to use the model, and to find the images again."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    dataset: str
    root: str
    download: bool
    validation: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] | Literal["folder"]
    seed: Annotated[int, Field(ge=0)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    channels: Annotated[int, Field(ge=1, le=64)]
    size: Annotated[int, Field(ge=1, le=4096)]
    mean: tuple[FiniteFloat, ...]
    std: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    images: dict[str, Annotated[int, Field(ge=1, le=10**12)]]
    fingerprints: dict[str, str]
    storage: Literal["resident", "stream"] = "resident"
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    balance: dict[str, dict[str, Any]] = {}
    """By split, the smallest and the largest class with their images, and the classes that have none."""

    @model_validator(mode="after")
    def _one_constant_for_every_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean and std need one number for every channel")
        return self

    def spec(self) -> datasets.DataSpec:
        """The data set as the model knows it."""
        return datasets.DataSpec(
            name=self.dataset,
            classes=self.classes,
            channels=self.channels,
            size=self.size,
            train_images=self.images.get("train"),
            test_images=self.images.get("test"),
            mean=self.mean,
            std=self.std,
            default_augment="none",
        )

    def load(self, splits: Sequence[str], root: str | None = None, *, test_alone: bool = False) -> datasets.ImageData:
        """The images of these splits, from where the run had them, or from `root`.

        What the record names is only read: somebody else may have written it. Downloaded, where the run's recipe
        allows it, and unpacked is in `root` alone, which the user has typed. Of a model of class folders `root` may be
        a test set by itself (`listing.find_labelled`), where no other split is asked for, or with `test_alone` it may
        be missing.

        Raises `UserError` when they are not there or are of other classes.
        """
        if root is not None and self.dataset == "image-folder" and (test_alone or tuple(splits) == ("test",)):
            try:
                whole = find_images(Path(root).expanduser()).classes == self.classes
            except (UserError, RuntimeError):
                whole = False
            if not whole:
                return datasets.load_test_folder(Path(root), self.spec(), self.storage, self.workers)
        traits = datasets.traits(self.dataset)
        if root is not None and not traits.reads_files:
            raise UserError(
                f"--data {root} has no meaning here: the images of {self.dataset} are read from no folder",
                "leave --data out",
            )
        try:
            data = datasets.load(
                self.dataset,
                Path(root or self.root),
                download=self.download,
                prepare=root is not None,
                image_size=self.size,
                channels=self.channels if traits.channels else None,
                validation=self.validation,
                seed=self.seed,
                splits=splits,
                storage=self.storage,
                workers=self.workers,
                constants=(self.mean, self.std),
            )
        except UserError as error:
            where = f"if the images have moved, name their folder with --data; the model was trained on {self.root}/"
            if root is None and traits.prepared:
                where += "; nothing is downloaded or unpacked into a folder that was not typed"
            raise UserError(error.problem, "; ".join(filter(None, [error.hint, where])), files=error.files) from error
        if data.spec.classes != self.classes:
            raise UserError(
                f"the images in {root or self.root} have other classes than the model: {_first(data.spec.classes)} "
                f"instead of {_first(self.classes)}",
                "name the folder of the data that the model was trained on with --data",
            )
        return data

    def changed(self, data: datasets.ImageData) -> list[str]:
        """The splits whose images are not the ones that the run saw."""
        known = self.fingerprints
        return [split for split, digest in data.fingerprints.items() if split in known and known[split] != digest]

    def same(self, data: datasets.ImageData, path: Path, root: str | None, observer: Observer) -> bool:
        """Whether these are the images that the run or model at `path` knows; tells the observer where not."""
        changed = self.changed(data)
        if root is not None:
            for remark in datasets.remarks(
                {split: datasets.balance(of.labels, self.classes) for split, of in data.splits.items()}
            ):
                if "no test image" in remark:
                    observer.note(remark)
        if changed:
            counts = ", ".join(
                f"{len(data.splits[split].labels):,} {split} images instead of {self.images[split]:,}"
                for split in changed
                if self.images.get(split) not in (None, len(data.splits[split].labels))
            )
            observer.note(
                f"warning: the {' and '.join(changed)} images in {root or self.root} are not the ones that {path} was "
                f"trained with: the figures are of other data{f' ({counts})' if counts else ''}"
            )
        return not changed


def data_record(recipe: Recipe, data: datasets.ImageData) -> DataRecord:
    """What is to be remembered of the data that a recipe loaded."""
    images = {name: len(split.labels) for name, split in data.splits.items()}
    balance = {name: datasets.balance(split.labels, data.spec.classes) for name, split in data.splits.items()}
    known = {"images": images, "fingerprints": data.fingerprints, "balance": balance}
    return spec_record(recipe, data.spec).model_copy(update=known)


def spec_record(recipe: Recipe, spec: datasets.DataSpec) -> DataRecord:
    """The same before the images are read: which they are, not how many and with which fingerprints."""
    if spec.mean is None or spec.std is None:
        raise ValueError("the data's mean and deviation are known once its training images are loaded")
    return DataRecord(
        dataset=spec.name,
        root=recipe.data.root,
        download=recipe.data.download,
        validation=recipe.data.validation,
        seed=recipe.train.seed,
        classes=spec.classes,
        channels=spec.channels,
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        images={},
        fingerprints={},
        storage="stream" if recipe.data.storage == "stream" else "resident",
        workers=recipe.data.workers,
    )


def _first(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"

"""The predictions of a run or a pruned model, and the images that a run knows for an exported file; with torch."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distilkit.analysis.predictions import Numbers, Predictions
from distilkit.data import datasets
from distilkit.data.datasets import ImageData, Split
from distilkit.data.image_folder import find_images
from distilkit.data.listing import find_labelled
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError
from distilkit.observer import Observer
from distilkit.runs.data_record import DataRecord
from distilkit.runs.run import RECORD, Run, open_model
from distilkit.workflows.evaluation.logits import predict
from distilkit.workflows.evaluation.predicting import Asked, Predicted, SplitName, digest_of_file

DIGESTED = 1024  # images at a time


def predict_run(path: Path | None, runs: Path, asked: Asked, observer: Observer) -> Predicted:
    """Predict with a run's deployed classifier, or with a pruned model. Raises `UserError` for what is not there."""
    found, model = open_model(path, runs, member=asked.member, checkpoint=asked.checkpoint)
    require_split(model.data, asked.split, found.path)
    data = model.data.load((asked.split,), asked.data_root)
    same = model.data.same(data, found.path, asked.data_root, observer)
    split = data.splits[asked.split]
    logits = predict(model.classifier, split, asked.device, observer, asked.precision)
    names, digests = _named(model.data, data, asked)
    predictions = Predictions(logits.double().numpy(), split.labels.numpy(), names, digests)
    return Predicted(str(found.path), model.member, model.data.classes, same, predictions)


def images_for_file(
    file: Path, dataset: str, preparation: Preparation, classes: tuple[str, ...], asked: Asked, observer: Observer
) -> tuple[Callable[[slice], NDArray[np.uint8]], Numbers, Sequence[str], Sequence[str], bool | None]:
    """The labelled images of a data set for an exported file: of the run in whose folder it lies, or below --data.

    Returns what gives the images of a slice, uint8 [N, H, W, C]; labels, names and digests; and whether they are the
    run's own. Raises `UserError` where nobody knows which images are meant.
    """
    size, channels = preparation.framing.size, preparation.framing.channels
    same: bool | None = None
    if (file.parent.parent / RECORD).is_file():
        record = Run.open(file.parent.parent).data
        require_split(record, asked.split, file)
        record = record if record.size == size else record.model_copy(update={"size": size})
        data = record.load((asked.split,), asked.data_root)
        same = record.same(data, file, asked.data_root, observer)
        names, digests = _named(record, data, asked)
    elif asked.data_root is None or not dataset:
        raise UserError(f"{file} does not say where its images are", "name their folder with --data")
    else:
        traits = datasets.traits(dataset)
        if asked.split == "validation":
            raise UserError(f"{file} does not know which images were held out", "use --split test or --split train")
        data = datasets.load(
            dataset,
            Path(asked.data_root),
            download=False,
            image_size=size if traits.image_size else None,
            channels=channels if traits.channels else None,
            splits=(asked.split,),
        )
        names, digests = (
            [f"{asked.split}/{place}" for place in range(len(data.splits[asked.split].labels))],
            _pixels(data.splits[asked.split]),
        )
    if data.spec.classes != classes:
        raise UserError(
            f"the images in {asked.data_root or file.parent.parent} are of other classes than {file}: "
            f"{len(data.spec.classes)}, not its {len(classes)} in their order",
            "name the folder of the data that it was trained on with --data",
        )
    split = data.splits[asked.split]
    return lambda part: split.images[part].permute(0, 2, 3, 1).numpy(), split.labels.numpy(), names, digests, same


def require_split(data: DataRecord, split: SplitName, path: Path) -> None:
    """Raise `UserError` for validation images where none were held out."""
    if split == "validation" and not data.validation:
        raise UserError(f"{path} held no validation images out", "use --split test or --split train")


def _named(known: DataRecord, data: ImageData, asked: Asked) -> tuple[Sequence[str], Sequence[str]]:
    """Name and digest of every image: of its file where the test images are such, else its place and its pixels'."""
    split = data.splits[asked.split]
    if known.dataset == "image-folder" and asked.split == "test":
        root = Path(asked.data_root or known.root).expanduser()
        try:
            paths = [path for path, _ in find_images(root).samples["test"]]
        except UserError:
            paths = find_labelled(root, known.classes).paths
        if len(paths) == len(split.labels):
            return paths, list(map(digest_of_file, paths))
    return [f"{asked.split}/{place}" for place in range(len(split.labels))], _pixels(split)


def _pixels(split: Split) -> list[str]:
    digests = []
    for start in range(0, len(split.labels), DIGESTED):
        images = split.images[start : start + DIGESTED].permute(0, 2, 3, 1).contiguous().numpy()
        digests += [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    return digests

"""The predictions of anything that predicts, for labelled images: runs, pruned models and exported files.

For an ONNX file and a folder of class folders neither this module nor what it imports needs torch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distilkit.analysis.predictions import Predictions
from distilkit.data.listing import find_labelled
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError, parse_json
from distilkit.observer import Observer
from distilkit.workflows.deploy import predict as deployed_files

SplitName = Literal["train", "validation", "test"]
EXPORTED = (".onnx", ".pt2", ".xml")
BATCH = 250
EXPORT_AGAIN = deployed_files.EXPORT_AGAIN


@dataclass(frozen=True)
class Asked:
    """Which images, and how to compute. `data_root`: None for those that a run knows."""

    split: SplitName = "test"
    data_root: str | None = None
    member: str | None = None
    checkpoint: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"


@dataclass(frozen=True)
class Predicted:
    """`name`: the run, model or file. `member`: the classifier in it. `same_data`: None where nobody knows."""

    name: str
    member: str
    classes: tuple[str, ...]
    same_data: bool | None
    found: Predictions


def is_file(path: Path | None) -> bool:
    """Whether this is an exported file, by its ending."""
    return path is not None and path.suffix in EXPORTED and not path.is_dir()


def predict(path: Path | None, runs: Path, asked: Asked, observer: Observer) -> Predicted:
    """The predictions of a run, a pruned model or an exported file. Raises `UserError` for what is not there."""
    if path is not None and is_file(path):
        return _of_file(path, asked, observer)
    # Imported here: it needs torch.
    from distilkit.workflows.evaluation.evaluate_run import predict_run

    return predict_run(path, runs, asked, observer)


def digest_of_file(path: str) -> str:
    """Of a picture's file."""
    with open(path, "rb") as content:  # noqa: PTH123 - for many of them
        return hashlib.file_digest(content, "sha256").hexdigest()


def _of_file(file: Path, asked: Asked, observer: Observer) -> Predicted:
    if asked.member or asked.checkpoint:
        raise UserError(f"{file} is one classifier: it has neither members nor checkpoints", "leave the option out")
    if asked.precision != "fp32":
        raise UserError(f"{file} computes in the precision that it was exported in", "leave --precision out")
    opened = _Opened(file, "cuda" if asked.device == "cuda" else "cpu")
    if asked.data_root is not None and asked.split == "test":
        root = Path(asked.data_root).expanduser()
        if opened.dataset == "image-folder":
            labelled = find_labelled(root, opened.classes)
            batches = _decoded(labelled.paths, opened.preparation, observer)
            logits = np.concatenate([opened.logits(images) for images in batches])
            digests: Sequence[str] = [digest_of_file(path) for path in labelled.paths]
            labels = np.array(labelled.labels, dtype=np.int64)
            if labelled.missing:
                more = f" and {len(labelled.missing) - 5} more" if len(labelled.missing) > 5 else ""
                observer.note(f"warning: no test image of {', '.join(labelled.missing[:5])}{more}")
            found = Predictions(logits.astype(np.float64), labels, labelled.paths, digests)
            return Predicted(str(file), opened.member, opened.classes, None, found)
    # Imported here: it needs torch.
    from distilkit.workflows.evaluation.evaluate_run import images_for_file

    images, labels, names, digests, same = images_for_file(
        file, opened.dataset, opened.preparation, opened.classes, asked, observer
    )
    parts = []
    for start in range(0, len(labels), BATCH):
        parts.append(opened.logits(images(slice(start, start + BATCH))))
        observer.progress("images", min(start + BATCH, len(labels)), len(labels))
    found = Predictions(np.concatenate(parts).astype(np.float64), labels, names, digests)
    return Predicted(str(file), opened.member, opened.classes, same, found)


class _Opened:
    """A file in its runtime, with what it says of itself."""

    _run: Callable[[NDArray[Any]], Any]

    def __init__(self, file: Path, device: Literal["cpu", "cuda"]) -> None:
        self.file = file
        if file.suffix == ".onnx":
            found = deployed_files.open_file(file, None, device)
            self.classes, self.preparation, self.batch = found.classes, found.preparation, found.batch
            about = found.session.get_modelmeta().custom_metadata_map
            name = (
                "logits" if "logits" in [each.name for each in found.session.get_outputs()] else deployed_files.OUTPUT
            )
            self._run = lambda array: found.session.run([name], {found.input_name: array})[0]
            self._is_probability = name == deployed_files.OUTPUT
        else:
            # Imported here: it needs torch.
            from distilkit.export.opened import OpenedFileError, fixed_batch, open_file

            try:
                other = open_file(file, device=device)
                self.preparation = Preparation.from_json(other.about.get("preprocessing", ""))
                self.classes = tuple(map(str, parse_json(other.about.get("classes", "[]"))))
            except (OpenedFileError, ValueError) as error:
                raise UserError(f"{file} cannot be evaluated: {error}", EXPORT_AGAIN) from error
            about, self.batch, self._is_probability = other.about, fixed_batch(other), False
            self._run = lambda array: other.run(["logits"], array)[0]
        self.dataset, self.member = about.get("dataset", ""), about.get("member", "")

    def logits(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Logits [N, C] of framed pictures, as many as there are. Raises `UserError` where the runtime fails."""
        count, size, parts = len(images_NHWC), self.batch or len(images_NHWC), []
        for start in range(0, count, size):
            part = images_NHWC[start : start + size]
            # Repeated, to fill a batch of a fixed size.
            whole = np.resize(part, (size, *part.shape[1:])) if self.batch else part
            try:
                found = np.asarray(self._run(self.preparation.array(whole)), dtype=np.float64)[: len(part)]
            except Exception as error:  # each runtime has its own
                line = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise UserError(f"{self.file} fails on {len(part)} images: {line}", EXPORT_AGAIN) from error
            if found.shape != (len(part), len(self.classes)):
                raise UserError(f"{self.file} does not answer for its {len(self.classes)} classes", EXPORT_AGAIN)
            parts.append(found)
        logits = np.concatenate(parts)
        with np.errstate(divide="ignore"):
            return np.log(logits) if self._is_probability else logits


def _decoded(paths: Sequence[str], preparation: Preparation, observer: Observer) -> Iterator[NDArray[np.uint8]]:
    """The framed pictures, a batch after another. Raises one `UserError` for all that cannot be read."""
    faults, done = [], 0
    for part, pixels in deployed_files.decoded(paths, preparation, 32, None):
        faults += [f"{path}: {each}" for path, each in zip(part, pixels, strict=True) if isinstance(each, str)]
        done += len(part)
        observer.progress("images", done, len(paths))
        if not faults:
            yield np.stack([each for each in pixels if not isinstance(each, str)])
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise UserError(
            f"{len(faults)} of {len(paths)} images cannot be read: {'; '.join(faults[:10])}{more}",
            "replace or remove these files",
        )

"""`distilkit predict`: what an exported file sees in pictures, with ONNX Runtime alone.

Neither this module nor anything that it imports needs torch; a test says so.

Shape suffixes: N images, C classes, H height, W width.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distilkit.data.pixels import FORMATS, UNREADABLE, Pixels, decode, is_left_behind, is_picture, reason
from distilkit.data.preparation import Preparation
from distilkit.errors import UserError, parse_json
from distilkit.export.runtime import RUNTIME_ERRORS, Device, open_session
from distilkit.hardware import affinity
from distilkit.observer import Observer

BATCH = 32
MOST_AT_A_TIME = 65_536
"""What `distilkit export --batch` takes at most: the memory of a batch is that of so many pictures."""
LARGEST_BATCH = 2**30
"""Numbers in a batch of a size that the file insists on: one picture would be repeated until they are there."""
PIXELS = 2**26
"""Of a batch, where neither the user nor the file says how many images it has: large pictures, fewer at a time."""
OUTPUT = "probabilities"
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}

EXPORT_AGAIN = "export the run again with this distilkit: distilkit export RUN"


class Unread(NamedTuple):
    """An image that has no answer."""

    image: str
    reason: str


class Deployed(NamedTuple):
    """An opened file and what it says of itself. `batch`: the only number of images that it takes, or None."""

    session: Any
    classes: tuple[str, ...]
    preparation: Preparation
    input_name: str
    batch: int | None


def predict(
    file: Path,
    images: Sequence[str],
    *,
    top: int,
    batch: int | None,
    threads: int | None,
    observer: Observer,
    device: Device = "cpu",
) -> dict[str, Any]:
    """Classify pictures; of each the `top` most probable classes, the best first.

    `images`: files, and folders to be searched. `batch`: how many at a time, None for `BATCH` or what the file insists
    on. `threads`: for ONNX Runtime and for decoding, None for every core. Pictures are prepared as the file says, which
    is as the test images of its training were. `unanswered`: what could not be read, with the reason; the others are
    answered all the same. Raises `UserError` for a file that cannot be used, or does not say how.
    """
    deployed = open_file(file, threads, device)
    if batch is not None and deployed.batch not in (None, batch):
        raise UserError(f"{file} takes {deployed.batch} images at a time, no more and no fewer", "leave --batch out")
    paths, unanswered = find(images)
    predictions: list[dict[str, Any]] = []
    done = 0
    for part, pixels in decoded(paths, deployed.preparation, deployed.batch or batch or _fitting(deployed), threads):
        whole = [(path, each) for path, each in zip(part, pixels, strict=True) if not isinstance(each, str)]
        unanswered += [Unread(path, each) for path, each in zip(part, pixels, strict=True) if isinstance(each, str)]
        if whole:
            probabilities_NC = run(deployed, np.stack([each for _, each in whole]), file)
            for (path, _), probabilities_C in zip(whole, probabilities_NC, strict=True):
                if np.isfinite(probabilities_C).all():
                    predictions.append(_answer(path, probabilities_C, deployed.classes, top))
                else:
                    unanswered.append(Unread(path, "the network's probabilities are not finite numbers"))
        done += len(part)
        observer.progress("images", done, len(paths))
    return {
        "file": str(file),
        "classes": len(deployed.classes),
        "images": len(predictions) + len(unanswered),
        "predictions": predictions,
        "unanswered": [each._asdict() for each in unanswered],
    }


def open_file(file: Path, threads: int | None = None, device: Device = "cpu") -> Deployed:
    """Open an exported file. Raises `UserError` if it is none, or does not say what it takes and what it gives."""
    if other := {".pt2": "a torch.export program", ".xml": "an OpenVINO model"}.get(file.suffix):
        raise UserError(
            f"{file} is {other}; predict computes with ONNX Runtime and takes .onnx files",
            "distilkit export --format onnx; docs/deployment.md says how to run the other formats in Python",
        )
    try:
        session = open_session(file, threads, device)
    except RUNTIME_ERRORS as error:
        raise UserError(
            f"{file} cannot be opened by ONNX Runtime: {_first_line(error)}",
            "name a file that distilkit export wrote, and that is whole",
        ) from error
    try:
        about = session.get_modelmeta().custom_metadata_map
        inputs = session.get_inputs()
        given = ", ".join(f"{each.name}: {each.type} {each.shape}" for each in inputs)  # names are decoded only here
        outputs = {output.name: (TYPES.get(output.type), output.shape) for output in session.get_outputs()}
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is damaged: its names are not UTF-8", EXPORT_AGAIN) from error
    if "distilkit_version" not in about:
        raise UserError(
            f"{file} was not exported by distilkit: it says neither its classes nor how pictures are prepared",
            "name a file that distilkit export wrote",
        )
    if "preprocessing" not in about or "classes" not in about:
        raise UserError(
            f"{file} was exported by distilkit {about['distilkit_version']}, which did not write down how pictures are "
            "prepared",
            EXPORT_AGAIN,
        )
    try:
        preparation = Preparation.from_json(about["preprocessing"])
        classes = parse_json(about["classes"])
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("its classes are not a list of names")
    except (ValueError, RecursionError) as error:
        raise UserError(f"the metadata of {file} cannot be used: {error}", EXPORT_AGAIN) from error
    shape = inputs[0].shape if inputs else []
    fits = [
        len(inputs) == 1 and len(shape) == 4,
        bool(inputs) and TYPES.get(inputs[0].type) == preparation.dtype,
        # A name stands for any size.
        all(have == want or isinstance(have, str) for have, want in zip(shape[1:], preparation.shape(), strict=False)),
    ]
    if not all(fits):
        raise UserError(
            f"{file} contradicts itself: its input is {given or 'missing'}, its metadata speak of "
            f"{preparation.dtype} {list(preparation.shape())}",
            EXPORT_AGAIN,
        )
    batch = shape[0] if isinstance(shape[0], int) else None
    if batch is not None and not 1 <= batch <= MOST_AT_A_TIME:
        raise UserError(f"{file} takes {batch} images at a time; 1 to {MOST_AT_A_TIME} make sense", EXPORT_AGAIN)
    if batch is not None and batch * math.prod(preparation.shape()) > LARGEST_BATCH:
        raise UserError(
            f"{file} takes {batch} images of {list(preparation.shape())} at a time; {LARGEST_BATCH:,} numbers are the "
            "most",
            EXPORT_AGAIN,
        )
    dtype, answer = outputs.get(OUTPUT, (None, []))
    if dtype not in ("float32", "float16") or answer[-1:] != [len(classes)]:
        raise _no_probabilities(file, classes)
    return Deployed(session, tuple(classes), preparation, inputs[0].name, batch)


def _no_probabilities(file: Path, classes: Sequence[str]) -> UserError:
    return UserError(f"{file} does not give the probabilities of its {len(classes)} classes", EXPORT_AGAIN)


def _fitting(deployed: Deployed) -> int:
    """How many images at a time, of this size."""
    side = deployed.preparation.framing.short_side
    return max(1, min(BATCH, PIXELS // side**2))


def find(images: Iterable[str]) -> tuple[list[str], list[Unread]]:
    """List the image files: those named, and those in folders, in the order of their names at every level.

    Hidden files and folders are passed over, as in training. Also the folders without images.
    """
    paths: list[str] = []
    empty: list[Unread] = []
    for image in images:
        if not os.path.isdir(image):  # noqa: PTH112 - a name from a list may hold what Path refuses
            paths.append(image)
            continue
        found = list(_inside(image))
        paths += found
        if not found:
            empty.append(Unread(image, f"a folder without images ({', '.join(FORMATS.values())})"))
    return paths, empty


def run(deployed: Deployed, images_NHWC: NDArray[np.uint8], file: Path) -> NDArray[np.float32]:
    """Compute the probabilities [N, C] of framed pictures. Raises `UserError` where ONNX Runtime fails."""
    count = len(images_NHWC)
    if deployed.batch is not None and count < deployed.batch:
        # Repeated, to fill the batch.
        images_NHWC = np.resize(images_NHWC, (deployed.batch, *images_NHWC.shape[1:]))
    try:
        (probabilities,) = deployed.session.run(
            [OUTPUT], {deployed.input_name: deployed.preparation.array(images_NHWC)}
        )
    except RUNTIME_ERRORS as error:
        raise UserError(
            f"ONNX Runtime fails on {len(images_NHWC)} images in {file}: {_first_line(error)}",
            "a smaller --batch needs less memory",
        ) from error
    # The shape that a file declares need not be the one that it computes.
    if np.shape(probabilities) != (len(images_NHWC), len(deployed.classes)):
        raise _no_probabilities(file, deployed.classes)
    return np.asarray(probabilities[:count], dtype=np.float32)


def decoded(
    paths: Sequence[str], preparation: Preparation, batch: int, threads: int | None
) -> Iterator[tuple[Sequence[str], list[Pixels | str]]]:
    """One batch after another, the next one being decoded meanwhile: its paths, and of each its pixels or a reason."""
    framing = preparation.framing

    def read(path: str) -> Pixels | str:
        try:
            return decode(path, framing)
        except UNREADABLE as error:
            return reason(path, error)

    parts = [paths[start : start + batch] for start in range(0, len(paths), batch)]
    # Threads: Pillow decodes and resizes outside Python's lock.
    with ThreadPoolExecutor(threads or affinity()) as pool:

        def begin(place: int) -> list[Future[Pixels | str]]:
            return [pool.submit(read, path) for path in parts[place]] if place < len(parts) else []

        ahead = begin(0)
        for place, part in enumerate(parts):
            now, ahead = ahead, begin(place + 1)
            yield part, [future.result() for future in now]


def _answer(path: str, probabilities_C: NDArray[np.float32], classes: Sequence[str], top: int) -> dict[str, Any]:
    # Stable: of equal ones the first class, as argmax has it.
    best = np.argsort(-probabilities_C, kind="stable")[:top].tolist()
    ranked = [{"class": classes[place], "probability": float(probabilities_C[place])} for place in best]
    return {"image": path, **ranked[0], "top": ranked}


def _inside(folder: str) -> Iterator[str]:
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        # A link that leads back up would be followed for ever.
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_left_behind(name))
        for name in sorted(files):
            path = os.path.join(where, name)  # noqa: PTH118
            if not is_left_behind(name) and is_picture(path):
                yield path


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

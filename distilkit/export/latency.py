"""How fast exported files run, measured in turn so that a busy moment of the machine hits all of them alike."""

import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from distilkit.errors import UserError
from distilkit.export.opened import OpenedFile, OpenedFileError, image_shape, input_array, open_file
from distilkit.export.runtime import Device
from distilkit.randomness import generator

_WARMUPS = 3

Name = TypeVar("Name", bound=Hashable)


class Latency(TypedDict):
    """Milliseconds for one batch."""

    median_ms: float
    p95_ms: float


def interleave(contenders: Mapping[Name, Callable[[], object]], repetitions: int) -> dict[Name, Latency]:
    """Time calls against each other: A, B, A, B, ..., `repetitions` times each, after three rounds not counted."""
    if repetitions < 1:
        raise ValueError(f"the number of repetitions must be 1 or more, not {repetitions}")
    milliseconds: dict[Name, list[float]] = {name: [] for name in contenders}
    for repetition in range(_WARMUPS + repetitions):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if repetition >= _WARMUPS:
                milliseconds[name].append(1000 * elapsed)
    results = {}
    for name, values in milliseconds.items():
        median, p95 = np.percentile(values, [50, 95])
        results[name] = Latency(median_ms=float(median), p95_ms=float(p95))
    return results


def random_pixels(shape: Sequence[int]) -> Tensor:
    """Images of random pixels, uint8; the first dimension is the number of images. The same for the same shape."""
    return torch.randint(256, tuple(shape), dtype=torch.uint8, generator=generator(0, "latency", shape[0]))


def file_call(opened: OpenedFile, batch_size: int) -> Callable[[], object]:
    """One run of a file on `batch_size` images of random pixels, as large as those that it was trained with."""
    array = input_array(opened, random_pixels((batch_size, *image_shape(opened))))
    return lambda: opened.run(opened.outputs, array)


def opened_for_timing(file: Path, threads: int | None, device: Device = "cpu") -> OpenedFile:
    """Open a file that takes images alone. Raises `UserError` for any other."""
    try:
        opened = open_file(file, threads, device)
        image_shape(opened)
    except OpenedFileError as error:
        raise UserError(
            f"{file} cannot be timed: {error}", "name a file that distilkit export wrote, or a run"
        ) from error
    return opened


class Machine(TypedDict):
    """What else was going on: `cores`, and `load`, how many processes wanted one in the last minute (None: unknown)."""

    cores: int
    load: float | None


def machine() -> Machine:
    """The machine as it is now; look before measuring, for a measurement is a load too."""
    return Machine(cores=os.cpu_count() or 1, load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None)


def is_busy(found: Machine) -> bool:
    """Whether more processes wanted a core than there are."""
    return found["load"] is not None and found["load"] > found["cores"]


def interleaved_latency(
    files: Mapping[str, Path],
    batch_sizes: Sequence[int] = (1, 32),
    repetitions: int = 50,
    threads: int | None = None,
    device: Device = "cpu",
) -> dict[str, dict[int, Latency]]:
    """Time files against each other in their own runtimes: name -> batch size -> milliseconds per batch.

    On CUDA the way of the images to the device and of the answers back counts.

    All files are open at once and run A, B, A, B, ..., `repetitions` times each, after three runs that are not
    counted. Images are random pixels. `threads` None uses every core. Raises `UserError` if a file does not exist or
    cannot be opened.
    """
    opened = {name: opened_for_timing(file, threads, device) for name, file in files.items()}
    results: dict[str, dict[int, Latency]] = {name: {} for name in files}
    for batch_size in batch_sizes:
        calls = {name: file_call(each, batch_size) for name, each in opened.items()}
        for name, latency in interleave(calls, repetitions).items():
            results[name][batch_size] = latency
    return results
